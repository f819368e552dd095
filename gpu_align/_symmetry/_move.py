"""Moving the units of tensors, and multiplying their entries by signs or scales."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpu_align._symmetry._axis import Units
from gpu_align._symmetry._parts import Group
from gpu_align._symmetry._tensor_spec import Block, TensorSpec

Groups = Mapping[str, Group]


def move(tensors: Tensor, spec: TensorSpec, groups: Groups, perms: Mapping[str, Tensor]) -> Tensor:
    """Return a stack of tensors with the units of its groups reordered.

    Args:
        tensors: [m, *shape], each as `spec` describes it.
        spec: the axes of one of them.
        groups: of the PermutationSpec.
        perms: group -> int64 [m, units], `perm[i] = j` puts unit j at place i; units of a group
            with a parent are numbered (unit of the parent, unit inside it).

    Returns:
        A new stack, or the same one if no group lies on it.
    """
    if not spec.groups:
        return tensors
    moved = torch.empty_like(tensors, memory_format=torch.contiguous_format)
    for block in spec.blocks:
        part = block.unfold(tensors)
        # Units of a parent go first and take with them what is inside.
        units = sorted(
            block.units.items(), key=lambda item: groups[item[1].group].parent is not None
        )
        for number, factor in units:
            part = _reorder(part, block, number, factor, groups, perms)
        block.unfold(moved).copy_(part)
    return moved


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape as [m, *shape], on the device of the first; m >= 1.

    The dtype is theirs, or float64 where they differ; a stack of one is a view.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first[None]
    if len({tensor.dtype for tensor in tensors}) > 1:
        tensors = [tensor.to(torch.float64) for tensor in tensors]
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.to(first.device) for tensor in tensors]
    if first.numel() == 0 or first.ndim == 0:
        return torch.stack(list(tensors))
    # `torch.stack` makes a view of each first.
    return torch.cat(list(tensors)).reshape(len(tensors), *first.shape)


def _reorder(
    part: Tensor,
    block: Block,
    number: int,
    factor: Units,
    groups: Groups,
    perms: Mapping[str, Tensor],
) -> Tensor:
    """Reorder one axis of unfolded blocks [m, ...] whose parents have been reordered already."""
    perm, parent = perms[factor.group].to(part.device), groups[factor.group].parent
    if parent is None:
        return _take(part, number + 1, perm)
    size = factor.size
    inside = perm % size + torch.arange(perm.shape[1], device=part.device) // size * size
    (place,) = block.numbers_of(parent)
    leading = part.movedim((place + 1, number + 1), (1, 2))
    flat = _take(leading.flatten(1, 2), 1, inside)
    return flat.reshape(leading.shape).movedim((1, 2), (place + 1, number + 1))


def _take(tensors: Tensor, axis: int, index: Tensor) -> Tensor:
    """Select along one axis, in each of m tensors in its own way: index int64 [m, k]."""
    if len(tensors) == 1:
        # Along the last axis torch's index_select takes twenty times as long.
        return tensors[(slice(None),) * axis + (index[0],)]
    leading = tensors.movedim(axis, 1)
    first = torch.arange(len(tensors), device=index.device) * leading.shape[1]
    rows = leading.flatten(0, 1).index_select(0, (first[:, None] + index).flatten())
    return rows.reshape(leading.shape).movedim(1, axis)


def multiply(
    tensors: Tensor, spec: TensorSpec, groups: Groups, multipliers: Mapping[str, Tensor]
) -> Tensor:
    """Return a stack of tensors with the entries of each unit multiplied by its factor's power.

    Args:
        tensors: [m, *shape], floating point; computed in float64 and rounded once to their dtype.
        spec: the axes of one of them.
        groups: of the PermutationSpec.
        multipliers: group -> [m, units], signs or positive scales; groups left out are not scaled.

    Returns:
        A new stack, or the same one if no factor has a power of these groups.
    """
    seen = {f.group for block in spec.blocks for f in block.units.values() if f.power}
    if seen.isdisjoint(multipliers):
        return tensors
    wide = tensors.to(
        _product_dtype(tensors, multipliers), memory_format=torch.contiguous_format, copy=True
    )
    for block in spec.blocks:
        for number, factor in block.units.items():
            if factor.group in multipliers and factor.power:
                units = multipliers[factor.group].to(wide) ** factor.power
                block.unfold(wide).mul_(_spread(units, block, number, groups))
    return wide.to(tensors.dtype)


def _product_dtype(tensors: Tensor, multipliers: Mapping[str, Tensor]) -> torch.dtype:
    """Return float64, or the tensors' own dtype where it can be multiplied and signs are all."""
    scales = any(vector.is_floating_point() for vector in multipliers.values())
    exact = tensors.is_floating_point() and tensors.element_size() > 1 and not scales
    return tensors.dtype if exact else torch.float64


def one_of_each(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return vectors as a batch of one, name -> [1, units]."""
    return {name: vector[None] for name, vector in vectors.items()}


def _spread(units: Tensor, block: Block, number: int, groups: Groups) -> Tensor:
    """Return vectors of units, [m, units], in the shape in which they meet unfolded blocks."""
    factor = block.units[number]
    parent = groups[factor.group].parent
    beside = {number} if parent is None else {number, *block.numbers_of(parent)}
    if parent is not None and min(beside) == number:  # the parent stands behind
        units = units.reshape(len(units), -1, factor.size).transpose(1, 2)
    shape = [factor.size if n in beside else 1 for n, factor in enumerate(block.factors)]
    return units.reshape(len(units), *shape)
