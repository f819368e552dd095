"""Ops that write at places that are numbered, or where a mask is true."""

from collections.abc import Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._power import TensorPowers, homogeneous, set_equal, set_zero
from gpu_align._symmetry._rules._marks import (
    Chosen,
    Inverse,
    Numbered,
    Order,
    Places,
    Repeated,
    reads,
)
from gpu_align._symmetry._rules._numbers import look_up
from gpu_align._symmetry._rules._table import (
    Call,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    unknown,
)
from gpu_align._symmetry._splits import TensorAxes


@axis_rule("scatter", "scatter_add", "scatter_reduce")
@reads(Places)
def _scatter(
    call: Call, self: TensorAxes, dim: int, index: TensorAxes, src: Any = None, **_: Any
) -> TensorAxes:
    """Along the other axes each entry is written at its own place."""
    if not self:
        return TensorAxes(self)
    place = dim % len(self)
    look_up(call, self[place], index)
    for number, axis in enumerate(index):
        if number != place:
            call.unify(self[number], axis)
        if isinstance(src, TensorAxes):
            call.unify(src[number], axis)
    return _written(call, self, src)


@axis_rule("index_add", "index_copy", "index_reduce", "index_fill")
@reads(Places, Chosen)
def _index_add(
    call: Call, self: TensorAxes, dim: int, index: TensorAxes, source: Any = None, **_: Any
) -> TensorAxes:
    """What is written for sorted slots is written at the right places, in whatever order."""
    if not self:
        return TensorAxes(self)
    place = dim % len(self)
    look_up(call, self[place], index)
    if isinstance(source, TensorAxes):
        call.unify(source[place], index[0] if index else AxisClass(1))
        for number, axis in enumerate(source):
            if number != place:
                call.unify(self[number], axis)
    marks = [mark for mark in (index, source) if isinstance(mark, Chosen)]
    if len(marks) == 1 or (marks and marks[0].by is not marks[1].by):
        for mark in marks:
            mark.give_up(call.reason)
    return _written(call, self, source)


def _written(call: Call, self: TensorAxes, written: Any) -> TensorAxes:
    """Return what is written into; numbers of units are not written."""
    for mark in (self, written):
        if isinstance(mark, Places) or (mark is self and isinstance(mark, Chosen)):
            mark.give_up(call.reason)
    return TensorAxes(self)


@power_rule("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_reduce")
def _written_powers(
    call: PowerCall, self: TensorPowers, dim: int, index: TensorPowers, **arguments: Any
) -> TensorPowers:
    """What is written is multiplied as what it is written into."""
    written = arguments.get("src", arguments.get("source"))
    reduce = arguments.get("reduce", "sum")
    if not isinstance(written, TensorPowers) or reduce in ("prod", "multiply"):
        return unknown(call, [self, index, written])
    place = dim % len(self)
    set_zero((*index, self[place], written[place]))
    for number, (axis, other) in enumerate(zip(self, written, strict=True)):
        if number != place:
            set_equal(axis, other)
    if reduce in ("amax", "amin"):
        return TensorPowers(homogeneous(axis) for axis in self)
    return TensorPowers(self)


@axis_rule("index_put")
@reads(Order, Numbered)
def _index_put(
    call: Call,
    self: TensorAxes,
    indices: Sequence[TensorAxes | None],
    values: TensorAxes,
    **_: Any,
) -> TensorAxes:
    """Written at numbered places or under a mask; 0, 1, 2, ... by an order gives its inverse."""
    given = {number: axes for number, axes in enumerate(indices) if axes is not None}
    order = given.get(0)
    if isinstance(order, Order) and len(self) == 1 and isinstance(values, Numbered):
        call.pin(self)
        return Inverse.of(self, order.by)
    if isinstance(order, Order):
        order.give_up(call.reason)
    # A mask has several axes, numbers mostly one.
    end = max(number + max(len(axes), 1) for number, axes in given.items())
    kept = min(len(self) - end, len(values))
    call.pin((*self[min(given) : end], *values[: len(values) - kept]))
    if kept:
        broadcast(call, [TensorAxes(self[-kept:]), TensorAxes(values[-kept:])])
    return TensorAxes(self)


@axis_rule("masked_scatter")
@reads(Repeated)
def _masked_scatter(
    call: Call, self: TensorAxes, mask: TensorAxes, source: TensorAxes
) -> TensorAxes:
    """Rows of the source are written one after another where the mask, alike in a row, is true."""
    alike = mask.alike if isinstance(mask, Repeated) else frozenset()
    rows = 0
    while rows < min(len(self), len(source)) and self[-rows - 1].size == source[-rows - 1].size:
        one = rows >= len(mask) or mask[-rows - 1].size == 1
        if not one and -rows - 1 not in alike:
            break
        rows += 1
    ends = [len(axes) - rows for axes in (self, mask, source)]
    for axes, end in zip((self, mask, source), ends, strict=True):
        call.pin(axes[: max(end, 0)])
    for a, b in zip(self[ends[0] :], source[ends[2] :], strict=True):
        call.unify(a, b)
    return TensorAxes(self)
