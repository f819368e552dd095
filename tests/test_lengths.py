"""Tables that are cut to the length of the inputs: the symmetries hold for other lengths too."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Graph, randomised
from oracles import assert_same_function
from torch import Tensor, nn

from gpu_align import Permutation, discover

ROWS, WIDTH, TOKENS = 12, 4, 5
Table = Callable[[nn.Module, int], Tensor]

TABLES: dict[str, Table] = {
    "slice": lambda s, n: s.pos[:n],
    "dropout": lambda s, n: F.dropout(s.pos, 0.1, False)[:n],
    "unsqueezed": lambda s, n: s.pos[None][:, :n][0],
    "scaled": lambda s, n: (s.pos * 0.5)[:n],
    "transposed": lambda s, n: s.pos.t()[:, :n].t(),
    "norm": lambda s, n: s.norm(s.pos)[:n],
    "linear": lambda s, n: s.proj(s.pos)[:n],
    "cast": lambda s, n: s.pos.double().tanh()[:n],
    "narrow": lambda s, n: s.pos.sin().narrow(0, 0, n),
    "last": lambda s, n: s.pos.exp()[-n:],
    "split": lambda s, n: s.pos.tanh().split([n, ROWS - n])[0],
    "selected": lambda s, n: torch.stack([(2 * s.pos).select(0, i) for i in range(n)]),
    "unbound": lambda s, n: torch.stack((2 * s.pos).unbind(0)[:n]),
    "flattened": lambda s, n: s.pos.tanh().reshape(-1)[: n * WIDTH].view(n, WIDTH),
    "joined": lambda s, n: torch.cat([s.pos, s.more])[:n],
    "summed": lambda s, n: (s.pos + s.more)[:n],
    "whole_too": lambda s, n: s.pos[:n] + s.pos.mean(0),
    "softmax": lambda s, n: (s.pos.softmax(0) * s.more)[:n],
    "products": lambda s, n: (s.pos @ s.more.t())[:n, :n] @ s.pos[:n],
    "other_whole": lambda s, n: (s.pos * s.more)[:n] + s.more.softmax(0).sum(0),
    "twice": lambda s, n: s.pos[1:].tanh()[:n],
    "mean": lambda s, n: s.pos.tanh()[:n].mean(0),
    "mean_of_slice": lambda s, n: s.pos[:n].mean(0),
}


def model_with(table: Table) -> nn.Module:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        return s.head(F.relu(s.hidden(s.embed(x) + table(s, x.shape[1]))).mean(1))

    return randomised(
        Graph(
            run,
            embed=nn.Embedding(7, WIDTH),
            pos=nn.Parameter(torch.zeros(ROWS, WIDTH)),
            more=nn.Parameter(torch.zeros(ROWS, WIDTH)),
            norm=nn.LayerNorm(WIDTH),
            proj=nn.Linear(WIDTH, WIDTH),
            hidden=nn.Linear(WIDTH, 6),
            head=nn.Linear(6, 3),
        )
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables_cut_to_the_length_hold_at_other_lengths(table: Table) -> None:
    model = model_with(table)
    spec = discover(model, torch.randint(7, (2, TOKENS)))
    assert "hidden" in spec.groups
    state = model.state_dict()
    for seed in range(2):
        order = Permutation.random(spec, generator=torch.Generator().manual_seed(seed))
        for length in (1, 2, TOKENS, 8, ROWS - 1):
            tokens = torch.randint(7, (3, length))
            assert_same_function(model, tokens, state, order.apply(state))


def test_units_that_slices_share_out_stay_free() -> None:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        h = s.first(x)
        return s.head(torch.cat([h[:, :2].tanh(), h[:, 2:].relu()], 1))

    model = randomised(Graph(run, first=nn.Linear(3, 5), head=nn.Linear(5, 2)))
    spec = discover(model, torch.randn(2, 3).double())
    assert [group.size for group in spec.groups.values()] == [2, 3]
