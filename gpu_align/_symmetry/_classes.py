"""Axis classes: union-find over axes, where a class may be refined into a product or concatenation.

Every axis of every tensor in a traced graph is an `AxisClass`. Ops *unify* axes that must be
reordered together, *refine* an axis into parts (a flatten makes a product, group normalisation a
concatenation) and *pin* axes whose order matters. What is neither refined nor pinned at the end is
a group of interchangeable units. This is first-order unification; it only ever removes symmetries.
"""

import math
from collections.abc import Iterator, Sequence
from enum import Enum

from gpu_align._symmetry._axis import Axis, Factor, Segment


class Structure(Enum):
    """How the parts of a refined axis are laid out."""

    PRODUCT = "product"
    CONCAT = "concat"


class AxisClass:
    """A set of axes that are reordered together.

    Attributes:
        size: number of places.
        pinned: why the order is fixed, or None.
        structure, parts: the refinement, if there is one; then `pinned` is kept by the parts.
    """

    def __init__(self, size: int, pinned: str | None = None) -> None:
        self.size = size
        self.pinned = pinned if size else "has no places"
        self.structure: Structure | None = None
        self.parts: tuple[AxisClass, ...] = ()
        self._parent: AxisClass | None = None

    def find(self) -> "AxisClass":
        """Return the representative of the class."""
        root = self
        while root._parent is not None:
            root = root._parent
        while self._parent is not None:
            self._parent, self = root, self._parent
        return root

    def leaves(self) -> Iterator["AxisClass"]:
        """Yield the unrefined classes that the axis is made of, in order."""
        root = self.find()
        if root.structure is None:
            yield root
        for part in root.parts:
            yield from part.leaves()

    def factors(self) -> list["AxisClass"]:
        """Return the classes whose product the axis is, slowest first; itself if it is none."""
        return _flat_parts(self, Structure.PRODUCT)

    def pin(self, reason: str) -> None:
        """Fix the order of every part."""
        for leaf in self.leaves():
            leaf.pinned = leaf.pinned or reason

    def refine(self, structure: Structure, parts: Sequence["AxisClass"], reason: str) -> None:
        """Say that the axis is made of `parts`; what is known already is unified with them."""
        self.unify(_composite(structure, parts), reason)

    def unify(self, other: "AxisClass", reason: str) -> None:
        """Make the two axes one class; `reason` is what pins them if they do not fit together."""
        a, b = self.find(), other.find()
        if a is b:
            return
        if a.size != b.size:
            a.pin(reason)
            b.pin(reason)
        elif a.structure is None:
            a._merge_into(b)
        elif b.structure is None:
            b._merge_into(a)
        elif a.structure is not b.structure or not _unify_parts(a, b, reason):
            a.pin(reason)
            b.pin(reason)

    def _merge_into(self, root: "AxisClass") -> None:
        self._parent = root
        if self.pinned is not None:
            root.pin(self.pinned)


def product(parts: Sequence[AxisClass]) -> AxisClass:
    """Return the axis whose places are all combinations of those of `parts`, slowest first."""
    return _composite(Structure.PRODUCT, parts)


def concat(parts: Sequence[AxisClass]) -> AxisClass:
    """Return the axis that has the places of `parts` one after another."""
    return _composite(Structure.CONCAT, parts)


def _composite(structure: Structure, parts: Sequence[AxisClass]) -> AxisClass:
    trivial = 1 if structure is Structure.PRODUCT else 0
    parts = [part for part in parts if part.size != trivial]
    if len(parts) == 1:
        return parts[0]
    axis = AxisClass(_measure(structure, parts))
    if parts:
        axis.structure, axis.parts = structure, tuple(parts)
    return axis


def _measure(structure: Structure, parts: Sequence[AxisClass]) -> int:
    sizes = [part.size for part in parts]
    return math.prod(sizes) if structure is Structure.PRODUCT else sum(sizes)


def _flat_parts(axis: AxisClass, structure: Structure) -> list[AxisClass]:
    root = axis.find()
    if root.structure is not structure:
        return [root]
    return [flat for part in root.parts for flat in _flat_parts(part, structure)]


def _unify_parts(a: AxisClass, b: AxisClass, reason: str) -> bool:
    """Unify two refined axes of the same structure; False if their parts do not line up."""
    structure = a.structure
    assert structure is not None
    blocks = line_up(_flat_parts(a, structure), _flat_parts(b, structure), structure)
    if blocks is None:
        return False
    for left, right in blocks:
        if len(left) == len(right) == 1:
            left[0].unify(right[0], reason)
        elif len(left) == 1:
            left[0].refine(structure, right, reason)
        else:
            right[0].refine(structure, left, reason)
    assert a.find() is a
    assert b.find() is b
    a._parent = b
    return True


def line_up(
    left: list[AxisClass], right: list[AxisClass], structure: Structure
) -> list[tuple[list[AxisClass], list[AxisClass]]] | None:
    """Cut two lists of parts into blocks of equal extent, one part against one or more.

    Returns:
        The blocks, or None where a part of one side straddles parts of the other.
    """
    blocks = []
    left, right = list(left), list(right)
    while left and right:
        x, y = [left.pop(0)], [right.pop(0)]
        while _measure(structure, x) != _measure(structure, y):
            short, rest = (
                (x, left) if _measure(structure, x) < _measure(structure, y) else (y, right)
            )
            if not rest:
                return None
            short.append(rest.pop(0))
        if min(len(x), len(y)) > 1:
            return None
        blocks.append((x, y))
    return None if left or right else blocks


def layout(axis: AxisClass, names: dict[AxisClass, str]) -> Axis:
    """Return the Axis of a class, where `names` gives the group of each free leaf."""
    return Axis(tuple(_merge_fixed(segment) for segment in _segments(axis, names)))


def pin_inexpressible(axis: AxisClass) -> None:
    """Pin what would be repeated around a concatenation: no sequence of products has it."""
    root = axis.find()
    for part in root.parts:
        pin_inexpressible(part)
    if root.structure is Structure.PRODUCT:
        flat = _flat_parts(root, Structure.PRODUCT)
        repeated = [n for n, part in enumerate(flat) if part.find().structure is Structure.CONCAT]
        for part in flat[: repeated[-1]] if repeated else []:
            part.pin("repeated around a concatenation")


def _segments(axis: AxisClass, names: dict[AxisClass, str]) -> list[Segment]:
    root = axis.find()
    if root.structure is None:
        return [(Factor(root.size, names.get(root)),)]
    if root.structure is Structure.CONCAT:
        return [segment for part in root.parts for segment in _segments(part, names)]
    tail: list[Segment] = [()]
    for part in reversed(_flat_parts(root, Structure.PRODUCT)):
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
