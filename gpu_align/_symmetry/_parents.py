"""Parents: units that may be reordered inside each unit of another group in its own way.

Let a tensor have the units D inside each unit of H: the dimensions of attention heads. Reorder the
units D of one unit of H only. An op that works on a tensor with these axes commutes with that if it
is clear everywhere which unit of H the units D are in: H is on an axis of the same tensor, and on
no other axis of it. So H may be the parent of D if, in every block (one segment of each axis) of
every tensor in which D occurs, H occurs exactly once.

The units of H need not be free for that. Where their order is fixed (heads with a slope each,
experts that the outputs name), they are a parent that stays where it is.

"Every tensor" includes those that ops only pass through: the index space of a contraction (of
q k^T it has both positions and the dimensions), the statistics of a normalisation (of a softmax
over heads they have no head). Rules name them with `Call.visit`.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gpu_align._symmetry._classes import AxisClass, Structure
from gpu_align._symmetry._splits import TensorAxes

Leaves = tuple[AxisClass, ...]
"""The leaves on all axes of one block of a tensor that count, with repetition."""


def find_parents(
    stored: Sequence[TensorAxes], computed: Iterable[TensorAxes], leaves: Sequence[AxisClass]
) -> dict[AxisClass, AxisClass]:
    """Return the parent of each leaf that is given one.

    Args:
        stored: the stored tensors that ops work on.
        computed: the others.
        leaves: the free leaves, in the order of their groups.
    """
    fixed = _fixed_candidates(stored, leaves)
    counted = frozenset((*leaves, *fixed))
    blocks = _distinct_blocks([*stored, *computed], counted)
    candidates = _candidates(blocks, leaves, [*leaves, *fixed])
    return {
        leaf: parent
        for component in _components(candidates)
        for leaf, parent in _choose(component).items()
    }


def _fixed_candidates(stored: Sequence[TensorAxes], leaves: Sequence[AxisClass]) -> list[AxisClass]:
    """Return the fixed leaves that may be parents as far as the stored tensors tell, in order."""
    found = dict.fromkeys(leaf for axes in stored for axis in axes for leaf in axis.leaves())
    fixed = [leaf for leaf in found if leaf.pinned and not leaf.mixed and leaf.size > 1]
    blocks = _distinct_blocks(stored, frozenset((*leaves, *fixed)))
    possible = _candidates(blocks, leaves, fixed)
    return list(dict.fromkeys(itertools.chain.from_iterable(possible.values())))


def _distinct_blocks(tensors: Iterable[TensorAxes], counted: frozenset[AxisClass]) -> set[Leaves]:
    """Return the blocks of all tensors, each once, the leaves that count in a fixed order."""
    found: set[Leaves] = set()
    known: dict[AxisClass, tuple[Leaves, ...]] = {}
    done: set[Leaves] = set()
    for axes in tensors:
        roots = tuple(sorted((axis.find() for axis in axes), key=id))
        if roots in done:
            continue
        done.add(roots)
        for root in roots:
            if root not in known:
                known[root] = _segments_of(root, counted)
        for chosen in itertools.product(*(known[root] for root in roots)):
            found.add(tuple(sorted(itertools.chain.from_iterable(chosen), key=id)))
    return found


def _segments_of(axis: AxisClass, counted: frozenset[AxisClass]) -> tuple[Leaves, ...]:
    """Return the leaves of each segment of an axis, segments that have the same ones once."""
    root = axis.find()
    if root.structure is None:
        return ((root,) if root in counted else (),)
    parts = [_segments_of(part, counted) for part in root.parts]
    if root.structure is Structure.CONCAT:
        return tuple(dict.fromkeys(itertools.chain.from_iterable(parts)))
    products = itertools.product(*parts)
    return tuple(dict.fromkeys(tuple(itertools.chain.from_iterable(chosen)) for chosen in products))


def _candidates(
    blocks: Iterable[Leaves], leaves: Sequence[AxisClass], others: Sequence[AxisClass]
) -> dict[AxisClass, list[AxisClass]]:
    """Return for each leaf the others that occur exactly once in every block in which it does."""
    possible: dict[AxisClass, set[AxisClass]] = {}
    for block in blocks:
        once = {leaf for leaf in block if block.count(leaf) == 1}
        for leaf in block:
            beside = once - {leaf}
            possible[leaf] = possible[leaf] & beside if leaf in possible else beside
    return {leaf: [other for other in others if other in possible[leaf]] for leaf in leaves}


def _choose(candidates: Mapping[AxisClass, list[AxisClass]]) -> dict[AxisClass, AxisClass]:
    """Choose parents that have none themselves, one by one those that bring most symmetries."""
    parents: list[AxisClass] = []
    best = 0.0
    given = {leaf for others in candidates.values() for leaf in others}
    order = dict.fromkeys((*candidates, *itertools.chain.from_iterable(candidates.values())))
    possible = [leaf for leaf in order if leaf in given]
    while possible:
        gains = [_gain(_assign([*parents, leaf], candidates)) for leaf in possible]
        if max(gains) <= best:
            break
        best = max(gains)
        parents.append(possible.pop(gains.index(best)))
    return _assign(parents, candidates)


def _components(
    candidates: Mapping[AxisClass, list[AxisClass]],
) -> Iterator[dict[AxisClass, list[AxisClass]]]:
    """Yield the leaves that have to do with each other, lot after lot."""
    lots = {leaf: [leaf] for leaf in candidates}
    for leaf, others in candidates.items():
        for other in others:
            lots.setdefault(other, [other])
            if lots[leaf] is not lots[other]:
                joined = lots[leaf] + lots[other]
                lots |= dict.fromkeys(joined, joined)
    order = {leaf: number for number, leaf in enumerate(candidates)}
    for lot in {id(lot): lot for lot in lots.values()}.values():
        free = [leaf for leaf in lot if leaf in order]
        yield {leaf: candidates[leaf] for leaf in sorted(free, key=order.__getitem__)}


def _assign(
    parents: Sequence[AxisClass], candidates: Mapping[AxisClass, list[AxisClass]]
) -> dict[AxisClass, AxisClass]:
    """Give each leaf the largest of `parents` that it can have."""
    assigned = {}
    for leaf, others in candidates.items():
        allowed = [other for other in others if other in parents]
        if allowed and leaf not in parents:
            assigned[leaf] = max(allowed, key=lambda other: other.size)
    return assigned


def _gain(assigned: Mapping[AxisClass, AxisClass]) -> float:
    """Return the logarithm of how many times more symmetries there are than without parents."""
    return sum((parent.size - 1) * math.lgamma(leaf.size + 1) for leaf, parent in assigned.items())
