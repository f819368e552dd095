"""Ops that number places, and ops that look up by numbers.

Where the numbers are those of units, wherever they came from (`Places`), the order of these is
free; where they come from elsewhere, the places along the axis must not move.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass, concat
from gpu_align._symmetry._power import (
    TensorPowers,
    UnmatchedError,
    set_zero,
)
from gpu_align._symmetry._rules._joints import cut_along
from gpu_align._symmetry._rules._marks import (
    Choice,
    Chosen,
    Inverse,
    Listed,
    Numbered,
    Order,
    Places,
    reads,
)
from gpu_align._symmetry._rules._reductions import numbers_of, reduction
from gpu_align._symmetry._rules._table import (
    Call,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    replaced,
)
from gpu_align._symmetry._splits import TensorAxes


def look_up(call: Call, axis: AxisClass, numbers: TensorAxes) -> None:
    """Say that places along an axis are chosen by number."""
    if isinstance(numbers, Places):
        call.unify(axis, numbers.along)
    else:
        call.pin((axis,))


def _chosen(axes: TensorAxes, numbers: TensorAxes) -> TensorAxes:
    """Return the axes of what was looked up, marked as the numbers are."""
    if isinstance(numbers, Places):
        return Chosen.of(axes, numbers.choice)
    return Chosen.of(axes, numbers.by) if isinstance(numbers, Chosen) else axes


# Where the largest are


@axis_rule("topk")
def _topk(call: Call, self: TensorAxes, dim: int = -1, **_: Any) -> tuple[TensorAxes, ...]:
    """Values are ordered by size, so the order of the units is not seen."""
    return _ranked(call, self, dim)


@axis_rule("sort", "argsort", "msort")
@reads(Places, Order)
def _sort(call: Call, self: TensorAxes, dim: int = -1, **_: Any) -> Any:
    """Sort values, or the numbers of units: then slots come to lie in the order of the units."""
    if isinstance(self, Order) and call.op == "argsort" and call.shapes == ((self[0].size,),):
        return Inverse.of(self.by.source or self, self.by)
    if isinstance(self, Places) and len(self) == 1 and self[0].is_fixed:
        slots = TensorAxes((call.pinned(self[0].size),))
        by = Choice(self.along, tuple(slots), is_sorted=True, source=self)
        sorted_numbers, order = Places.of(slots, self.along, by), Order.of(slots, by)
        return order if call.op == "argsort" else (sorted_numbers, order)
    if isinstance(self, Places | Order):
        self.give_up(call.reason)
    values, numbers = _ranked(call, self, 0 if call.op == "msort" else dim)
    return values if call.op == "msort" else numbers if call.op == "argsort" else (values, numbers)


def _ranked(call: Call, self: TensorAxes, dim: int) -> tuple[TensorAxes, TensorAxes]:
    if not self:
        return self, self
    place = dim % len(self)
    ranks = replaced(self, place, call.pinned(call.shape[place]))
    return ranks, Places.of(ranks, self[place])


@axis_rule("kthvalue", "mode")
def _value_and_place(
    call: Call, self: TensorAxes, dim: int = -1, keepdim: bool = False, **_: Any
) -> tuple[TensorAxes, ...]:
    found = reduction(call, self, dim, keepdim)
    return found, Places.of(found, self[dim]) if self else found


@axis_rule("max", "min", "median", "nanmedian")
def _extremum(
    call: Call, self: TensorAxes, other: TensorAxes | None = None, **arguments: Any
) -> Any:
    """Of two tensors, of all entries, or along an axis: then also where it was."""
    if other is not None:
        return broadcast(call, [self, other])
    if len(call.shapes) == 1:
        return reduction(call, self, **arguments)
    return _value_and_place(call, self, **arguments)


@axis_rule("argmax", "argmin")
def _index_of_extremum(
    call: Call, self: TensorAxes, dim: int | None = None, keepdim: bool = False
) -> TensorAxes:
    """Of all entries it is a place in all axes at once, which must not move."""
    found = reduction(call, self, dim, keepdim)
    if dim is not None and self:
        return Places.of(found, self[dim])
    call.pin(self[number] for number in numbers_of(self, dim))
    return found


@axis_rule("arange")
def _numbered(call: Call, start: float = 0, step: float = 1, **_: Any) -> TensorAxes:
    axes = TensorAxes(call.pinned(size) for size in call.shape)
    return Numbered(axes) if (start, step) == (0, 1) else axes


@axis_rule("eq", "ne")
@reads(Places, Numbered)
def _compared(call: Call, self: TensorAxes, other: Any) -> TensorAxes:
    """Numbers of units against 0, 1, 2, ...: along these lie the units."""
    for numbers, counted in ((self, other), (other, self)):
        if isinstance(numbers, Places) and isinstance(counted, Numbered):
            units = [_with_numbers(call, numbers, axis) for axis in counted]
            return broadcast(call, [TensorAxes(numbers), TensorAxes(units)])
    tensors = [axes for axes in (self, other) if isinstance(axes, TensorAxes)]
    for axes in tensors:
        if isinstance(axes, Places):
            axes.give_up(f"{call.reason} of {axes.meaning}")
    return broadcast(call, [TensorAxes(axes) for axes in tensors])


def _with_numbers(call: Call, numbers: Places, axis: AxisClass) -> AxisClass:
    """Return the axis of the units, and beyond them numbers that no unit has."""
    if axis.size == 1:
        return axis
    if axis.size < numbers.along.size:
        numbers.give_up(call.reason)
        return axis
    return concat([numbers.along, call.pinned(axis.size - numbers.along.size)])


# Looked up by number


@axis_rule("index_select")
@reads(Places)
def _index_select(call: Call, self: TensorAxes, dim: int, index: TensorAxes) -> TensorAxes:
    if not self:
        return self
    place = dim % len(self)
    look_up(call, self[place], index)
    if isinstance(self, Places):
        self.give_up(call.reason)
    if isinstance(index, Places) and len(index) == 1:
        return _chosen(replaced(self, place, index[0]), index)
    return replaced(self, place, call.pinned(call.shape[place]))


@axis_rule("gather")
@reads(Places)
def _gather(call: Call, self: TensorAxes, dim: int, index: TensorAxes, **_: Any) -> TensorAxes:
    """Places are chosen by number, along the other axes each for itself."""
    place = dim % len(self) if self else 0
    for axis in self[place : place + 1]:
        look_up(call, axis, index)
    if isinstance(self, Places):
        self.give_up(call.reason)
    for number, (axis, other) in enumerate(zip(self, index, strict=False)):
        if number != place:
            call.unify(axis, other)
    return TensorAxes(index)


@axis_rule("index", "_unsafe_index")
@reads(Places, Chosen, Inverse, Listed)
def _index(call: Call, self: TensorAxes, indices: list[TensorAxes | None]) -> TensorAxes:
    """Places are chosen by numbers, or by a mask of one or several axes."""
    given = [number for number, axes in enumerate(indices) if axes is not None]
    chosen = [axes for axes in indices if axes is not None]
    if len(chosen) == 1 and isinstance(chosen[0], Listed):
        return _listed_places(call, self, given[0], chosen[0])
    if len(chosen) == 1 and _is_mask(call, self, given[0], chosen[0]):
        return _masked(call, self, given[0], chosen[0])
    for number, numbers in zip(given, chosen, strict=True):
        look_up(call, self[number], numbers)
    met = broadcast(call, chosen)
    kept = [(n, axis) for n, axis in enumerate(self) if n not in given]
    neighbours = given == list(range(given[0], given[-1] + 1))
    first = given[0] if neighbours else 0
    before = [axis for n, axis in kept if n < first]
    out = TensorAxes((*before, *met, *(axis for n, axis in kept if n >= first)))
    return _index_marks(call, self, chosen, out)


def _listed_places(call: Call, self: TensorAxes, place: int, numbers: Listed) -> TensorAxes:
    """Cut an axis where a list of its places jumps; what is listed one by one stays where it is."""
    if isinstance(self, Places | Chosen | Inverse):
        self.give_up(call.reason)
    size = self[place].size
    runs = _runs([entry % size for entry in numbers.entries])
    ends = [0, *(bound for run in sorted(runs) for bound in run), size]
    if len(runs) == len(numbers.entries) or ends != sorted(ends):
        call.pin((self[place],))
        return replaced(self, place, call.pinned(call.shape[place]))
    sizes = [last - first for first, last in itertools.pairwise(ends)]
    parts = cut_along(call, self, place, sizes)
    found = {run: axes[place] for run, axes in zip(sorted(runs), parts[1::2], strict=True)}
    return replaced(parts[1], place, concat([found[run] for run in runs]))


def _runs(entries: Sequence[int]) -> list[tuple[int, int]]:
    """Return where stretches of neighbouring numbers begin and end."""
    runs: list[tuple[int, int]] = []
    for entry in entries:
        if runs and runs[-1][1] == entry:
            runs[-1] = (runs[-1][0], entry + 1)
        else:
            runs.append((entry, entry + 1))
    return runs


def _index_marks(
    call: Call, self: TensorAxes, chosen: list[TensorAxes], out: TensorAxes
) -> TensorAxes:
    """Return the output of an index, marked as its numbers are."""
    numbers = chosen[0] if len(chosen) == 1 else None
    if isinstance(numbers, Inverse):
        if type(self) is Chosen and self.by is numbers.by and self[0] is numbers.by.slots[0]:
            return out
    elif type(numbers) is Order and numbers.by.source is self and isinstance(self, Places):
        return Places.of(out, self.along, numbers.by)
    elif numbers is not None and not isinstance(self, Places | Chosen):
        return _chosen(out, numbers)
    for mark in (self, *chosen):
        if isinstance(mark, Chosen | Inverse) or (mark is self and isinstance(mark, Places)):
            mark.give_up(call.reason)
    return out


def _is_mask(call: Call, self: TensorAxes, place: int, index: TensorAxes) -> bool:
    sizes = [axis.size for axis in self]
    found = [*sizes[:place], *(axis.size for axis in index), *sizes[place + 1 :]]
    return found != list(call.shape)


def _masked(call: Call, self: TensorAxes, place: int, mask: TensorAxes) -> TensorAxes:
    after = place + len(mask)
    call.pin((*self[place:after], *mask))
    for mark in (self, mask):
        if isinstance(mark, Places | Chosen | Inverse):
            mark.give_up(call.reason)
    return TensorAxes((*self[:place], call.pinned(call.shape[place]), *self[after:]))


@power_rule("index_select", "gather")
def _looked_up_powers(
    call: PowerCall, self: TensorPowers, dim: int, index: TensorPowers, **_: Any
) -> TensorPowers:
    """Along the axis that is looked at by number nothing changes."""
    place = dim % len(self)
    set_zero((self[place], *index))
    return TensorPowers((*self[:place], call.output[place], *self[place + 1 :]))


@power_rule("index", "_unsafe_index")
def _index_powers(
    call: PowerCall, self: TensorPowers, indices: list[TensorPowers | None]
) -> TensorPowers:
    """Along the axes that are looked at by number, or under a mask, nothing changes."""
    given = [number for number, axes in enumerate(indices) if axes is not None]
    chosen = [axes for axes in indices if axes is not None]
    first, end = given[0], given[-1] + 1
    if len(chosen) == 1 and len(call.output) != len(self) - 1 + len(chosen[0]):
        end = first + len(chosen[0])
    if end - first > len(given) > 1:
        raise UnmatchedError
    set_zero((*self[first:end], *(axis for axes in chosen for axis in axes)))
    after = self[end:]
    met = call.output[first : len(call.output) - len(after)]
    return TensorPowers((*self[:first], *met, *after))


@axis_rule("embedding")
@reads(Places)
def _embedding(call: Call, weight: TensorAxes, indices: TensorAxes, **_: Any) -> TensorAxes:
    look_up(call, weight[0], indices)
    return _chosen(TensorAxes((*indices, *weight[1:])), indices)


@power_rule("embedding")
def _embedding_powers(
    call: PowerCall, weight: TensorPowers, indices: TensorPowers, **_: Any
) -> TensorPowers:
    set_zero((weight[0], *indices))
    return TensorPowers((*call.output[: len(indices)], *weight[1:]))


@axis_rule("embedding_bag", "_embedding_bag")
def _embedding_bag(
    call: Call, weight: TensorAxes, indices: TensorAxes, offsets: TensorAxes, **more: Any
) -> tuple[TensorAxes, ...]:
    """Rows are summed in bags; further outputs are for the backward pass."""
    weights = more.get("per_sample_weights") or TensorAxes()
    call.pin((weight[0], *indices, *offsets, *weights))
    bags = TensorAxes((call.pinned(call.shape[0]), *weight[1:]))
    others = call.shapes[1:]
    return bags, *(TensorAxes(call.pinned(size) for size in shape) for shape in others)


@axis_rule("one_hot")
@reads(Places)
def _one_hot(call: Call, self: TensorAxes, num_classes: int = -1) -> TensorAxes:
    """A class is the unit of that number; there may be classes without one."""
    size = call.shape[-1]
    if not isinstance(self, Places) or self.along.size > size:
        return TensorAxes((*self, call.pinned(size)))
    return TensorAxes((*self, _with_numbers(call, self, AxisClass(size))))
