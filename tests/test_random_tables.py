"""Random networks with a table cut to the length of the inputs: all symmetries hold at others."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Graph, randomised
from oracles import assert_same_function
from strategies import seeds
from torch import Tensor, nn

from gpu_align import Permutation, PermutationSpec, discover

ROWS, WIDTH, TRACED = 10, 4, 4
LENGTHS = (2, 7, 9)
Step = Callable[[nn.Module, Tensor], Tensor]

STEPS: dict[str, Step] = {
    "tanh": lambda s, t: t.tanh(),
    "dropout": lambda s, t: F.dropout(t, 0.5, False),
    "scale": lambda s, t: t * s.rows * s.columns,
    "norm": lambda s, t: s.norm(t),
    "linear": lambda s, t: s.linear(t),
    "mixed": lambda s, t: s.mixing(t.t()).t(),
    "softmax_rows": lambda s, t: t.softmax(0),
    "softmax": lambda s, t: t.softmax(-1),
    "other": lambda s, t: t * s.other,
    "cumsum": lambda s, t: t.cumsum(0),
    "flip": lambda s, t: t.flip(0),
    "joined": lambda s, t: torch.cat([t, s.other], 0)[:ROWS],
    "products": lambda s, t: (t @ s.other.t()).tanh() @ t,
    "reshaped": lambda s, t: t.reshape(ROWS // 2, -1).sin().reshape(ROWS, -1),
    "twice": lambda s, t: torch.cat([t, t], 0).cos()[ROWS // 2 : -ROWS // 2],
    "sorted": lambda s, t: t.sort(0).values,
    # Added to what they are made of, so that no two rows are equal: of ties any may come first.
    "largest": lambda s, t: t + t * (t >= t.topk(2, 0).values[-1:]),
    "best": lambda s, t: t + t * F.one_hot(t.argmax(0), ROWS).t(),
    "chosen": lambda s, t: t + t[s.other.argmax(0)].sum(0),
    "every_other": lambda s, t: t + t[::2].repeat_interleave(2, 0).sin(),
    "added_up": lambda s, t: t.index_add(0, torch.arange(ROWS) % 4, t),
    "median": lambda s, t: t - t.median(0).values,
}
CUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "first": lambda t, n: t[:n],
    "last": lambda t, n: t[-n:],
    "narrow": lambda t, n: t.narrow(0, 1, n),
    "transposed": lambda t, n: t.t()[:, :n].t(),
    "batched": lambda t, n: t[None, :, :][:, :n][0],
    "split": lambda t, n: t.split([n, ROWS - n])[0],
    "flat": lambda t, n: t.reshape(-1)[: n * WIDTH].view(n, WIDTH),
    "selected": lambda t, n: torch.stack([t[i] for i in range(n)]),
    "twice": lambda t, n: t[1:].relu()[:n],
    "embedded": lambda t, n: F.embedding(torch.arange(n), t),
    "indexed": lambda t, n: t[torch.arange(n)],
    "gathered": lambda t, n: t.gather(0, torch.arange(n)[:, None].expand(n, WIDTH)),
    "grid": lambda t, n: F.interpolate(t.t()[None], size=ROWS)[0].t()[:n],
}
USES: dict[str, Step] = {
    "added": lambda h, t: h + t,
    "multiplied": lambda h, t: h * t,
    "joined": lambda h, t: torch.cat([h, t.expand(h.shape)], -1)[..., 1 : WIDTH + 1],
    "attended": lambda h, t: (h @ t.t()).softmax(-1) @ t,
    "averaged": lambda h, t: h + t.mean(0),
    "biased": lambda h, t: F.scaled_dot_product_attention(h, h, h, t @ t.t()),
    "largest": lambda h, t: h * t.amax(0),
}


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A network of [batch, tokens, units] in float64 with random weights."""
    steps = draw(st.lists(st.sampled_from(sorted(STEPS)), max_size=3))
    cut, use = draw(st.sampled_from(sorted(CUTS))), draw(st.sampled_from(sorted(USES)))
    whole = draw(st.sampled_from(["", "", "", *STEPS]))

    def run(s: nn.Module, x: Tensor) -> Tensor:
        table = s.table
        for step in steps:
            table = STEPS[step](s, table)
        h = USES[use](s.embed(x), CUTS[cut](table, x.shape[1]))
        if whole:
            h = h + STEPS[whole](s, table).mean(0)
        return s.head(s.hidden(h).relu().mean(1))

    torch.manual_seed(0)
    tables = {
        name: nn.Parameter(torch.zeros(shape))
        for name, shape in {
            "table": (ROWS, WIDTH),
            "other": (ROWS, WIDTH),
            "rows": (ROWS, 1),
            "columns": (WIDTH,),
        }.items()
    }
    model = Graph(
        run,
        **tables,
        embed=nn.Linear(3, WIDTH),
        norm=nn.LayerNorm(WIDTH),
        linear=nn.Linear(WIDTH, WIDTH),
        mixing=nn.Linear(ROWS, ROWS),
        hidden=nn.Linear(WIDTH, 5),
        head=nn.Linear(5, 2),
    )
    model.extra_repr = lambda: f"{steps=}, {cut=}, {use=}, {whole=}"
    return randomised(model, draw(seeds))


ANY = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@settings(ANY, max_examples=300)
@given(model=networks())
def test_many_random_networks_with_tables_keep_it_at_other_lengths(model: nn.Module) -> None:
    assert_symmetries_hold_at_other_lengths(model)


def assert_symmetries_hold_at_other_lengths(model: nn.Module) -> None:
    spec: PermutationSpec = discover(model, torch.randn(2, TRACED, 3, dtype=torch.float64))
    assert "hidden" in spec.groups
    state = model.state_dict()
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(0)).apply(state)
    for length in (TRACED, *LENGTHS):
        inputs = torch.randn(3, length, 3, dtype=torch.float64)
        assert_same_function(model, inputs, state, moved)
