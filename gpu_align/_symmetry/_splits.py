"""Splits that are left open: slices of a split axis may or may not belong together.

A view of 3 n units as 3 x n says two different things. Where the three slices are queries, keys and
values, taken apart right after it, each has an order of its own: the axis is a concatenation. Where
they are heads, to which the same is done, they share theirs: the axis is a product. The view looks
the same, so it only makes an `OpenSplit`. Whatever looks at the classes of its axes closes it and
makes the product; only `cut`, which takes slices apart, does not; where the slices lie inside
heads, it makes a concatenation in each of these. Axes may be moved and merged into
products, without that: nobody has looked at a product until it is unified with something.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from gpu_align._symmetry._classes import AxisClass, Structure, concat, product


class TensorAxes(tuple[AxisClass, ...]):
    """The axis classes of one tensor in the graph."""


class OpenAxis(AxisClass):
    """An axis of an open split; to look at its class is to close the split."""

    split: "OpenSplit"

    def find(self) -> AxisClass:
        """Return the representative of the class, with the split closed."""
        self.split.close()
        return super().find()


class OpenSplit:
    """The split of one axis into several, slowest first.

    Attributes:
        source: the class of the axis that was split.
        axes: the axes it was split into; slices lie along any but the last.
        closed: whether the axis is known to be the product of these.
    """

    def __init__(self, source: AxisClass, sizes: Sequence[int], reason: str) -> None:
        self.source = source
        self.axes = tuple(OpenAxis(size) for size in sizes)
        for axis in self.axes:
            axis.split = self
        self.closed = False
        self._reason = reason

    def close(self) -> None:
        """Say that the slices belong together."""
        if not self.closed:
            self.closed = True
            self.source.refine(Structure.PRODUCT, self.axes, self._reason)

    def cut(self, along: AxisClass, sizes: Sequence[int]) -> list[dict[AxisClass, AxisClass]]:
        """Take slices apart: `sizes[0]` of them, then `sizes[1]`, and so on.

        Args:
            along: the axis of the split along which the slices lie; those before it repeat them.
            sizes: numbers of slices.

        Returns:
            For each part, what stands in it for each of the axes of the split.
        """
        number = self.axes.index(along)
        outer = [AxisClass(axis.size) for axis in self.axes[:number]]
        rest = [axis.size for axis in self.axes[number + 1 :]]
        parts = [AxisClass(size * math.prod(rest)) for size in sizes]
        self.source.refine(Structure.PRODUCT, [*outer, concat(parts)], self._reason)
        cut: list[dict[AxisClass, AxisClass]] = []
        for size, part in zip(sizes, parts, strict=True):
            if size == 0:
                pieces = [AxisClass(extent) for extent in (0, *rest)]
            elif size == 1:
                pieces = [AxisClass(1), *split_open(part, rest, self._reason)]
            else:
                pieces = split_open(part, [size, *rest], self._reason)
            cut.append(dict(zip(self.axes, [*outer, *pieces], strict=True)))
        return cut


def split_open(axis: AxisClass, sizes: Sequence[int], reason: str) -> list[AxisClass]:
    """Split an axis into a product and leave it open whether its slices belong together."""
    if len(sizes) == 1:
        return [axis]
    if isinstance(axis, OpenAxis) or axis.find().pinned is not None:
        parts = [AxisClass(size) for size in sizes]
        axis.refine(Structure.PRODUCT, parts, reason)
        return parts
    return list(OpenSplit(axis, sizes, reason).axes)


def open_split(axis: AxisClass) -> OpenSplit | None:
    """Return the split that an axis comes from if that is open."""
    return axis.split if isinstance(axis, OpenAxis) and not axis.split.closed else None


def factors_of(axis: AxisClass) -> list[AxisClass]:
    """Return the factors of an axis, open splits among them left open."""
    if open_split(axis):
        return [axis]
    root = axis.find()
    if root.structure is not Structure.PRODUCT:
        return [root]
    return [factor for part in root.parts for factor in factors_of(part)]


def slices_along(axes: TensorAxes, place: int) -> OpenSplit | None:
    """Return the open split whose slices lie along an axis, if the tensor has all of it."""
    split = open_split(axes[place])
    is_last = split is not None and split.axes[-1] is axes[place]
    return split if split and not is_last and _has_all(axes, split) else None


def unsplit(axes: TensorAxes) -> TensorAxes:
    """Return the axes with open splits undone that stand side by side as they were made."""
    found: list[AxisClass] = []
    rest = list(axes)
    while rest:
        split = open_split(rest[0])
        count = len(split.axes) if split else 1
        undone = split is not None and tuple(rest[:count]) == split.axes
        if split is not None and undone and _has_all(axes, split):
            found.append(split.source)
            del rest[:count]
        else:
            found.append(rest.pop(0))
    return TensorAxes(found)


def settle(tensors: Sequence[TensorAxes]) -> None:
    """Close every split that some tensor has only a part of, or has twice, or has joined."""
    seen = {split for axes in tensors for split in _open_splits(axes)}
    count = -1
    while count != (count := sum(split.closed for split in seen)):
        for axes in tensors:
            for split in _open_splits(axes):
                if not _has_all(axes, split):
                    split.close()
            for axis in axes:
                for factor in factors_of(axis):
                    if open_split(factor) is None:
                        list(factor.leaves())  # closes what is inside


def settled(axes: TensorAxes) -> TensorAxes:
    """Return the axes with what is still open undone: the source, and axes of size 1.

    The slices have been taken apart then: the source is a concatenation, or a product with one.
    """
    for split in _open_splits(axes):
        first, *others = split.axes
        axes = with_parts(axes, {first: split.source, **{axis: AxisClass(1) for axis in others}})
    return axes


def with_parts(axes: TensorAxes, parts: Mapping[AxisClass, AxisClass]) -> TensorAxes:
    """Return the axes with others in place of those of an open split."""
    if parts.keys().isdisjoint(factor for axis in axes for factor in factors_of(axis)):
        return axes
    return TensorAxes(
        product([parts.get(factor, factor) for factor in factors_of(axis)]) for axis in axes
    )


def _open_splits(axes: Iterable[AxisClass]) -> list[OpenSplit]:
    found = (open_split(factor) for axis in axes for factor in factors_of(axis))
    return list(dict.fromkeys(split for split in found if split is not None))


def _has_all(axes: Iterable[AxisClass], split: OpenSplit) -> bool:
    """Whether a tensor has each axis of a split exactly once."""
    own = [factor for axis in axes for factor in factors_of(axis) if factor in split.axes]
    return len(own) == len(split.axes) == len(set(own))
