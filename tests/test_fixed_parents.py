"""Units that stay where they are, with others inside each of them that have orders of their own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Graph
from symmetry_cases import Case, Fixed, Sizes, assert_case, assert_planted_is_found, parameter
from test_families import heads
from torch import Tensor, nn

from gpu_align import (
    discover,
)
from gpu_align._cli._symmetries import document, print_spec
from gpu_align._symmetry import ops_without_rule

SLOPES = torch.tensor([[0.5], [0.25]], dtype=torch.float64)


def told_apart(run: Callable[[Tensor], Tensor], sizes: Sizes, out: int = 6) -> Case:
    """Two heads of 3 dimensions, each with a slope of its own, and some ops."""
    return heads(lambda h: run(h * SLOPES), sizes, out=out)


def experts() -> Graph:
    """A hidden layer of 4 units in each of 3 experts, of which every output has its own."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("bd,efd->bef", s.embed(x), s.up) + s.bias)
        return torch.einsum("bef,edf->bed", hidden, s.down)

    return Graph(
        forward,
        embed=nn.Linear(3, 5),
        up=parameter(3, 4, 5),
        bias=parameter(3, 4),
        down=parameter(3, 2, 4),
    )


def alibi() -> Graph:
    """Attention of 2 heads, whose scores fall with the distance by a slope of each head."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = s.embed(x)
        q, k, v = (layer(h).unflatten(2, (2, 3)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        places = torch.arange(h.shape[1])
        bias = SLOPES[:, None] * (places[None] - places[:, None])
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return s.head(F.relu(s.proj(mixed.transpose(1, 2).flatten(2))))

    linear = {name: nn.Linear(4, 6) for name in ("q", "k", "v")}
    return Graph(
        forward, embed=nn.Linear(3, 4), **linear, proj=nn.Linear(6, 5), head=nn.Linear(5, 2)
    )


CASES = {
    "slopes": told_apart(torch.relu, [Fixed(2), (3, 0)]),
    "slopes_and_sums": told_apart(lambda h: h.sum(2), [Fixed(2), (3, 0)], out=2),
    "experts": Case(experts, (2, 3), [5, Fixed(3), (4, 1)]),
    "alibi": Case(alibi, (2, 4, 3), [4, Fixed(2), (3, 1), (3, 1), 5]),
    # Dimensions of one head meet those of another.
    "flipped": told_apart(lambda h: h + 2 * h.flip(1), [3]),
    "rolled": told_apart(lambda h: h * h.roll(1, 1), [3]),
    "summed_up": told_apart(lambda h: h.cumsum(1), [3]),
    "sum_of_heads": told_apart(lambda h: h.sum(1), [3], out=3),
    "softmax_of_heads": told_apart(lambda h: h.softmax(1), [3]),
    "scale_of_dimensions": heads(lambda s, h: h * SLOPES * s.scale, [3], scale=parameter(3)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    assert_case(case)


@pytest.mark.parametrize("name", ["experts", "alibi"])
def test_a_planted_permutation_is_found(name: str) -> None:
    assert_planted_is_found(CASES[name])


def test_a_fixed_group_is_written_as_such() -> None:
    model = CASES["slopes"].model()
    spec = discover(model, CASES["slopes"].inputs())
    assert '"fixed": true' in spec.to_json()
    parent, child = spec.groups.values()
    assert parent.fixed
    assert child.parent == parent.name
    assert spec.tensors["first.weight"].groups == (parent.name, child.name)


def test_axes_that_stay_fixed_in_part_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = CASES["alibi"].model()
    spec = discover(model, CASES["alibi"].inputs())
    assert {(pin.tensor, pin.axis) for pin in spec.partial_pins} == {
        *((f"{name}.{kind}", 0) for name in "qkv" for kind in ("weight", "bias")),
        ("proj.weight", 1),
    }
    print_spec(spec)
    printed = " ".join(capsys.readouterr().out.split())
    assert "partly fixed because of" in printed
    assert "q.weight[0] (2×3)" in printed
    assert "2, fixed" in printed
    (entry,) = document(spec)["partial_pins"]
    assert ("q.weight", 0) in entry["axes"]


def test_an_op_without_a_rule_that_fixes_heads_alone_is_named() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        table = s.layer(x).view(2, 3, 4)
        weights = torch.vander(s.slopes, 3)[:, :1]
        return s.head((table.transpose(1, 2) * weights[:3, 0]).flatten(1))

    model = Graph(
        forward,
        layer=nn.Linear(3, 12),
        slopes=nn.Parameter(torch.randn(3)),
        head=nn.Linear(12, 2),
    ).double()
    spec = discover(model, torch.randn(2, 3, dtype=torch.float64))
    assert [pin.axis for pin in spec.partial_pins if pin.tensor == "layer.weight"] == [0]
    assert ops_without_rule(spec) != []
