"""Balance: the scales for which every unit has the same norm going in and coming out.

With the scale s of a unit, what makes the unit is multiplied by s and what reads it by 1 / s. The
total squared norm of the parameters is convex in log s, and smallest where both have one norm for
every unit. Rows that a batch norm frees of their scale get norm 1: the minimum of the squared norm
minus log s², which is convex too. So solving for one group after the other comes to the one
minimum.

Source: balanced layers as the invariant of gradient flow (Du, Hu, Lee, NeurIPS 2018, theorem 2.1);
Osborne's balancing of matrices (1960), where one group is on both sides of a tensor.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpu_align._symmetry._parts import NormScale
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._tensor_spec import Block

_TOLERANCE = 1e-11  # of log s², well above the rounding of sums
_ROUNDS = 1000
_PERIOD = 20  # rounds over which the rate is taken
_FARTHEST = 1.95  # 2 would never come to rest
_SMALL = 0.1  # largest change of log s² from which it is taken


@dataclass(eq=False)
class _Scales:
    """The scales of the units of a group, or of the rows of a weight.

    Attributes:
        squares: float64 [n], the squares of the scales found so far.
        floor: float64 [n], below which `squares` may not go; of rows only.
        places: where they act.
        is_coupled: two of them act on one entry.
    """

    squares: Tensor
    floor: Tensor | None = None
    places: list[tuple["_Squares", "_Place"]] = field(default_factory=list)
    is_coupled: bool = False


@dataclass(frozen=True)
class _Place:
    """Where scales act on a block.

    Attributes:
        scales: which.
        power: 1 or -1.
        dims: axes of the block along which they lie, slowest first.
        strides: along each of these, how far the next of them is.
        start: number of the first of them.
    """

    scales: _Scales
    power: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0

    def part(self, values: Tensor, extents: Sequence[int]) -> Tensor:
        """Return those of one value for each of the scales that act here, as a view [extents]."""
        return values.as_strided(extents, self.strides, self.start)


@dataclass(frozen=True)
class _Squares:
    """Squared entries of a block, summed over the axes without scales."""

    values: Tensor
    places: tuple[_Place, ...]

    def multiplier(self, place: _Place) -> Tensor:
        """Return by what the squares are multiplied along the dims of a place."""
        extents = [self.values.shape[dim] for dim in place.dims]
        return place.part(place.scales.squares, extents) ** place.power

    def sums(self, place: _Place) -> Tensor:
        """Return the sums of the scaled squares that each scale of a place acts on, by its dims."""
        operands: list[object] = [self.values, list(range(self.values.ndim))]
        # What is summed over goes first: that leaves little to multiply.
        for other in sorted(
            self.places, key=lambda other: not set(place.dims).isdisjoint(other.dims)
        ):
            operands += [self.multiplier(other), list(other.dims)]
        return torch.einsum(*operands, list(place.dims))


def balance(spec: PermutationSpec, state: StateDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the scales that balance a network.

    A unit that nothing makes or nothing reads keeps its scale, and so does a row of zeros. A row
    is left longer than 1 where its running variance would become negative.

    Args:
        spec: the symmetries.
        state: name -> tensor of float64.

    Returns:
        Scaled group -> float64 [units], and weight of a norm scale -> float64 [rows].
    """
    groups = {
        name: _Scales(torch.ones(spec.units(name), dtype=torch.float64, device="cpu"))
        for name, group in spec.groups.items()
        if group.scaled
    }
    rows = {scale.weight: _row_scales(scale, spec, state) for scale in spec.norm_scales}
    for name, tensor in spec.tensors.items():
        if tensor.counted and (name in rows or not groups.keys().isdisjoint(tensor.groups)):
            entries = spec.tensor_of(name, state).cpu().double().square()
            for block in tensor.blocks:
                _add_block(block, entries, spec, groups, rows.get(name))
    _iterate([*rows.values(), *groups.values()])
    return _roots(groups), _roots(rows)


def _iterate(scales: Sequence[_Scales]) -> None:
    """Solve for one group after the other until nothing changes, with over-relaxation.

    In a chain of many groups plain turns creep. How far to go beyond each solution follows from
    the rate at which the changes shrink (Young 1954; Varga, Matrix Iterative Analysis, 4.3).
    """
    before, beyond = math.inf, 1.0
    for number in range(1, _ROUNDS + 1):
        change = max((_solve(own, beyond) for own in scales), default=0.0)
        if change <= _TOLERANCE:
            return
        if number % _PERIOD == 0:
            rate = (change / before) ** (1 / _PERIOD)
            if before < _SMALL and beyond - 1 < rate < 1:
                coupling = (rate + beyond - 1) ** 2 / (rate * beyond**2)
                beyond = min(2 / (1 + math.sqrt(1 - coupling)), _FARTHEST)
            before = change


def _roots(scales: Mapping[str, _Scales]) -> dict[str, Tensor]:
    return {name: found.squares.sqrt() for name, found in scales.items()}


def _row_scales(scale: NormScale, spec: PermutationSpec, state: StateDict) -> _Scales:
    """Return the scales of rows, with what keeps s² (variance + eps) - eps from being negative."""
    variance = spec.tensor_of(scale.variance, state).cpu() + scale.eps
    floor = torch.where(variance > 0, scale.eps / variance, 0.0)
    return _Scales(torch.ones_like(variance), floor)


def _add_block(
    block: Block,
    entries: Tensor,
    spec: PermutationSpec,
    groups: Mapping[str, _Scales],
    rows: _Scales | None,
) -> None:
    """Sum a block over the axes without scales and tell the scales of it."""
    places = list(_group_places(block, spec, groups))
    if rows is not None:
        first = block.pieces[0]
        places.append(_Place(rows, 1, tuple(range(len(first.factors))), first.strides, first.start))
    kept = sorted({dim for place in places for dim in place.dims})
    summed = [dim for dim in range(len(block.factors)) if dim not in kept]
    values = block.unfold(entries)
    values = values.sum(summed) if summed else values.clone()
    places = [replace(place, dims=tuple(map(kept.index, place.dims))) for place in places]
    for a, b in itertools.combinations(places, 2):
        if a.scales is b.scales:
            a.scales.is_coupled = True
            if a.power != b.power:
                # Of one unit both sides: its scale is not seen.
                values.diagonal(dim1=a.dims[-1], dim2=b.dims[-1]).zero_()
    squares = _Squares(values, tuple(places))
    for place in places:
        place.scales.places.append((squares, place))


def _group_places(
    block: Block, spec: PermutationSpec, groups: Mapping[str, _Scales]
) -> Iterator[_Place]:
    for dim, factor in block.units.items():
        if factor.power and factor.group in groups:
            parent = spec.groups[factor.group].parent
            dims = (dim,) if parent is None else (*block.numbers_of(parent), dim)
            yield _Place(groups[factor.group], factor.power, dims, (factor.size, 1)[-len(dims) :])


def _solve(scales: _Scales, beyond: float) -> float:
    """Balance the units of one group with the others fixed.

    Returns:
        The largest change of log s² before over-relaxation.
    """
    made, read = torch.zeros_like(scales.squares), torch.zeros_like(scales.squares)
    for squares, place in scales.places:
        sums = squares.sums(place)
        place.part(made if place.power > 0 else read, sums.shape).add_(sums)
    if scales.floor is None:
        step = (read / made).sqrt()
        moves = (made > 0) & (read > 0)
    else:
        step = torch.maximum(1 / made, scales.floor / scales.squares)
        moves = made > 0
    if scales.is_coupled:
        # Half of the way never goes too far where an entry has two scales of the group.
        step = step.sqrt()
    step = torch.where(moves & step.isfinite() & (step > 0), step, 1.0)
    scales.squares *= step**beyond
    if scales.floor is not None:
        scales.squares = torch.maximum(scales.squares, scales.floor)
    return float(step.log().abs().max()) if len(step) else 0.0
