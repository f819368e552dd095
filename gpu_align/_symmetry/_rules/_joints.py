"""Concatenation, and its inverse: units of a part stay in their part."""

from collections.abc import Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, concat
from gpu_align._symmetry._power import (
    AxisPowers,
    Power,
    TensorPowers,
    UnmatchedError,
    placed,
    set_equal,
    set_zero,
)
from gpu_align._symmetry._rules._shapes import moved_powers
from gpu_align._symmetry._rules._table import Call, PowerCall, axis_rule, power_rule, replaced
from gpu_align._symmetry._splits import TensorAxes, slices_along, with_parts

_SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
CUTS = frozenset({"slice", "narrow", "select", "unbind", *_SPLITS})


@axis_rule("cat", "concat", "concatenate")
def _concatenation(call: Call, tensors: list[TensorAxes], dim: int = 0) -> TensorAxes:
    place = dim % len(call.shape)
    # torch passes over empty vectors whatever the rank of the others.
    parts = [axes for axes in tensors if len(axes) == len(call.shape)]
    return _joined(call, parts, place, concat([axes[place] for axes in parts]))


@power_rule("cat", "concat", "concatenate")
def _concatenation_powers(
    call: PowerCall, tensors: list[TensorPowers], dim: int = 0
) -> TensorPowers:
    place = dim % len(call.output)
    # torch passes over empty vectors whatever the rank of the others.
    parts = [axes for axes in tensors if len(axes) == len(call.output)]
    along = tuple(power for part in parts for power in part[place].powers)
    return _joined_powers(parts, place, AxisPowers(call.output[place].axis, along))


@axis_rule("hstack")
def _side_by_side(call: Call, tensors: list[TensorAxes]) -> TensorAxes:
    return _concatenation(call, tensors, min(1, len(call.shape) - 1))


@power_rule("hstack")
def _side_by_side_powers(call: PowerCall, tensors: list[TensorPowers]) -> TensorPowers:
    return _concatenation_powers(call, tensors, min(1, len(call.output) - 1))


@axis_rule("stack")
def _stack(call: Call, tensors: list[TensorAxes], dim: int = 0) -> TensorAxes:
    place = dim % len(call.shape)
    parts = [TensorAxes((*axes[:place], AxisClass(1), *axes[place:])) for axes in tensors]
    return _joined(call, parts, place, call.pinned(len(tensors)))


@power_rule("stack")
def _stack_powers(call: PowerCall, tensors: list[TensorPowers], dim: int = 0) -> TensorPowers:
    place = dim % len(call.output)
    one = AxisPowers(AxisClass(1))
    parts = [TensorPowers((*axes[:place], one, *axes[place:])) for axes in tensors]
    return _joined_powers(parts, place, call.output[place])


def _joined(call: Call, parts: list[TensorAxes], place: int, along: AxisClass) -> TensorAxes:
    for axes in parts[1:]:
        for number, axis in enumerate(axes):
            if number != place:
                call.unify(parts[0][number], axis)
    return replaced(parts[0], place, along)


def _joined_powers(parts: list[TensorPowers], place: int, along: AxisPowers) -> TensorPowers:
    for axes in parts[1:]:
        for number, axis in enumerate(axes):
            if number != place:
                set_equal(parts[0][number], axis)
    return TensorPowers((*parts[0][:place], along, *parts[0][place + 1 :]))


def cut_along(call: Call, self: TensorAxes, dim: int, sizes: list[int]) -> list[TensorAxes]:
    """Cut an axis into neighbouring parts; units then stay inside their part."""
    place = dim % len(self)
    if self[place].size in sizes:
        # Everything and nothing.
        return [self if n else replaced(self, place, AxisClass(0)) for n in sizes]
    split = slices_along(self, place)
    if split is not None:
        return [with_parts(self, parts) for parts in split.cut(self[place], sizes)]
    parts = [AxisClass(size) for size in sizes]
    call.refine(self[place], Structure.CONCAT, parts)
    return [replaced(self, place, part) for part in parts]


def _cut_powers(
    call: PowerCall, self: TensorPowers, dim: int, sizes: Sequence[int]
) -> list[list[Power]]:
    """Return the powers of neighbouring parts of an axis, each with those of the other axes."""
    place = dim % len(self)
    others = [power for number, axis in enumerate(self) if number != place for power in axis.powers]
    if not self[place].powers or call.extents[place] in sizes:
        return [[*others, *self[place].powers]] * len(sizes)
    # One place is several where slices of a split axis are taken apart.
    multiple = self[place].axis.size // call.extents[place]
    parts = _cut_axis_powers(self[place], [size * multiple for size in sizes])
    return [[*others, *part] for part in parts]


def _cut_axis_powers(axis: AxisPowers, sizes: Sequence[int]) -> list[list[Power]]:
    own = iter(axis.axis.flat_parts(Structure.CONCAT))
    powers, seen = iter(axis.powers), set(axis.leaves)
    cut = []
    for size in sizes:
        found: list[Power] = []
        while size > 0 and (part := next(own, None)) is not None:
            size -= part.size
            found += [next(powers) for leaf in part.leaves() if leaf in seen]
        if size != 0:
            raise UnmatchedError
        cut.append(found)
    return cut


@axis_rule(*_SPLITS)
def _split(call: Call, self: TensorAxes, dim: int = 0, **_: Any) -> tuple[TensorAxes, ...]:
    return tuple(cut_along(call, self, dim, [shape[dim] for shape in call.shapes]))


@power_rule(*_SPLITS)
def _split_powers(
    call: PowerCall, self: TensorPowers, dim: int = 0, **_: Any
) -> tuple[TensorPowers, ...]:
    parts = _cut_powers(call, self, dim, [extents[dim] for extents in call.shapes])
    return tuple(placed(axes, part) for axes, part in zip(call.outputs, parts, strict=True))


@axis_rule("unbind")
def _unbind(call: Call, self: TensorAxes, dim: int = 0) -> tuple[TensorAxes, ...]:
    place = dim % len(self)
    if slices_along(self, place) is None:
        call.pin(self[place : place + 1])
        return (replaced(self, place),) * len(call.shapes)
    slices = cut_along(call, self, dim, [1] * self[place].size)
    return tuple(replaced(axes, place) for axes in slices)


@power_rule("unbind")
def _unbind_powers(call: PowerCall, self: TensorPowers, dim: int = 0) -> tuple[TensorPowers, ...]:
    parts = _cut_powers(call, self, dim, [1] * len(call.outputs))
    return tuple(placed(axes, part) for axes, part in zip(call.outputs, parts, strict=True))


@axis_rule("slice")
def _slice(
    call: Call,
    self: TensorAxes,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TensorAxes:
    size = self[dim].size
    if step != 1:
        return _every_other(call, self, dim % len(self), slice(start, end, step).indices(size))
    first, last, _ = slice(start, end).indices(size)
    last = max(first, last)
    return cut_along(call, self, dim, [first, last - first, size - last])[1]


def _every_other(
    call: Call, self: TensorAxes, place: int, indices: tuple[int, int, int]
) -> TensorAxes:
    """Take the same place of each unit of `step` neighbours, where there is nothing else."""
    start, end, step = indices
    units = AxisClass(call.shape[place])
    if start >= step or end < self[place].size or units.size * step != self[place].size:
        call.pin((self[place],))
        return replaced(self, place, call.pinned(units.size))
    call.refine(self[place], Structure.PRODUCT, [units, call.pinned(step)])
    return replaced(self, place, units)


@power_rule("slice")
def _slice_powers(
    call: PowerCall,
    self: TensorPowers,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TensorPowers:
    if step != 1:
        return moved_powers(call, self)
    size = call.extents[dim]
    first, last, _ = slice(start, end).indices(size)
    last = max(first, last)
    return placed(call.output, _cut_powers(call, self, dim, [first, last - first, size - last])[1])


@axis_rule("narrow")
def _narrow(call: Call, self: TensorAxes, dim: int, start: int, length: int) -> TensorAxes:
    first = start % self[dim].size
    return _slice(call, self, dim, first, first + length)


@power_rule("narrow")
def _narrow_powers(
    call: PowerCall, self: TensorPowers, dim: int, start: int, length: int
) -> TensorPowers:
    first = start % call.extents[dim]
    return _slice_powers(call, self, dim, first, first + length)


@axis_rule("select")
def _select(call: Call, self: TensorAxes, dim: int, index: int) -> TensorAxes:
    place, size = dim % len(self), self[dim].size
    first = index % size
    chosen = cut_along(call, self, dim, [first, 1, size - first - 1])[1]
    return replaced(chosen, place)


@power_rule("select")
def _select_powers(call: PowerCall, self: TensorPowers, dim: int, index: int) -> TensorPowers:
    size = call.extents[dim]
    first = index % size
    return placed(call.output, _cut_powers(call, self, dim, [first, 1, size - first - 1])[1])


@axis_rule("slice_scatter")
def _slice_written(
    call: Call,
    self: TensorAxes,
    src: TensorAxes,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TensorAxes:
    written = _slice(call, self, dim, start, end, step)
    for axis, other in zip(written, src, strict=True):
        call.unify(axis, other)
    return TensorAxes(self)


@axis_rule("select_scatter")
def _selection_written(
    call: Call, self: TensorAxes, src: TensorAxes, dim: int, index: int
) -> TensorAxes:
    for axis, other in zip(_select(call, self, dim, index), src, strict=True):
        call.unify(axis, other)
    return TensorAxes(self)


@axis_rule("glu")
def _gated_linear_unit(call: Call, self: TensorAxes, dim: int = -1) -> TensorAxes:
    value, gate = cut_along(call, self, dim, [call.shape[dim]] * 2)
    for a, b in zip(value, gate, strict=True):
        call.unify(a, b)
    return value


@power_rule("glu")
def _gated_linear_unit_powers(call: PowerCall, self: TensorPowers, dim: int = -1) -> TensorPowers:
    """The gate decides through a sigmoid; the other half passes."""
    place = dim % len(self)
    half = call.shapes[0][place]
    value, gate = _cut_axis_powers(self[place], [half, half]) if self[place].powers else ([], [])
    set_zero([AxisPowers(self[place].axis, tuple(gate))])
    return TensorPowers(
        (*self[:place], AxisPowers(call.output[place].axis, tuple(value)), *self[place + 1 :])
    )
