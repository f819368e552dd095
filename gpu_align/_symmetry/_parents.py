"""Parents: units that may be reordered inside each unit of another group in its own way.

Let a tensor have the units D inside each unit of H: the dimensions of attention heads. Reorder the
units D of one unit of H only. An op that works on a tensor with these axes commutes with that if it
is clear everywhere which unit of H the units D are in: H is on an axis of the same tensor, and on
no other axis of it. So H may be the parent of D if, in every block (one segment of each axis) of
every tensor in which D occurs, H occurs exactly once.

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
"""The free leaves on all axes of one block of a tensor, with repetition."""


def find_parents(
    tensors: Iterable[TensorAxes], leaves: Sequence[AxisClass]
) -> dict[AxisClass, AxisClass]:
    """Return the parent of each leaf that is given one.

    Args:
        tensors: all that ops work on.
        leaves: the free leaves, in the order of their groups.
    """
    candidates = _candidates(_distinct_blocks(tensors), leaves)
    return {
        leaf: parent
        for component in _components(candidates)
        for leaf, parent in _choose(component).items()
    }


def _distinct_blocks(tensors: Iterable[TensorAxes]) -> set[Leaves]:
    """Return the blocks of all tensors, each once, leaves in a fixed order."""
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
                known[root] = _segments_of(root)
        for chosen in itertools.product(*(known[root] for root in roots)):
            found.add(tuple(sorted(itertools.chain.from_iterable(chosen), key=id)))
    return found


def _segments_of(axis: AxisClass) -> tuple[Leaves, ...]:
    """Return the free leaves of each segment of an axis, segments that have the same ones once."""
    root = axis.find()
    if root.structure is None:
        return ((root,) if root.is_free else (),)
    parts = [_segments_of(part) for part in root.parts]
    if root.structure is Structure.CONCAT:
        return tuple(dict.fromkeys(itertools.chain.from_iterable(parts)))
    products = itertools.product(*parts)
    return tuple(dict.fromkeys(tuple(itertools.chain.from_iterable(chosen)) for chosen in products))


def _candidates(
    blocks: Iterable[Leaves], leaves: Sequence[AxisClass]
) -> dict[AxisClass, list[AxisClass]]:
    """Return for each leaf those that occur exactly once in every block in which it occurs."""
    possible: dict[AxisClass, set[AxisClass]] = {}
    for block in blocks:
        once = {leaf for leaf in block if block.count(leaf) == 1}
        for leaf in block:
            others = once - {leaf}
            possible[leaf] = possible[leaf] & others if leaf in possible else others
    return {leaf: [other for other in leaves if other in possible[leaf]] for leaf in leaves}


def _choose(candidates: Mapping[AxisClass, list[AxisClass]]) -> dict[AxisClass, AxisClass]:
    """Choose parents that have none themselves, one by one those that bring most symmetries."""
    parents: list[AxisClass] = []
    best = 0.0
    possible = [
        leaf for leaf in candidates if any(leaf in others for others in candidates.values())
    ]
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
            if lots[leaf] is not lots[other]:
                joined = lots[leaf] + lots[other]
                lots |= dict.fromkeys(joined, joined)
    order = {leaf: number for number, leaf in enumerate(candidates)}
    for lot in {id(lot): lot for lot in lots.values()}.values():
        yield {leaf: candidates[leaf] for leaf in sorted(lot, key=order.__getitem__)}


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
