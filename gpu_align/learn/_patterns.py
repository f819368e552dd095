"""Bases of equivariant maps between cells, by partitions of axes into classes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from gpu_align._symmetry import PermutationSpec
from gpu_align.learn._cells import CellAxis
from gpu_align.learn._space import WeightSpace, space_of

Axes = tuple[CellAxis, ...]


@dataclass(frozen=True)
class Link:
    """One basis map from an input cell to an output cell.

    It takes the diagonal of the input over equal axes, the mean over the classes that the output
    does not have, repeats this over the classes that the input does not have, and writes it on
    the diagonal of equal output axes.

    Attributes:
        outer: the class of each output axis, numbered as they occur.
        inner: the class of each input axis, numbered as they occur.
        linked: (outer, inner) numbers of the classes that both have, in the order of the output.
    """

    outer: tuple[int, ...]
    inner: tuple[int, ...]
    linked: tuple[tuple[int, int], ...]


@lru_cache(maxsize=2**16)
def links(outer: Axes, inner: Axes) -> tuple[Link, ...]:
    """Return a basis of the maps between two cells that commute with all symmetries.

    They are the partitions of the axes of both cells into classes such that
    - the axes of a class have the same units, and units have no more classes than there are units;
    - axes inside a parent share a class only where those of the parent do, and there are no more
      classes inside each of the parent's than units inside a unit;
    - the axes of a class along which entries change their signs are even in number.

    Each is, up to a factor, the sum of the indicators of those orbits of pairs of entries in which
    at least these axes agree. So the maps are as many as orbits, and independent (Hartford et al.,
    ICML 2018; Maron et al., ICLR 2019; for weights Navon et al., ICML 2023).
    """
    axes = (*outer, *inner)
    start = len(outer)
    parents = {
        number: axis.parent + (start if number >= start else 0)
        for number, axis in enumerate(axes)
        if axis.parent is not None
    }
    of_key: dict[tuple[bool, object], list[int]] = {}
    for number, axis in enumerate(axes):
        of_key.setdefault((number in parents, axis.key), []).append(number)
    labels: list[dict[int, int]] = [{}]
    for (is_inside, _), members in sorted(of_key.items(), key=lambda item: item[0][0]):
        grown = []
        for label in labels:
            classes = [label[parents[m]] if is_inside else 0 for m in members]
            grown += [{**label, **own} for own in _classes(members, axes, classes)]
        labels = grown
    return tuple(_link([label[n] for n in range(len(axes))], start) for label in labels)


def _classes(members: Sequence[int], axes: Axes, parents: Sequence[int]) -> list[dict[int, int]]:
    """Return the ways to label axes with the same units: axis -> the first axis of its class.

    Args:
        members: the axes.
        axes: all axes.
        parents: the class of each axis's parent; one number for all if they have none.
    """
    by_parent: dict[int, list[int]] = {}
    for member, parent in zip(members, parents, strict=True):
        by_parent.setdefault(parent, []).append(member)
    ways = []
    for some in by_parent.values():
        most = axes[some[0]].size
        ways.append(
            [
                {number: part[0] for part in parts for number in part}
                for parts in _partitions(some, most)
                if all(sum(axes[number].odd for number in part) % 2 == 0 for part in parts)
            ]
        )
    return [
        {number: first for own in chosen for number, first in own.items()}
        for chosen in itertools.product(*ways)
    ]


def _partitions(items: Sequence[int], most: int) -> list[list[list[int]]]:
    """Return the partitions of items into at most so many parts, each in the order of the items."""
    found: list[list[list[int]]] = [[]]
    for item in items:
        grown = []
        for parts in found:
            for number in range(len(parts)):
                grown.append([*parts[:number], [*parts[number], item], *parts[number + 1 :]])
            if len(parts) < most:
                grown.append([*parts, [item]])
        found = grown
    return found


def _link(labels: list[int], start: int) -> Link:
    """Return a partition as a map; the label of an axis is the first axis of its class."""
    outer, inner = list(dict.fromkeys(labels[:start])), list(dict.fromkeys(labels[start:]))
    return Link(
        tuple(outer.index(label) for label in labels[:start]),
        tuple(inner.index(label) for label in labels[start:]),
        tuple((n, inner.index(label)) for n, label in enumerate(outer) if label in inner),
    )


def dimension(spec: PermutationSpec | WeightSpace) -> tuple[int, int]:
    """Return how many independent equivariant maps there are on the weights of a spec.

    Args:
        spec: of the networks, or their space.

    Returns:
        The dimensions of the linear maps from weights to weights that commute with all symmetries,
        and of the weights that no symmetry changes (the affine term). An `EquivariantLinear` of
        one channel has as many weights and biases.
    """
    cells = space_of(spec).cells
    maps = sum(
        outer.fixed * inner.fixed * len(links(outer.axes, inner.axes))
        for outer, inner in itertools.product(cells, cells)
    )
    return maps, sum(cell.fixed * len(links(cell.axes, ())) for cell in cells)
