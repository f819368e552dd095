"""Where units lie in a tensor, and what moves with them: read from the spec, with NumPy alone.

Written apart from gpu_align, whose answers are checked by it. In a spec an axis is a whole number
(fixed), the name of a group, {"product": [...]} with the slowest first, or {"concat": [...]}; a
group's name may end in ^1 or ^-1, which says that entries change their sign with the unit's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Chosen = Mapping[str, int]
"""Group -> its unit at the place that is looked at."""


@dataclass(frozen=True)
class Group:
    """Units that are reordered together.

    Attributes:
        size: number of units; inside each unit of the parent where there is one.
        parent: the group inside whose units these lie.
        signed: whether units may be negated.
        fixed: whether the units stay where they are.
    """

    size: int
    parent: str | None = None
    signed: bool = False
    fixed: bool = False

    @classmethod
    def of(cls, entry: Any) -> "Group":
        """Read an entry of a spec: a size, or a mapping."""
        known = {"size": entry} if isinstance(entry, int) else entry
        return cls(**{name: known[name] for name in cls.__annotations__ if name in known})


@dataclass(frozen=True)
class Order:
    """An order of all units: `perms[g][i] = j` puts unit j of the source at place i.

    Attributes:
        groups: by name.
        perms: group -> index vector; units of a group with a parent are numbered through, those of
            the parent's first unit first.
        signs: signed group -> 1 and -1, what the unit is multiplied by at its new place.
    """

    groups: Mapping[str, Group]
    perms: Mapping[str, NDArray]
    signs: Mapping[str, NDArray] = field(default_factory=dict)

    def place(self, name: str, unit: int, chosen: Chosen) -> tuple[int, int]:
        """Return where the unit at a place comes from, within its parent, and its sign."""
        group = self.groups[name]
        number = unit
        if group.parent is not None:
            number += chosen[group.parent] * group.size
        sign = int(self.signs[name][number]) if name in self.signs else 1
        return int(self.perms[name][number]) % group.size, sign


def extent(axis: Any, groups: Mapping[str, Group]) -> int:
    """Return the number of places of an axis."""
    match axis:
        case int():
            return axis
        case str():
            return groups[named(axis)].size
        case {"product": parts}:
            return int(np.prod([extent(part, groups) for part in parts]))
        case {"concat": parts}:
            return sum(extent(part, groups) for part in parts)
    raise ValueError(f"expected an axis of a spec, got {axis!r}")


def named(factor: str) -> str:
    """Return the group of a factor, without its power."""
    return factor.partition("^")[0]


def moves(axis: Any, order: Order, chosen: Chosen) -> Iterator[tuple[int, int, Chosen]]:
    """Yield for each place of an axis which place of the source comes there, with what sign.

    Args:
        axis: from the spec.
        order: of the units.
        chosen: units of the groups around, whose numbers children need.

    Yields:
        Place of the source, sign, and the units chosen by then.
    """
    match axis:
        case int():
            yield from ((place, 1, chosen) for place in range(axis))
        case str():
            name = named(axis)
            for unit in range(order.groups[name].size):
                place, sign = order.place(name, unit, chosen)
                yield place, sign if "^" in axis else 1, {**chosen, name: unit}
        case {"product": parts}:
            yield from _product(parts, order, chosen)
        case {"concat": parts}:
            start = 0
            for part in parts:
                for place, sign, known in moves(part, order, chosen):
                    yield start + place, sign, known
                start += extent(part, order.groups)


def _product(parts: list[Any], order: Order, chosen: Chosen) -> Iterator[tuple[int, int, Chosen]]:
    """Yield the moves of a product, the slowest factor first; see `moves`."""
    if not parts:
        yield 0, 1, chosen
        return
    first, rest = parts[0], parts[1:]
    inner = extent({"product": rest}, order.groups)
    for place, sign, known in moves(first, order, chosen):
        for within, other, last in _product(rest, order, known):
            yield place * inner + within, sign * other, last


def moved(tensor: NDArray, axes: list[Any], order: Order) -> NDArray:
    """Return a tensor of the source with its units in an order."""
    for number, axis in enumerate(axes):
        tensor = moved_along(tensor, number, axis, order)
    return tensor


def moved_along(tensor: NDArray, number: int, axis: Any, order: Order) -> NDArray:
    """Return a tensor with one of its axes in an order."""
    found = [(place, sign) for place, sign, _ in moves(axis, order, {})]
    places, signs = (np.array(column) for column in zip(*found, strict=True))
    shape = [1] * tensor.ndim
    shape[number] = len(signs)
    return np.take(tensor, places, axis=number) * signs.reshape(shape)
