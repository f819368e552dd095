"""Changes of shape: axes are merged, split, moved and repeated."""

import itertools
import math
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, product, recut, recut_stretches
from gpu_align._symmetry._power import AxisPowers, TensorPowers, UnmatchedError, placed
from gpu_align._symmetry._rules._marks import Repeated
from gpu_align._symmetry._rules._table import Call, PowerCall, axis_rule, power_rule, replaced
from gpu_align._symmetry._splits import TensorAxes, factors_of, split_open, unsplit

_RESHAPES = (
    *("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "ravel"),
)


@axis_rule(*_RESHAPES)
def _reshape(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """Merge neighbouring axes into products and split axes into factors, slowest first."""
    factors = (factor for axis in self for factor in factors_of(axis))
    finest = unsplit(TensorAxes(factor for factor in factors if factor.size != 1))
    sizes = [size for size in call.shape if size != 1]
    if 0 in sizes or math.prod(sizes) != math.prod(axis.size for axis in self):
        return _last_axes_alone(call, self)
    split = lambda axis, parts: split_open(axis, parts, call.reason)  # noqa: E731
    cut = recut(finest, sizes, Structure.PRODUCT, call.reason, split)
    pieces = iter(cut or recut_stretches(finest, sizes, call.reason, split))

    def axis(size: int) -> AxisClass:
        own = [] if size == 1 else next(pieces)
        return call.pinned(size) if own is None else product(own)

    return TensorAxes(map(axis, call.shape))


def _last_axes_alone(call: Call, self: TensorAxes) -> TensorAxes:
    """Keep the last axes, as far as they are of the same sizes, and pin all before them.

    For tensors without places, and for sizes that data decide, whose parts are not known.
    """
    pairs = zip(reversed(self), reversed(call.shape), strict=False)
    same = len(list(itertools.takewhile(lambda pair: pair[0].size == pair[1], pairs)))
    call.pin(self[: len(self) - same])
    before = (call.pinned(size) for size in call.shape[: len(call.shape) - same])
    return TensorAxes((*before, *self[len(self) - same :]))


@power_rule(*_RESHAPES, "squeeze", "unsqueeze")
def _reshape_powers(call: PowerCall, self: TensorPowers, **more: Any) -> TensorPowers:
    """The units of all axes keep their order."""
    if "dtype" in more or self.leaves != call.output.leaves:
        raise UnmatchedError
    powers = iter(self.powers)
    return TensorPowers(
        AxisPowers(axis.axis, tuple(next(powers) for _ in axis.powers)) for axis in call.output
    )


@axis_rule("unsqueeze")
def _unsqueeze(call: Call, self: TensorAxes, dim: int) -> TensorAxes:
    place = dim % (len(self) + 1)
    return TensorAxes((*self[:place], AxisClass(1), *self[place:]))


@axis_rule("squeeze")
def _squeeze(call: Call, self: TensorAxes, dim: Any = None) -> TensorAxes:
    dims = range(len(self)) if dim is None else [dim] if isinstance(dim, int) else dim
    named = {number % len(self) for number in dims} if self else set()
    return TensorAxes(x for n, x in enumerate(self) if n not in named or x.size != 1)


@axis_rule("permute")
def _permute(call: Call, self: TensorAxes, dims: list[int]) -> TensorAxes:
    return TensorAxes(self[number] for number in dims)


@power_rule("permute")
def _permute_powers(call: PowerCall, self: TensorPowers, dims: list[int]) -> TensorPowers:
    return TensorPowers(self[number] for number in dims)


@axis_rule("transpose", "swapaxes", "swapdims")
def _transpose(call: Call, self: TensorAxes, **dims: int) -> TensorAxes:
    if not self:
        return self
    first, second = dims.values()
    axes = list(self)
    axes[first], axes[second] = axes[second], axes[first]
    return TensorAxes(axes)


@power_rule("transpose", "swapaxes", "swapdims")
def _transpose_powers(call: PowerCall, self: TensorPowers, **dims: int) -> TensorPowers:
    axes = list(self)
    if axes:
        first, second = dims.values()
        axes[first], axes[second] = axes[second], axes[first]
    return TensorPowers(axes)


@axis_rule("t", "numpy_T")
def _reverse(call: Call, self: TensorAxes) -> TensorAxes:
    return TensorAxes(reversed(self))


@power_rule("t", "numpy_T")
def _reverse_powers(call: PowerCall, self: TensorPowers) -> TensorPowers:
    return TensorPowers(reversed(self))


@axis_rule("mT", "adjoint", "mH", "matrix_H")
def _matrix_transpose(call: Call, self: TensorAxes) -> TensorAxes:
    return TensorAxes((*self[:-2], self[-1], self[-2]))


@axis_rule("movedim", "moveaxis")
def _movedim(call: Call, self: TensorAxes, source: Any, destination: Any) -> TensorAxes:
    sources = [source] if isinstance(source, int) else source
    places = [destination] if isinstance(destination, int) else destination
    count = len(self)
    moved = {place % count: self[number] for number, place in zip(sources, places, strict=True)}
    still = (x for n, x in enumerate(self) if n not in {number % count for number in sources})
    return TensorAxes(moved[place] if place in moved else next(still) for place in range(count))


@power_rule("mT", "mH", "adjoint", "movedim", "moveaxis", "repeat", "tile", "repeat_interleave")
def moved_powers(call: PowerCall, self: TensorPowers, **_: Any) -> TensorPowers:
    """Along new places, where entries are repeated, nothing changes."""
    return placed(call.output, self.powers)


@axis_rule("expand", "expand_as", "broadcast_to")
def _expand(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """Repeated places are equal, so their order is free."""
    old = [AxisClass(1)] * (len(call.shape) - len(self)) + list(self)
    axes = TensorAxes(
        axis if axis.size == size else AxisClass(size)
        for axis, size in zip(old, call.shape, strict=True)
    )
    alike = frozenset(n for n in range(-len(axes), 0) if axes[n].size != old[n].size)
    return Repeated.of(axes, alike) if alike else axes


@power_rule("expand", "expand_as", "broadcast_to")
def _expand_powers(call: PowerCall, self: TensorPowers, **_: Any) -> TensorPowers:
    """Repeated entries are equal, so along the new places nothing changes."""
    added = len(call.output) - len(self)
    kept = [
        old if old.axis.size == new.axis.size else new
        for old, new in zip(self, call.output[added:], strict=True)
    ]
    return TensorPowers((*call.output[:added], *kept))


@axis_rule("broadcast_tensors")
def _expand_each(call: Call, tensors: list[TensorAxes]) -> tuple[TensorAxes, ...]:
    """They meet where they are used."""
    pairs = zip(tensors, call.shapes, strict=True)
    return tuple(_expand(Call(call.op, (shape,)), axes) for axes, shape in pairs)


@axis_rule("meshgrid")
def _grid(call: Call, tensors: list[TensorAxes], indexing: str = "ij") -> tuple[TensorAxes, ...]:
    """Each vector is repeated along the axes of the others."""
    axes = [vector[0] if vector else AxisClass(1) for vector in tensors]
    if indexing == "xy":
        axes[:2] = axes[1::-1]
    return (TensorAxes(axes),) * len(tensors)


@axis_rule("repeat", "tile")
def _repeat(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """The axis as a whole once more and once more."""
    old = [AxisClass(1)] * (len(call.shape) - len(self)) + list(self)
    return TensorAxes(
        axis if axis.size == size else product([AxisClass(size // max(axis.size, 1)), axis])
        for axis, size in zip(old, call.shape, strict=True)
    )


@axis_rule("repeat_interleave")
def _repeat_interleave(
    call: Call, self: TensorAxes, repeats: Any, dim: int | None = None, **_: Any
) -> TensorAxes:
    """Each place several times; how often may be said for each place, then the order matters."""
    if dim is None:
        self, dim = _reshape(Call(call.op, ((_count(self),),)), self), 0
    place = dim % len(self)
    if isinstance(repeats, int):
        return replaced(self, place, product([self[place], AxisClass(repeats)]))
    call.pin(self[place : place + 1])
    return replaced(self, place, call.pinned(call.shape[place]))


def _count(axes: TensorAxes) -> int:
    count = 1
    for axis in axes:
        count *= axis.size
    return count


@axis_rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(call: Call, self: TensorAxes, groups: int) -> TensorAxes:
    """Channels of the groups in turn."""
    group, inner = AxisClass(groups), AxisClass(self[1].size // groups)
    call.refine(self[1], Structure.PRODUCT, [group, inner])
    return replaced(self, 1, product([inner, group]))


power_rule("channel_shuffle", "native_channel_shuffle")(moved_powers)
