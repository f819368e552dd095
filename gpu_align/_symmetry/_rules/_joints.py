"""Concatenation, and its inverse: units of a part stay in their part."""

from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, concat
from gpu_align._symmetry._rules._table import Call, TensorAxes, replaced, rule
from gpu_align._symmetry._splits import slices_along, with_parts


@rule("cat", "concat", "concatenate")
def _concatenation(call: Call, tensors: list[TensorAxes], dim: int = 0) -> TensorAxes:
    place = dim % len(call.shape)
    # torch passes over empty vectors whatever the rank of the others.
    parts = [axes for axes in tensors if len(axes) == len(call.shape)]
    return _joined(call, parts, place, concat([axes[place] for axes in parts]))


@rule("stack")
def _stack(call: Call, tensors: list[TensorAxes], dim: int = 0) -> TensorAxes:
    place = dim % len(call.shape)
    parts = [TensorAxes((*axes[:place], AxisClass(1), *axes[place:])) for axes in tensors]
    return _joined(call, parts, place, call.pinned(len(tensors)))


def _joined(call: Call, parts: list[TensorAxes], place: int, along: AxisClass) -> TensorAxes:
    for axes in parts[1:]:
        for number, axis in enumerate(axes):
            if number != place:
                call.unify(parts[0][number], axis)
    return replaced(parts[0], place, along)


def cut_along(call: Call, self: TensorAxes, dim: int, sizes: list[int]) -> list[TensorAxes]:
    """Cut an axis into neighbouring parts; units then stay inside their part."""
    place = dim % len(self)
    if self[place].size in sizes:
        # Everything and nothing.
        return [self if n else replaced(self, place, AxisClass(0)) for n in sizes]
    split = slices_along(self, place)
    if split is not None:
        return [with_parts(self, parts) for parts in split.cut(sizes)]
    parts = [AxisClass(size) for size in sizes]
    call.refine(self[place], Structure.CONCAT, parts)
    return [replaced(self, place, part) for part in parts]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def _split(call: Call, self: TensorAxes, dim: int = 0, **_: Any) -> tuple[TensorAxes, ...]:
    return tuple(cut_along(call, self, dim, [shape[dim] for shape in call.shapes]))


@rule("unbind")
def _unbind(call: Call, self: TensorAxes, dim: int = 0) -> tuple[TensorAxes, ...]:
    place = dim % len(self)
    if slices_along(self, place) is None:
        call.pin(self[place : place + 1])
        return (replaced(self, place),) * len(call.shapes)
    slices = cut_along(call, self, dim, [1] * self[place].size)
    return tuple(replaced(axes, place) for axes in slices)


@rule("slice")
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
        call.pin((self[dim],))
        return replaced(self, dim % len(self), call.pinned(call.shape[dim]))
    first, last, _ = slice(start, end).indices(size)
    last = max(first, last)
    return cut_along(call, self, dim, [first, last - first, size - last])[1]


@rule("narrow")
def _narrow(call: Call, self: TensorAxes, dim: int, start: int, length: int) -> TensorAxes:
    first = start % self[dim].size
    return _slice(call, self, dim, first, first + length)


@rule("select")
def _select(call: Call, self: TensorAxes, dim: int, index: int) -> TensorAxes:
    place, size = dim % len(self), self[dim].size
    first = index % size
    chosen = cut_along(call, self, dim, [first, 1, size - first - 1])[1]
    return replaced(chosen, place)


@rule("glu")
def _gated_linear_unit(call: Call, self: TensorAxes, dim: int = -1) -> TensorAxes:
    value, gate = cut_along(call, self, dim, [call.shape[dim]] * 2)
    for a, b in zip(value, gate, strict=True):
        call.unify(a, b)
    return value
