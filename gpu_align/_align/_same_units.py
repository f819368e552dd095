"""Matrices of pairs of units, from the groups of one spec to those of another one."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gpu_align._network import innermost, lineage, rows_of
from gpu_align._symmetry import PermutationSpec, TensorSpec

Match = tuple[str, Tensor, Tensor]
"""Group of the other spec, and for each unit its unit there and its place inside that; -1: none."""


def find_matches(own: PermutationSpec, group: str, other: PermutationSpec) -> list[Match]:
    """Return the groups of another spec that lie where the units of a group do.

    The specs may differ: a coarser one knows one group for several, or heads but not the
    dimensions inside them.

    Args:
        own: the spec of the group.
        group: its name.
        other: of the same tensors; those with other names or shapes are not looked at.
    """
    groups = lineage(own, group)
    for name, tensor in own.tensors.items():
        theirs = other.tensors.get(name)
        if theirs is None or theirs.shape != tensor.shape:
            continue
        axes = [n for n, axis in enumerate(tensor.axes) if not set(groups).isdisjoint(axis.groups)]
        places = next((rows[:, 0] for g, rows in _rows(own, tensor, axes) if g == group), None)
        if places is None:
            continue
        matches = [_match(places, *found) for found in _rows(other, theirs, axes)]
        matches = [match for match in matches if bool((match[1] >= 0).any())]
        if matches:
            return matches
    return []


def moved_to(matrix: Tensor, match: Match, size: int) -> Tensor:
    """Return a matrix of pairs of units as one of pairs of the other group's units.

    A pair of these is worth what the pairs at equal places inside them are worth together.

    Args:
        matrix: [n, n].
        match: of the n units.
        size: number of the other group's units.
    """
    _, units, inside = match
    total = matrix.new_zeros(size, size)
    for place in inside[units >= 0].unique().tolist():
        chosen = ((units >= 0) & (inside == place)).nonzero()[:, 0].to(matrix.device)
        at = units.to(matrix.device)[chosen]
        total[at[:, None], at] += matrix[chosen[:, None], chosen]
    return total


def _rows(
    spec: PermutationSpec, tensor: TensorSpec, axes: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the groups on some axes of a tensor, and the places of each unit, int64 [n, k]."""
    part = TensorSpec(tuple(tensor.axes[number] for number in axes))
    places = torch.arange(math.prod(part.shape), device="cpu").reshape(part.shape)
    for block in part.blocks:
        factor = innermost(spec, block)
        if factor is not None:
            yield factor.group, rows_of(places, block, lineage(spec, factor.group))


def _match(places: Tensor, group: str, rows: Tensor) -> Match:
    """Find places among those of a group's units, [n, k]."""
    count = int(max(places.max(), rows.max())) + 1
    units, inside = torch.full((2, count), -1, device="cpu")
    units[rows] = torch.arange(len(rows), device="cpu")[:, None].expand_as(rows)
    inside[rows] = torch.arange(rows.shape[1], device="cpu").expand_as(rows)
    return group, units[places], inside[places]


def converted(
    matrices: Mapping[str, Tensor], own: PermutationSpec, other: PermutationSpec
) -> dict[str, Tensor]:
    """Return the matrices of the groups of one spec as those of another one, added up."""
    found: dict[str, Tensor] = {}
    for group, matrix in matrices.items():
        for match in find_matches(own, group, other):
            moved = moved_to(matrix, match, other.units(match[0]))
            found[match[0]] = found[match[0]] + moved if match[0] in found else moved
    return found
