"""Models with the groups that were worked out by hand, and what holds of what is discovered."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from networks import Graph, randomised
from oracles import assert_same_function
from torch import Tensor, nn

from gpu_align import (
    AlignmentProblem,
    CoordinateDescent,
    Permutation,
    PermutationSpec,
    Portfolio,
    discover,
    run_search,
)

Sizes = list[int | tuple[int, int]]
"""Of each group the number of units, and the number of the group that it is inside."""


class Fixed(int):
    """The number of units of a fixed group."""


@dataclass(frozen=True)
class Case:
    """A model, the shape of its inputs, and its groups in topological order.

    A group is its size, or for units inside each unit of another group their number there and the
    position of the other group in the list.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sizes: Sizes

    def model(self) -> nn.Module:
        return randomised(self.build())

    def inputs(self) -> Tensor:
        return torch.randn(self.shape, dtype=torch.float64)


def linear_between(run: Callable[[Tensor], Tensor], sizes: Sizes, out: int = 4) -> Case:
    """Linear(3, 4), an op, and Linear from `out` units to the outputs."""
    return Case(
        lambda: Graph(
            lambda s, x: s.head(run(s.first(x))), first=nn.Linear(3, 4), head=nn.Linear(out, 2)
        ),
        (2, 3),
        sizes,
    )


def conv_between(
    layer: Callable[[], nn.Module], sizes: Sizes, *, width: int = 4, dims: int = 2
) -> Case:
    """A convolution to `width` channels, a layer, and the mean over all places into a Linear."""
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    places = tuple(range(2, 2 + dims))
    return Case(
        lambda: Graph(
            lambda s, x: s.head(s.layer(s.conv(x)).mean(places)),
            conv=convolution(2, width, 3, padding=1),
            layer=layer(),
            head=nn.Linear(width, 2),
        ),
        (2, 2, *[4] * dims),
        sizes,
    )


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


def assert_groups(spec: PermutationSpec, sizes: Sizes) -> None:
    """Assert that the groups are these, and their number of orders."""
    names = list(spec.groups)
    assert [
        group.size if group.parent is None else (group.size, names.index(group.parent))
        for group in spec.groups.values()
    ] == sizes
    fixed = [isinstance(entry, Fixed) for entry in sizes]
    assert [group.fixed for group in spec.groups.values()] == fixed
    orders = 1
    for entry in sizes:
        size, repeats = (entry, 1) if isinstance(entry, int) else (entry[0], sizes[entry[1]])
        orders *= 1 if isinstance(entry, Fixed) else math.factorial(size) ** repeats
    assert spec.log10_symmetries == pytest.approx(math.log10(orders), abs=1e-9)


def assert_case(case: Case) -> None:
    """Assert that discovery finds what was worked out by hand, and what keeps the function."""
    model, inputs = case.model(), case.inputs()
    spec = discover(model, inputs)
    assert_groups(spec, case.sizes)
    assert_random_permutations_preserve(spec, model, inputs)
    assert PermutationSpec.from_json(spec.to_json()) == spec


def assert_planted_is_found(case: Case) -> None:
    """Assert that a random symmetry is undone, by descent and by the default search."""
    model = case.model()
    spec, target = discover(model, case.inputs()), model.state_dict()
    shuffle = Permutation.random(spec, generator=torch.Generator().manual_seed(1))
    problem = AlignmentProblem(shuffle.apply(target), target, spec)
    for search in (CoordinateDescent(starts=20, initial="random"), None):
        outcome = run_search(search or Portfolio.for_problem(problem), problem)
        assert problem.distance(problem.permutation(outcome.best)) == pytest.approx(0, abs=1e-20)


def assert_random_permutations_preserve(
    spec: PermutationSpec, model: nn.Module, inputs: object
) -> None:
    state = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        moved = Permutation.random(spec, generator=generator).apply(state)
        assert_same_function(model, inputs, state, moved)
