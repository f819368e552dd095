"""Moving the units of one tensor, and multiplying their entries by signs or scales."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._symmetry._axis import Factor
from gpu_align._symmetry._spec import Group, TensorSpec

Groups = Mapping[str, Group]


def move(tensor: Tensor, spec: TensorSpec, groups: Groups, perms: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor with the units of its groups reordered.

    Args:
        tensor: as `spec` describes it.
        spec: the layout of its axes.
        groups: of the PermutationSpec.
        perms: group -> int64 [units], `perm[i] = j` puts unit j at place i; units of a group with
            a parent are numbered (unit of the parent, unit inside it).

    Returns:
        A new tensor, or the same one if no group lies on it.
    """
    if not spec.groups:
        return tensor
    moved = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for block in spec.blocks():
        part = block.unfold(tensor)
        # Units of a parent go first and take with them what is inside.
        numbers = sorted(
            (n for n, factor in enumerate(block.factors) if factor.group is not None),
            key=lambda n: groups[block.factors[n].group or ""].parent is not None,
        )
        for number in numbers:
            part = _reorder(part, block.factors, number, groups, perms)
        block.view(moved).copy_(part.reshape(block.extents))
    return moved


def _reorder(
    part: Tensor,
    factors: tuple[Factor, ...],
    number: int,
    groups: Groups,
    perms: Mapping[str, Tensor],
) -> Tensor:
    """Reorder one axis of an unfolded block whose parents have been reordered already."""
    name = factors[number].group or ""
    perm, parent = perms[name].to(part.device), groups[name].parent
    if parent is None:
        return part.index_select(number, perm)
    size = groups[name].size
    inside = perm % size + torch.arange(len(perm), device=part.device) // size * size
    place = _place_of(parent, factors)
    leading = part.movedim((place, number), (0, 1))
    flat = leading.reshape(-1, *leading.shape[2:]).index_select(0, inside)
    return flat.reshape(leading.shape).movedim((0, 1), (place, number))


def multiply(
    tensor: Tensor, spec: TensorSpec, groups: Groups, multipliers: Mapping[str, Tensor]
) -> Tensor:
    """Return a tensor with the entries of each unit multiplied by its factor's power.

    Args:
        tensor: floating point; computed in float64 and rounded once to its own dtype.
        spec: the layout of its axes.
        groups: of the PermutationSpec.
        multipliers: group -> [units], signs or positive scales; groups left out are not scaled.

    Returns:
        A new tensor, or the same one if no factor has a power of these groups.
    """
    seen = {f.group for axis in spec.axes for f in axis.factors() if f.power}
    if seen.isdisjoint(multipliers):
        return tensor
    wide = tensor.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
    for block in spec.blocks():
        for number, factor in enumerate(block.factors):
            name = factor.group
            if name is not None and name in multipliers and factor.power:
                units = multipliers[name].to(wide) ** factor.power
                part = block.unfold(wide) * _spread(units, block.factors, number, groups)
                block.view(wide).copy_(part.reshape(block.extents))
    return wide.to(tensor.dtype)


def _spread(units: Tensor, factors: tuple[Factor, ...], number: int, groups: Groups) -> Tensor:
    """Return a vector of units in the shape in which it meets an unfolded block."""
    parent = groups[factors[number].group or ""].parent
    beside = {number} if parent is None else {number, _place_of(parent, factors)}
    if parent is not None and min(beside) == number:  # the parent stands behind
        units = units.reshape(-1, factors[number].size).T
    return units.reshape([factor.size if n in beside else 1 for n, factor in enumerate(factors)])


def _place_of(group: str, factors: tuple[Factor, ...]) -> int:
    return next(n for n, factor in enumerate(factors) if factor.group == group)
