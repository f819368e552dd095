"""Marks: tensors that depend on the order of units by more than their own axes tell.

A tensor may hold the *numbers* of units: where the largest are, which experts a token is sent to.
It may hold, along an axis, what belongs to units that were *chosen* by such numbers, and this axis
may be *sorted* by the numbers. Reorder the units, and their numbers change, and so does what is
sorted by them. An op that looks up by numbers whatever lies along the units' axis undoes that. So
the rules of these ops read marks (`reads`), and ops that do the same at all places pass them on;
any other op that gets a marked tensor pins the units.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._rules._table import R, Rule
from gpu_align._symmetry._splits import TensorAxes, open_split


@dataclass(frozen=True, eq=False)
class Choice:
    """Units that were chosen: every place along `slots` belongs to one of `units`.

    Attributes:
        units: the axis of the units.
        slots: the axes of the numbers by which they were chosen.
        is_sorted: the places along the slots are in the order of the units.
        source: the numbers that were sorted.
    """

    units: AxisClass
    slots: tuple[AxisClass, ...]
    is_sorted: bool = False
    source: TensorAxes | None = None

    def lies_on(self, axes: Iterable[AxisClass]) -> bool:
        """Whether each of the slots is one of the axes, and only one."""
        roots = [axis.find() for axis in axes if open_split(axis) is None]
        return all(roots.count(slot.find()) == 1 for slot in self.slots)

    def touches(self, axes: Iterable[AxisClass]) -> bool:
        """Whether some slots are one of the axes."""
        slots = {slot.find() for slot in self.slots}
        return any(open_split(axis) is None and axis.find() in slots for axis in axes)

    def with_units(self, axes: TensorAxes) -> TensorAxes:
        """Return the axes of a tensor, and with them that of the units if the slots tell which."""
        return TensorAxes((*axes, self.units)) if self.lies_on(axes) else axes


class Marked(TensorAxes):
    """The axes of a tensor that depends on the order of units by more than these.

    Attributes:
        meaning: what such a tensor holds, for messages.
    """

    meaning = "numbers of these units"

    def moved(self, axes: TensorAxes) -> "Marked":
        """Return the same mark on other axes."""
        mark = type(self)(axes)
        mark.__dict__.update(self.__dict__)
        return mark

    def units(self) -> tuple[AxisClass, ...]:
        """Return the axes whose order it depends on."""
        return ()

    def give_up(self, reason: str) -> None:
        """Pin the units because of something that does not read the mark."""
        for axis in self.units():
            axis.pin(reason)


class Numbered(Marked):
    """The axes of a tensor 0, 1, 2, ... along one axis and of size 1 along the others."""

    def beside_ones(self, axes: TensorAxes) -> TensorAxes:
        """Return the same mark on other axes, if it still says what they are of."""
        long = [axis for axis in self if axis.size != 1]
        return self.moved(axes) if [axis for axis in axes if axis.size != 1] == long else axes


class Listed(Marked):
    """The axes of a vector of numbers that the model's code gives."""

    entries: tuple[int, ...]


def listed(axes: TensorAxes, values: Tensor | None) -> TensorAxes:
    """Return the axes of a constant, marked if it is a vector of numbers."""
    if values is None or values.dtype is not torch.int64 or values.ndim != 1:
        return axes
    mark = Listed(axes)
    mark.entries = tuple(values.tolist())
    return mark


class Repeated(Marked):
    """The axes of a tensor whose entries along some of them are all the same.

    Attributes:
        alike: numbers of these axes, counted from the end.
    """

    alike: frozenset[int]

    @classmethod
    def of(cls, axes: Iterable[AxisClass], alike: Iterable[int]) -> "Repeated":
        """Return the axes of a tensor that is repeated along some of them."""
        mark = cls(axes)
        mark.alike = frozenset(alike)
        return mark


class Places(Marked):
    """The axes of a tensor of integers, each the number of a place along `along`."""

    along: AxisClass
    choice: Choice

    @classmethod
    def of(cls, axes: Iterable[AxisClass], along: AxisClass, by: Choice | None = None) -> "Places":
        """Return the axes of numbers of places, sorted if `by` is."""
        mark = cls(axes)
        mark.along = along
        mark.choice = by or Choice(along, tuple(axis for axis in mark if axis.size != 1))
        return mark

    def moved(self, axes: TensorAxes) -> "Places":
        """Return the same numbers along other axes; what is sorted must stay where it is."""
        by = self.choice if self.choice.lies_on(axes) else None
        if by is None and self.choice.is_sorted:
            self.along.pin("sorted and then moved")
        return Places.of(axes, self.along, by)

    def units(self) -> tuple[AxisClass, ...]:
        """Return the axes whose order it depends on."""
        return (self.along,)


class _OfChoice(Marked):
    """The axes of a tensor that depends on a choice."""

    by: Choice

    @classmethod
    def of(cls, axes: Iterable[AxisClass], by: Choice) -> Self:
        """Return the axes with this mark."""
        mark = cls(axes)
        mark.by = by
        return mark

    def units(self) -> tuple[AxisClass, ...]:
        """Return the axes whose order it depends on."""
        return (self.by.units,)


class Chosen(_OfChoice):
    """The axes of a tensor whose entries along the slots of a choice belong to its units."""

    meaning = "rows sorted by these units"

    def units(self) -> tuple[AxisClass, ...]:
        """Return the axes whose order it depends on: what is not sorted depends on none."""
        return (self.by.units,) if self.by.is_sorted else ()


class Order(Chosen):
    """The axes of a vector by which a choice was sorted: it is a permutation."""


class Inverse(_OfChoice):
    """The axes of the inverse of an `Order`."""


class Counts(_OfChoice):
    """The axes of a vector that says how many slots belong to each unit."""


class Ends(_OfChoice):
    """The axes of a vector that says where the slots of each unit end."""


READS: dict[Rule, tuple[type[Marked], ...]] = {}


def reads(*marks: type[Marked]) -> Callable[[R], R]:
    """Register a rule as one that knows what these marks on its arguments mean."""

    def register(rule: R) -> R:
        READS[rule] = marks
        return rule

    return register


def tensors_in(value: Any) -> Iterator[TensorAxes]:
    """Yield the axes of each tensor in what a node gets or gives out."""
    if isinstance(value, TensorAxes):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
