"""Changes of shape: axes are merged, split, moved and repeated."""

from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, product, recut
from gpu_align._symmetry._rules._table import Call, TensorAxes, replaced, rule
from gpu_align._symmetry._splits import factors_of, split_open, unsplit


@rule("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "ravel")
def _reshape(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """Merge neighbouring axes into products and split axes into factors, slowest first."""
    factors = (factor for axis in self for factor in factors_of(axis))
    finest = unsplit(TensorAxes(factor for factor in factors if factor.size != 1))
    sizes = [size for size in call.shape if size != 1]
    cut = None
    if 0 not in sizes:
        split = lambda axis, parts: split_open(axis, parts, call.reason)  # noqa: E731
        cut = recut(finest, sizes, Structure.PRODUCT, call.reason, split)
    if cut is None:
        call.pin(self)
        return TensorAxes(call.pinned(size) for size in call.shape)
    pieces = iter(cut)
    return TensorAxes(AxisClass(1) if n == 1 else product(next(pieces)) for n in call.shape)


@rule("unsqueeze")
def _unsqueeze(call: Call, self: TensorAxes, dim: int) -> TensorAxes:
    place = dim % (len(self) + 1)
    return TensorAxes((*self[:place], AxisClass(1), *self[place:]))


@rule("squeeze")
def _squeeze(call: Call, self: TensorAxes, dim: Any = None) -> TensorAxes:
    dims = range(len(self)) if dim is None else [dim] if isinstance(dim, int) else dim
    named = {number % len(self) for number in dims} if self else set()
    return TensorAxes(x for n, x in enumerate(self) if n not in named or x.size != 1)


@rule("permute")
def _permute(call: Call, self: TensorAxes, dims: list[int]) -> TensorAxes:
    return TensorAxes(self[number] for number in dims)


@rule("transpose", "swapaxes", "swapdims")
def _transpose(call: Call, self: TensorAxes, **dims: int) -> TensorAxes:
    if not self:
        return self
    first, second = dims.values()
    axes = list(self)
    axes[first], axes[second] = axes[second], axes[first]
    return TensorAxes(axes)


@rule("t", "numpy_T")
def _reverse(call: Call, self: TensorAxes) -> TensorAxes:
    return TensorAxes(reversed(self))


@rule("mT", "adjoint", "mH", "matrix_H")
def _matrix_transpose(call: Call, self: TensorAxes) -> TensorAxes:
    return TensorAxes((*self[:-2], self[-1], self[-2]))


@rule("movedim", "moveaxis")
def _movedim(call: Call, self: TensorAxes, source: Any, destination: Any) -> TensorAxes:
    sources = [source] if isinstance(source, int) else source
    places = [destination] if isinstance(destination, int) else destination
    count = len(self)
    moved = {place % count: self[number] for number, place in zip(sources, places, strict=True)}
    still = (x for n, x in enumerate(self) if n not in {number % count for number in sources})
    return TensorAxes(moved[place] if place in moved else next(still) for place in range(count))


@rule("expand", "expand_as", "broadcast_to")
def _expand(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """Repeated places are equal, so their order is free."""
    added = len(call.shape) - len(self)
    old = [None] * added + list(self)
    return TensorAxes(
        axis if axis is not None and axis.size == size else AxisClass(size)
        for axis, size in zip(old, call.shape, strict=True)
    )


@rule("repeat", "tile")
def _repeat(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """The axis as a whole once more and once more."""
    old = [AxisClass(1)] * (len(call.shape) - len(self)) + list(self)
    return TensorAxes(
        axis if axis.size == size else product([AxisClass(size // max(axis.size, 1)), axis])
        for axis, size in zip(old, call.shape, strict=True)
    )


@rule("repeat_interleave")
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
