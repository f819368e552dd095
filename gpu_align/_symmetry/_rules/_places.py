"""Ops on places: axes on which neighbours matter keep their order, the others are passed on."""

from collections.abc import Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, concat
from gpu_align._symmetry._power import AxisPowers, TensorPowers, homogeneous, placed, set_zero
from gpu_align._symmetry._rules._shapes import moved_powers
from gpu_align._symmetry._rules._table import (
    Call,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    replaced,
    tensors_given,
    unknown,
    without,
)
from gpu_align._symmetry._splits import TensorAxes

_MAX_POOLS = tuple(f"max_pool{n}d" for n in (1, 2, 3))
_AVERAGE_POOLS = (
    *(f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg") for n in (1, 2, 3)),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
)
_UPSAMPLINGS = (
    *("upsample_nearest1d", "upsample_linear1d", "upsample_nearest2d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "upsample_nearest3d", "upsample_trilinear3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa"),
)


def _spatial(call: Call, input: TensorAxes, count: int) -> tuple[TensorAxes, TensorAxes]:
    """Pin the last `count` axes of `input`; return the others and the output's spatial axes."""
    call.pin(input[-count:])
    out = TensorAxes(call.pinned(size) for size in call.shape[-count:])
    return TensorAxes(input[:-count]), out


@axis_rule(*_MAX_POOLS, *_AVERAGE_POOLS, *_UPSAMPLINGS, "lp_pool1d", "lp_pool2d")
def _pool(call: Call, **arguments: Any) -> TensorAxes:
    # How many axes are spatial the name says: `max_pool2d`.
    count = next(n for n in (1, 2, 3) if f"{n}d" in call.op)
    kept, places = _spatial(call, tensors_given(arguments)[0], count)
    return TensorAxes((*kept, *places))


@power_rule(*_AVERAGE_POOLS, *_UPSAMPLINGS)
def _average_powers(call: PowerCall, **arguments: Any) -> TensorPowers:
    """Each output is a sum of inputs of the same channel; their places are pinned."""
    return placed(call.output, tensors_given(arguments)[0].powers)


@power_rule(*_MAX_POOLS)
def _max_pool_powers(call: PowerCall, **arguments: Any) -> TensorPowers:
    return TensorPowers(homogeneous(axis) for axis in _average_powers(call, **arguments))


@axis_rule("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d")
@axis_rule("adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool1d_with_indices")
def _pool_with_indices(call: Call, **arguments: Any) -> tuple[TensorAxes, ...]:
    return (_pool(call, **arguments),) * 2


@axis_rule("pixel_shuffle")
def _pixel_shuffle(call: Call, self: TensorAxes, upscale_factor: int) -> TensorAxes:
    """Channels c r r become places: c is free, the places inside a channel are not."""
    (*batch, channels), spatial = _spatial(call, self, 2)
    kept, inner = AxisClass(call.shape[-3]), call.pinned(upscale_factor**2)
    call.refine(channels, Structure.PRODUCT, [kept, inner])
    return TensorAxes((*batch, kept, *spatial))


@axis_rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call, self: TensorAxes, downscale_factor: int) -> TensorAxes:
    """Places become channels: each of the c channels has r r of them now."""
    (*batch, channels), spatial = _spatial(call, self, 2)
    made = AxisClass(call.shape[-3])
    call.refine(made, Structure.PRODUCT, [channels, call.pinned(downscale_factor**2)])
    return TensorAxes((*batch, made, *spatial))


power_rule("pixel_shuffle", "pixel_unshuffle")(moved_powers)


@axis_rule("constant_pad_nd", "pad")
def _pad(
    call: Call, self: TensorAxes, pad: list[int], mode: str = "constant", value: Any = None
) -> TensorAxes:
    """Constants beside units are places of their own; reflections depend on the order."""
    out = list(self)
    for number, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        if (before, after) == (0, 0):
            continue
        if mode == "constant" and before >= 0 and after >= 0:
            out[-number] = concat([call.pinned(before), self[-number], call.pinned(after)])
        else:
            call.pin((self[-number],))
            out[-number] = call.pinned(call.shape[-number])
    return TensorAxes(out)


@power_rule("constant_pad_nd", "pad")
def _pad_powers(
    call: PowerCall, self: TensorPowers, pad: list[int], mode: str = "constant", value: Any = None
) -> TensorPowers:
    """Zeros stay zeros; other constants are not multiplied, wherever they are put."""
    if mode == "constant" and value:
        return unknown(call, [self])
    padded = {len(self) - 1 - number // 2 for number, places in enumerate(pad) if places}
    return TensorPowers(
        AxisPowers(new.axis, old.powers) if number in padded else old
        for number, (old, new) in enumerate(zip(self, call.output, strict=True))
    )


@axis_rule("cumprod", "logcumsumexp", "flip", "roll")
def ordered(call: Call, self: TensorAxes, **arguments: Any) -> TensorAxes:
    """Pin the axes along which it goes, all if none is named."""
    dims = arguments.get("dim", arguments.get("dims"))
    if not isinstance(dims, int | list) or dims == []:
        dims = list(range(len(self)))
    out = self
    for dim in [dims] if isinstance(dims, int) else dims:
        place = dim % len(self)
        call.pin(self[place : place + 1])
        out = replaced(out, place, call.pinned(call.shape[place]))
    return out


power_rule("flip", "roll")(moved_powers)


@axis_rule("diff")
def _difference(
    call: Call,
    self: TensorAxes,
    dim: int = -1,
    prepend: TensorAxes | None = None,
    append: TensorAxes | None = None,
    **_: Any,
) -> TensorAxes:
    place = dim % len(self)
    given = [axes for axes in (self, prepend, append) if axes is not None]
    call.pin(axes[place] for axes in given)
    broadcast(call, [without(axes, [dim]) for axes in given])
    return replaced(self, place, call.pinned(call.shape[place]))


@axis_rule("tril", "triu")
def _triangle(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    call.pin(self[-2:])
    return self


power_rule("tril", "triu")(moved_powers)


@axis_rule("cummax", "cummin")
def _ordered_with_places(call: Call, self: TensorAxes, dim: int) -> tuple[TensorAxes, ...]:
    return (ordered(call, self, dim=dim),) * 2


@axis_rule("linspace", "eye", "tril_indices", "triu_indices")
def _numbered(call: Call, **_: Any) -> TensorAxes:
    return TensorAxes(call.pinned(size) for size in call.shape)


@axis_rule("im2col")
def _windows(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """Places of a window become channels: each of the c channels has all of them."""
    (*batch, channels), _places = _spatial(call, self, 2)
    inner = call.pinned(call.shape[-2] // channels.size)
    made = AxisClass(call.shape[-2])
    call.refine(made, Structure.PRODUCT, [channels, inner])
    return TensorAxes((*batch, made, call.pinned(call.shape[-1])))


@axis_rule("col2im")
def _summed_windows(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """The other way round: entries for the same place are added up."""
    *batch, channels, windows = self
    kept = AxisClass(call.shape[-3])
    call.refine(channels, Structure.PRODUCT, [kept, call.pinned(channels.size // kept.size)])
    call.pin((windows,))
    return TensorAxes((*batch, kept, *(call.pinned(size) for size in call.shape[-2:])))


@axis_rule("unfold")
def _unfold(call: Call, self: TensorAxes, dimension: int, **_: Any) -> TensorAxes:
    """Windows along one axis: their number, and the places inside each as a last axis."""
    if not self:
        return TensorAxes(call.pinned(size) for size in call.shape)
    place = dimension % len(self)
    call.pin((self[place],))
    windows = replaced(self, place, call.pinned(call.shape[place]))
    return TensorAxes((*windows, call.pinned(call.shape[-1])))


power_rule("im2col", "col2im", "unfold")(moved_powers)


@axis_rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def _sampled(call: Call, input: TensorAxes, grid: TensorAxes, **_: Any) -> TensorAxes:
    """Maps [N, C, ...] are read at places [N, ..., 2 or 3]."""
    call.pin((*input[2:], grid[-1]))
    call.unify(input[0], grid[0])
    return TensorAxes((input[0], input[1], *grid[1:-1]))


@power_rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def _sampled_powers(
    call: PowerCall, input: TensorPowers, grid: TensorPowers, **_: Any
) -> TensorPowers:
    set_zero((input[0], *grid))
    return TensorPowers((call.output[0], input[1], *call.output[2:]))


@axis_rule("diagonal")
def _diagonal(
    call: Call, self: TensorAxes, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> TensorAxes:
    """The same place along two axes."""
    kept = without(self, [dim1, dim2])
    if offset == 0 and self[dim1].size == self[dim2].size:
        call.unify(self[dim1], self[dim2])
        return TensorAxes((*kept, self[dim1]))
    call.pin((self[dim1], self[dim2]))
    return TensorAxes((*kept, call.pinned(call.shape[-1])))


@axis_rule("trace")
def _trace(call: Call, self: TensorAxes) -> TensorAxes:
    call.unify(self[0], self[1])
    return TensorAxes()


@axis_rule("bucketize")
def _bucketize(call: Call, self: TensorAxes, boundaries: TensorAxes, **_: Any) -> TensorAxes:
    call.pin(boundaries)
    return self


_FOURIER = tuple(f"fft_{kind}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"))


@axis_rule(*_FOURIER)
def _transform(call: Call, self: TensorAxes, dim: int = -1, **_: Any) -> TensorAxes:
    return ordered(call, self, dim=dim)


@axis_rule(*(f"{op}2" for op in _FOURIER))
def _transform_of_places(
    call: Call, self: TensorAxes, dim: Sequence[int] = (-2, -1), **_: Any
) -> TensorAxes:
    return ordered(call, self, dim=list(dim))


@axis_rule(*(f"{op}n" for op in _FOURIER), "fft_fftshift", "fft_ifftshift")
def _transform_of_all(
    call: Call, self: TensorAxes, dim: list[int] | None = None, **_: Any
) -> TensorAxes:
    return ordered(call, self, dim=dim)


@axis_rule("max_unpool2d", "max_unpool3d")
def _unpool(call: Call, self: TensorAxes, indices: TensorAxes, **_: Any) -> TensorAxes:
    """Back to the places where the largest had been, for each channel."""
    broadcast(call, [self, indices])
    kept, places = _spatial(call, self, 3 if call.op.endswith("3d") else 2)
    return TensorAxes((*kept, *places))


@axis_rule("affine_grid_generator")
def _affine_grid(call: Call, theta: TensorAxes, **_: Any) -> TensorAxes:
    call.pin(theta[1:])
    return TensorAxes((theta[0], *(call.pinned(size) for size in call.shape[1:])))
