"""From axis classes to the axes of a spec."""

from collections.abc import Iterable, Mapping

from gpu_align._symmetry._axis import Axis, Factor, Segment
from gpu_align._symmetry._classes import AxisClass, Structure

_REPEATED = "repeated around a concatenation"


def layout(axis: AxisClass, names: Mapping[AxisClass, str]) -> Axis:
    """Return the Axis of a class, where `names` gives the group of each free leaf."""
    return Axis(tuple(_merge_fixed(segment) for segment in _segments(axis, names)))


def make_expressible(axes: Iterable[AxisClass]) -> None:
    """Change what a sequence of products cannot say: a concatenation that is repeated.

    Queries, keys and values of each head side by side are such an axis. If the parts are alike
    they are tied, and the axis is a product; else what repeats them is pinned.
    """
    axes = list(axes)
    while any([_make_expressible(axis) for axis in axes]):
        pass


def _make_expressible(axis: AxisClass) -> bool:
    """Return whether classes were tied, which may have changed other axes."""
    root = axis.find()
    tied = any([_make_expressible(part) for part in root.parts])
    factors = root.flat_parts(Structure.PRODUCT)
    for number, factor in reversed(list(enumerate(factors))):
        around = [other for other in factors[:number] if not other.is_fixed]
        parts = factor.flat_parts(Structure.CONCAT)
        if not around or len(parts) == 1 or factor.is_fixed:
            continue
        alike = len({part.size for part in parts}) == 1
        if alike and all(leaf.pinned is None for leaf in factor.leaves()):
            extents = [AxisClass(len(parts), pinned=_REPEATED), AxisClass(parts[0].size)]
            factor.refine(Structure.PRODUCT, extents, _REPEATED)
            return True
        for other in around:
            other.pin(_REPEATED)
    return tied


def _segments(axis: AxisClass, names: Mapping[AxisClass, str]) -> list[Segment]:
    root = axis.find()
    if root.structure is None or root.is_fixed:
        return [(Factor(root.size, names.get(root)),)]
    if root.structure is Structure.CONCAT:
        return [segment for part in root.parts for segment in _segments(part, names)]
    tail: list[Segment] = [()]
    for part in reversed(root.flat_parts(Structure.PRODUCT)):
        if len(tail) > 1:
            tail = tail * part.size
        else:
            tail = [(*segment, *tail[0]) for segment in _segments(part, names)]
    return tail


def _merge_fixed(segment: Segment) -> Segment:
    merged: list[Factor] = []
    for factor in segment:
        if factor.size == 1 and factor.group is None and len(segment) > 1:
            continue
        if merged and factor.group is None and merged[-1].group is None:
            merged[-1] = Factor(merged[-1].size * factor.size)
        else:
            merged.append(factor)
    return tuple(merged) or (Factor(1),)
