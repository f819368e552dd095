"""Axis classes: union-find over axes, where a class may be refined into a product or concatenation.

Every axis of every tensor in a traced graph is an `AxisClass`. Ops *unify* axes that must be
reordered together, *refine* an axis into parts (a flatten makes a product, a split a concatenation)
and *pin* axes whose order matters. What is neither refined nor pinned at the end is a group of
interchangeable units. This is first-order unification; it only ever removes symmetries.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum


class Structure(Enum):
    """How the parts of a refined axis are laid out."""

    PRODUCT = "product"
    CONCAT = "concat"


class AxisClass:
    """A set of axes that are reordered together.

    Attributes:
        size: number of places.
        pinned: why the order is fixed, or None.
        mixed: whether an op that fixes the order may have exchanged or mixed places: axes of the
            class then need not have the same place at the same number.
        structure, parts: the refinement, if there is one; then `pinned` is kept by the parts.
    """

    def __init__(self, size: int, pinned: str | None = None) -> None:
        self.size = size
        self.pinned = pinned if size else "has no places"
        self.mixed = False
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

    def flat_parts(self, structure: Structure) -> list["AxisClass"]:
        """Return the classes that the axis is a product or concatenation of; itself if of none."""
        root = self.find()
        if root.structure is not structure:
            return [root]
        return [flat for part in root.parts for flat in part.flat_parts(structure)]

    @property
    def is_fixed(self) -> bool:
        """Whether no part of the axis can be reordered."""
        return all(leaf.pinned is not None or leaf.size < 2 for leaf in self.leaves())

    @property
    def is_free(self) -> bool:
        """Whether the axis is one group of at least two interchangeable units."""
        root = self.find()
        return root.structure is None and root.pinned is None and root.size > 1

    def pin(self, reason: str, *, mixed: bool = False) -> None:
        """Fix the order of every part; `mixed` says that an op may have mixed its places."""
        for leaf in self.leaves():
            leaf.pinned = leaf.pinned or reason
            leaf.mixed = leaf.mixed or mixed

    def refine(self, structure: Structure, parts: Sequence["AxisClass"], reason: str) -> None:
        """Say that the axis is made of `parts`; what is known already is unified with them."""
        self.unify(_composite(structure, parts), reason)

    def unify(self, other: "AxisClass", reason: str) -> None:
        """Make the two axes one class; `reason` is what pins them if they do not fit together."""
        a, b = self.find(), other.find()
        if a is b:
            return
        if a.size == b.size and (a.structure is None or b.structure is None):
            (a, b) = (a, b) if a.structure is None else (b, a)
        elif a.size != b.size or not _unify_parts(a, b, reason):
            a.pin(reason)
            b.pin(reason)
            return
        elif a.structure is Structure.PRODUCT:
            (a, b) = (b, a)
        a._parent = b
        for leaf in b.leaves():
            leaf.pinned = leaf.pinned or a.pinned
            leaf.mixed = leaf.mixed or a.mixed


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
    axis = AxisClass(_measure(structure, [part.size for part in parts]))
    if axis.size > 1:
        axis.structure, axis.parts = structure, tuple(parts)
    return axis


def _measure(structure: Structure, sizes: Sequence[int]) -> int:
    return math.prod(sizes) if structure is Structure.PRODUCT else sum(sizes)


def _unify_parts(a: AxisClass, b: AxisClass, reason: str) -> bool:
    """Unify two refined axes; False if their parts do not line up."""
    if a.structure is not b.structure:
        joined, repeated = (a, b) if a.structure is Structure.CONCAT else (b, a)
        return _distribute(joined, repeated, reason)
    assert a.structure is not None
    own, parts = a.flat_parts(a.structure), b.flat_parts(a.structure)
    sizes = [part.size for part in parts]
    whole = recut(own, sizes, a.structure, reason)
    cut: Sequence[list[AxisClass] | None] = (
        recut_stretches(own, sizes, reason) if whole is None else whole
    )
    for part, pieces in zip(parts, cut, strict=True):
        if pieces is None:
            part.pin(reason)
        else:
            part.refine(a.structure, pieces, reason)
    return True


def _distribute(joined: AxisClass, repeated: AxisClass, reason: str) -> bool:
    """Unify a concatenation with a product: each part is a product of its own.

    The product of m and n is m times n places; parts of a n, b n, ... places are the products of
    a and n, b and n, ..., where m is the concatenation of a, b, ...
    """
    parts = joined.flat_parts(Structure.CONCAT)
    factors = repeated.flat_parts(Structure.PRODUCT)
    for number in range(1, len(factors)):
        outer, inner = factors[:number], product(factors[number:])
        if all(part.size % inner.size == 0 for part in parts):
            counts = [AxisClass(part.size // inner.size) for part in parts]
            if all(count.size == 1 for count in counts):
                product(outer).pin(reason)
            else:
                product(outer).refine(Structure.CONCAT, counts, reason)
            for part, count in zip(parts, counts, strict=True):
                part.refine(Structure.PRODUCT, [count, inner], reason)
            return True
    return False


Split = Callable[[AxisClass, list[int]], list[AxisClass]]


def recut(
    parts: Sequence[AxisClass],
    sizes: Sequence[int],
    structure: Structure,
    reason: str,
    split: Split | None = None,
) -> list[list[AxisClass]] | None:
    """Cut parts where parts of other sizes begin.

    Args:
        parts: of a product or concatenation, none of them trivial.
        sizes: of the other parts, none of them trivial.
        structure: whether it is a product or a concatenation.
        reason: what pins a part that cannot be cut.
        split: cuts one part into parts of the given sizes; the default refines it.

    Returns:
        For each of `sizes` the pieces that it is made of; None if extents differ or do not divide.
    """

    def refined(part: AxisClass, extents: list[int]) -> list[AxisClass]:
        fresh = [AxisClass(extent) for extent in extents]
        part.refine(structure, fresh, reason)
        return fresh

    ends = _ends(structure, [part.size for part in parts])
    wanted = _ends(structure, sizes)
    cuts = sorted({*ends, *wanted})
    is_product = structure is Structure.PRODUCT
    if ends[-1] != wanted[-1] or (is_product and any(b % a for a, b in itertools.pairwise(cuts))):
        return None
    pieces: list[AxisClass] = []
    for part, extents in zip(parts, _extents_between(structure, ends, cuts), strict=True):
        pieces += [part] if len(extents) == 1 else (split or refined)(part, extents)
    rest = iter(pieces)
    return [
        list(itertools.islice(rest, len(extents)))
        for extents in _extents_between(structure, wanted, cuts)
    ]


def recut_stretches(
    parts: Sequence[AxisClass], sizes: Sequence[int], reason: str, split: Split | None = None
) -> list[list[AxisClass] | None]:
    """Cut the parts of a product that cannot be cut as a whole, stretch by stretch.

    Stretches lie between the cut points that are those of both sides. In each, parts whose order is
    fixed anyway are merged with their neighbours if that helps; else its parts are pinned.

    Args:
        parts, sizes, reason, split: see `recut`; the products of both are the same.

    Returns:
        For each of `sizes` the pieces that it is made of, or None if it cannot be told.
    """
    structure = Structure.PRODUCT
    ends, wanted = _ends(structure, [part.size for part in parts]), _ends(structure, sizes)
    common = sorted(set(ends) & set(wanted))
    found: list[list[AxisClass] | None] = []
    for start, end in itertools.pairwise(common):
        own = parts[ends.index(start) : ends.index(end)]
        extents = sizes[wanted.index(start) : wanted.index(end)]
        cut = recut(own, extents, structure, reason, split)
        if cut is None:
            cut = recut(_merged(own, reason), extents, structure, reason, split)
        if cut is None:
            for part in own:
                part.pin(reason, mixed=True)
        found += [None] * len(extents) if cut is None else cut
    return found


def _merged(parts: Iterable[AxisClass], reason: str) -> list[AxisClass]:
    """Return the parts of a product with neighbours merged whose order is fixed."""
    merged: list[AxisClass] = []
    for is_fixed, run in itertools.groupby(parts, key=lambda part: part.is_fixed):
        own = list(run)
        if is_fixed and len(own) > 1:
            own = [AxisClass(math.prod(part.size for part in own), reason)]
        merged += own
    return merged


def _extents_between(
    structure: Structure, ends: Sequence[int], cuts: Sequence[int]
) -> Iterator[list[int]]:
    """Yield for each part the extents of the pieces into which it is cut."""
    for start, end in itertools.pairwise(ends):
        inside = itertools.pairwise(cut for cut in cuts if start <= cut <= end)
        yield [b // a if structure is Structure.PRODUCT else b - a for a, b in inside]


def _ends(structure: Structure, sizes: Sequence[int]) -> list[int]:
    """Return where parts of these sizes begin and end, the beginning of the first included."""
    return [_measure(structure, sizes[:number]) for number in range(len(sizes) + 1)]
