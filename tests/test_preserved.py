"""What counts as the same function where outputs are not finite, and as the same tensor."""

import math

import pytest
import torch
from networks import Graph, mlp, randomised
from oracles import assert_same_function
from torch import Tensor, nn

from gpu_align import AlignmentResult, Permutation, SpecError, align, discover
from gpu_align._symmetry import compare_outputs

NAN, INF = math.nan, math.inf
ONE, HOLE, OTHER_HOLE = [1.0, 2.0], [1.0, NAN], [NAN, 2.0]


def outputs_of(first: list[float], second: list[float]) -> dict[str, Tensor]:
    return {"first": torch.tensor(first).double(), "second": torch.tensor(second).double()}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (ONE, HOLE, INF),
        (HOLE, ONE, INF),
        (HOLE, OTHER_HOLE, INF),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, INF], ONE, INF),
        (ONE, [1.0, INF], INF),
        (HOLE, HOLE, 0.0),
        ([1.0, INF], [1.0, INF], 0.0),
        (HOLE, [1.5, NAN], 0.5),
        # Nothing can be compared, and that is no proof.
        ([NAN, NAN], [NAN, NAN], INF),
    ],
    ids=str,
)
def test_what_is_not_finite_must_be_the_same(
    before: list[float], after: list[float], expected: float
) -> None:
    """The first output is finite and the same, so it is the second one that tells."""
    model = Graph(
        lambda s, x: (x + s.first, s.second * 1.0),
        first=nn.Parameter(torch.zeros(2)),
        second=nn.Parameter(torch.zeros(2)),
    )
    states = [outputs_of(ONE, second) for second in (before, after)]
    assert compare_outputs(model, torch.ones(2), *states).difference == expected


def root_of(s: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the network's outputs, and NaN in a second one where a unit's weight is negative."""
    hidden = s.first(x).relu()
    return s.head(hidden), torch.cat([x[:, :1], s.first.bias[:1].sqrt().expand(len(x), 1)], 1)


def pinned_root(bias: list[float]) -> nn.Module:
    model = randomised(Graph(root_of, first=nn.Linear(3, 4), head=nn.Linear(4, 2)))
    with torch.no_grad():
        model.first.bias.copy_(torch.tensor(bias))
    return model


@pytest.mark.parametrize("first", [1.0, -1.0])
def test_nan_in_a_second_output_is_no_preserved_function(first: float) -> None:
    """A spec that moves the unit whose bias is seen makes NaN of a number, or the reverse."""
    spec = discover(mlp([3, 4, 2]).double(), torch.randn(5, 3).double())
    spec = type(spec).from_json(spec.to_json().replace('"0.', '"first.').replace('"2.', '"head.'))
    model = pinned_root([first, -first, first, -first])
    moved = Permutation(spec, {name: torch.tensor([1, 0, 3, 2]) for name in spec.groups})
    state = model.state_dict()
    compared = compare_outputs(model, torch.randn(5, 3), state, moved.apply(state))
    assert compared.difference == INF


def test_outputs_with_the_same_holes_are_preserved() -> None:
    model, other = (
        randomised(Graph(lambda s, x: s.net(x).log(), net=mlp([3, 4, 2])), seed) for seed in (0, 1)
    )
    result = align(model, other, example_inputs=torch.randn(64, 3).double())
    assert isinstance(result, AlignmentResult)
    assert result.function_preserved


# Ties: the same memory in the same layout, and nothing else


def two_layers(second: Tensor | None = None) -> nn.Module:
    """Two layers of equal shape; the second has the given weight."""
    model = mlp([4, 4, 4, 2], nn.Tanh)
    randomised(model)
    if second is not None:
        model[2].weight = nn.Parameter(second)
    return model


def assert_symmetries_hold(model: nn.Module) -> None:
    inputs = torch.randn(5, 4, dtype=torch.float64)
    spec = discover(model, inputs)
    for seed in range(3):
        moved = Permutation.random(spec, generator=torch.Generator().manual_seed(seed))
        assert_same_function(model, inputs, model.state_dict(), moved.apply(model.state_dict()))


def test_equal_values_are_no_tie() -> None:
    model = two_layers()
    model[2].weight = nn.Parameter(model[0].weight.detach().clone())
    spec = discover(model, torch.randn(5, 4, dtype=torch.float64))
    assert spec.ties == {}
    assert [group.size for group in spec.groups.values()] == [4, 4]
    assert_symmetries_hold(model)


def test_one_address_is_a_tie() -> None:
    model = two_layers()
    model[2].weight = model[0].weight
    spec = discover(model, torch.randn(5, 4, dtype=torch.float64))
    assert spec.ties == {"2.weight": "0.weight"}
    assert_symmetries_hold(model)


def test_another_shape_at_one_address_is_no_tie() -> None:
    """The bias is the first row of the weight: as a tie it would have the weight's axes."""
    model = two_layers()
    model[2].bias = nn.Parameter(model[0].weight.detach()[0])
    try:
        spec = discover(model, torch.randn(5, 4, dtype=torch.float64))
    except SpecError:
        pytest.fail("the overlap is to be pinned")
    assert spec.ties == {}
    assert_symmetries_hold(model)
