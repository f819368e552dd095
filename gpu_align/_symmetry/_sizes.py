"""Example inputs of other sizes: a symmetry of the traced shape alone is none of the model.

An axis along which a model takes any number of places (a batch, tokens, pixels) is found by trying.
Axes of equal size change together, as those of tokens and of their mask; the first axis of the
first tensor, and first axes of its size, are taken for the batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Place = tuple[int, int]
"""The number of a tensor among the inputs, and that of its axis."""

Change = Mapping[Place, int]
"""The new sizes of some axes."""

_TRIALS: tuple[tuple[int, Callable[[int], int]], ...] = (
    (1, lambda size: 2 * size),
    (3, lambda size: size // 2),
)
"""Sizes of the batch, and those that the other axes get with it, one lot after another."""


def try_other_sizes(arguments: Any, accepts: Callable[[Any], bool]) -> None:
    """Call `accepts` on inputs of other sizes: it tells whether the model takes them.

    Args:
        arguments: positional and keyword arguments, in any nesting.
        accepts: is called with arguments of the same nesting.
    """
    values, structure = tree_flatten(arguments)
    batch, lots = _places(values)

    def takes(change: Change) -> bool:
        changed = [_resized(value, number, change) for number, value in enumerate(values)]
        return accepts(tree_unflatten(changed, structure))

    for count, scale in _TRIALS:
        for fixed in (dict.fromkeys(batch, count), {}):
            taken = [
                any(takes(fixed | {place: scale(size) for place in places}) for places in choices)
                for size, choices in lots
            ]
            if any(taken) or (fixed and takes(fixed)):
                break


def _places(values: Sequence[Any]) -> tuple[list[Place], list[tuple[int, list[list[Place]]]]]:
    """Return the places of the batch and, for each other size, those that may change together.

    There are several choices where axes of one size may have nothing to do with each other.
    """
    sizes = {
        (number, axis): size
        for number, value in enumerate(values)
        if isinstance(value, Tensor)
        for axis, size in enumerate(value.shape)
    }
    count = next(iter(sizes.values()), 0)
    batch = [place for place, size in sizes.items() if place[1] == 0 and size == count]
    lots: dict[int, list[Place]] = {}
    for place, size in sizes.items():
        if place not in batch and size > 1:
            lots.setdefault(size, []).append(place)
    return batch, [(size, list(_choices(places))) for size, places in lots.items()]


def _choices(places: list[Place]) -> Iterator[list[Place]]:
    """Yield all places of one size, then those of each axis by itself."""
    yield places
    axes = dict.fromkeys(axis for _, axis in places)
    for axis in axes if len(axes) > 1 else ():
        yield [place for place in places if place[1] == axis]


def _resized(value: Any, number: int, change: Change) -> Any:
    """Return a tensor of another size, repeated where it grows; no two floats are the same."""
    for (owner, axis), size in change.items():
        if owner == number:
            old = value.shape[axis]
            value = value.index_select(axis, torch.arange(size, device=value.device) % old)
            if value.is_floating_point() and size > old:
                added = value.narrow(axis, old, size - old)
                generator = torch.Generator().manual_seed(size)
                noise = torch.randn(
                    added.shape, generator=generator, dtype=torch.float64, device="cpu"
                )
                added.mul_(1 + 0.1 * noise.to(value))
    return value
