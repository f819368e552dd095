"""Gauge rules of ops that move entries: changes of shape, concatenation and cuts."""

from collections.abc import Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure
from gpu_align._symmetry._gauge._power import (
    AxisPowers,
    Power,
    TensorPowers,
    UnmatchedError,
    placed,
    set_equal,
    set_zero,
)
from gpu_align._symmetry._gauge._table import GaugeCall, rule, unknown


@rule("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "ravel")
@rule("squeeze", "unsqueeze")
def _reshape(call: GaugeCall, self: TensorPowers, **more: Any) -> TensorPowers:
    """The units of all axes keep their order."""
    if "dtype" in more or self.leaves != call.output.leaves:
        raise UnmatchedError
    powers = iter(self.powers)
    return TensorPowers(
        AxisPowers(axis.axis, tuple(next(powers) for _ in axis.powers)) for axis in call.output
    )


@rule("permute")
def _permute(call: GaugeCall, self: TensorPowers, dims: list[int]) -> TensorPowers:
    return TensorPowers(self[number] for number in dims)


@rule("transpose", "swapaxes", "swapdims")
def _transpose(call: GaugeCall, self: TensorPowers, **dims: int) -> TensorPowers:
    axes = list(self)
    if axes:
        first, second = dims.values()
        axes[first], axes[second] = axes[second], axes[first]
    return TensorPowers(axes)


@rule("t", "numpy_T")
def _reverse(call: GaugeCall, self: TensorPowers) -> TensorPowers:
    return TensorPowers(reversed(self))


@rule("mT", "mH", "adjoint", "movedim", "moveaxis", "roll", "flip", "repeat", "tile")
@rule("repeat_interleave", "index_select", "gather", "index", "_unsafe_index", "tril", "triu")
@rule("pixel_shuffle", "pixel_unshuffle")
def _moved(call: GaugeCall, self: TensorPowers, **_: Any) -> TensorPowers:
    """Along new places, where entries are repeated, nothing changes."""
    return placed(call.output, self.powers)


@rule("expand", "expand_as", "broadcast_to")
def _expand(call: GaugeCall, self: TensorPowers, **_: Any) -> TensorPowers:
    """Repeated entries are equal, so along the new places nothing changes."""
    added = len(call.output) - len(self)
    kept = [
        old if old.axis.size == new.axis.size else new
        for old, new in zip(self, call.output[added:], strict=True)
    ]
    return TensorPowers((*call.output[:added], *kept))


@rule("constant_pad_nd", "pad")
def _pad(
    call: GaugeCall, self: TensorPowers, pad: list[int], mode: str = "constant", value: Any = None
) -> TensorPowers:
    """Zeros stay zeros; other constants are not multiplied, wherever they are put."""
    if mode == "constant" and value:
        return unknown(call, [self])
    padded = {len(self) - 1 - number // 2 for number, places in enumerate(pad) if places}
    return TensorPowers(
        AxisPowers(new.axis, old.powers) if number in padded else old
        for number, (old, new) in enumerate(zip(self, call.output, strict=True))
    )


# Concatenation.


@rule("cat", "concat", "concatenate")
def _concatenation(call: GaugeCall, tensors: list[TensorPowers], dim: int = 0) -> TensorPowers:
    place = dim % len(call.output)
    # torch passes over empty vectors whatever the rank of the others.
    parts = [axes for axes in tensors if len(axes) == len(call.output)]
    along = tuple(power for part in parts for power in part[place].powers)
    return _joined(parts, place, AxisPowers(call.output[place].axis, along))


@rule("stack")
def _stack(call: GaugeCall, tensors: list[TensorPowers], dim: int = 0) -> TensorPowers:
    place = dim % len(call.output)
    one = AxisPowers(AxisClass(1))
    parts = [TensorPowers((*axes[:place], one, *axes[place:])) for axes in tensors]
    return _joined(parts, place, call.output[place])


def _joined(parts: list[TensorPowers], place: int, along: AxisPowers) -> TensorPowers:
    for axes in parts[1:]:
        for number, axis in enumerate(axes):
            if number != place:
                set_equal(parts[0][number], axis)
    return TensorPowers((*parts[0][:place], along, *parts[0][place + 1 :]))


# Cuts.


def _cut(call: GaugeCall, self: TensorPowers, dim: int, sizes: Sequence[int]) -> list[list[Power]]:
    """Return the powers of neighbouring parts of an axis, each with those of the other axes."""
    place = dim % len(self)
    others = [power for number, axis in enumerate(self) if number != place for power in axis.powers]
    if not self[place].powers or call.extents[place] in sizes:
        return [[*others, *self[place].powers]] * len(sizes)
    # One place is several where slices of a split axis are taken apart.
    multiple = self[place].axis.size // call.extents[place]
    parts = _cut_axis(self[place], [size * multiple for size in sizes])
    return [[*others, *part] for part in parts]


def _cut_axis(axis: AxisPowers, sizes: Sequence[int]) -> list[list[Power]]:
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


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def _split(call: GaugeCall, self: TensorPowers, dim: int = 0, **_: Any) -> tuple[TensorPowers, ...]:
    parts = _cut(call, self, dim, [extents[dim] for extents in call.made])
    return tuple(placed(axes, part) for axes, part in zip(call.outputs, parts, strict=True))


@rule("unbind")
def _unbind(call: GaugeCall, self: TensorPowers, dim: int = 0) -> tuple[TensorPowers, ...]:
    parts = _cut(call, self, dim, [1] * len(call.outputs))
    return tuple(placed(axes, part) for axes, part in zip(call.outputs, parts, strict=True))


@rule("slice")
def _slice(
    call: GaugeCall,
    self: TensorPowers,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TensorPowers:
    if step != 1:
        return _moved(call, self)
    size = call.extents[dim]
    first, last, _ = slice(start, end).indices(size)
    last = max(first, last)
    return placed(call.output, _cut(call, self, dim, [first, last - first, size - last])[1])


@rule("narrow")
def _narrow(call: GaugeCall, self: TensorPowers, dim: int, start: int, length: int) -> TensorPowers:
    first = start % call.extents[dim]
    return _slice(call, self, dim, first, first + length)


@rule("select")
def _select(call: GaugeCall, self: TensorPowers, dim: int, index: int) -> TensorPowers:
    size = call.extents[dim]
    first = index % size
    return placed(call.output, _cut(call, self, dim, [first, 1, size - first - 1])[1])


@rule("glu")
def _gated_linear_unit(call: GaugeCall, self: TensorPowers, dim: int = -1) -> TensorPowers:
    """The gate decides through a sigmoid; the other half passes."""
    place = dim % len(self)
    half = call.made[0][place]
    value, gate = _cut_axis(self[place], [half, half]) if self[place].powers else ([], [])
    set_zero([AxisPowers(self[place].axis, tuple(gate))])
    return TensorPowers(
        (*self[:place], AxisPowers(call.output[place].axis, tuple(value)), *self[place + 1 :])
    )
