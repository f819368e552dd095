"""One rule per family of ATen ops: what an op says about the axes of its inputs and outputs.

A rule is called with the op's arguments by their schema names, tensors as `TensorAxes` (one
AxisClass per axis), and returns the axes of the output (a tuple of them for several outputs). It
may unify axes that must be reordered together, refine an axis into parts, and pin axes whose order
matters. An op without a rule pins all axes it touches: fewer symmetries, never a wrong one.

To add an op: one entry here, one case in tests/test_discovery.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, concat, line_up, product


class TensorAxes(tuple[AxisClass, ...]):
    """The axis classes of one tensor in the graph."""


@dataclass(frozen=True)
class Call:
    """The op being traced: its name for messages and the shapes of its outputs."""

    op: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.shapes[0]

    def unify(self, a: AxisClass, b: AxisClass) -> None:
        """Tie two axes; if they cannot be tied this op is named as what pins them."""
        a.unify(b, f"op {self.op}")

    def pin(self, axes: tuple[AxisClass, ...]) -> None:
        """Fix the order along the axes because of this op."""
        for axis in axes:
            axis.pin(f"op {self.op}")

    def pinned(self, size: int) -> AxisClass:
        """Return a new axis whose order is fixed by this op."""
        return AxisClass(size, pinned=f"op {self.op}")


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named ATen ops (in-place variants included)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def _spatial(call: Call, input: TensorAxes, count: int) -> tuple[TensorAxes, TensorAxes]:
    """Pin the last `count` axes of `input`; return the others and the output's spatial axes."""
    call.pin(input[-count:])
    out = TensorAxes(call.pinned(size) for size in call.shape[-count:])
    return TensorAxes(input[:-count]), out


# Contractions: the summed axes of both operands are one class.


@rule("linear")
def _linear(
    call: Call, input: TensorAxes, weight: TensorAxes, bias: TensorAxes | None = None
) -> TensorAxes:
    call.unify(input[-1], weight[-1])
    if bias is not None:
        call.unify(bias[0], weight[0])
    return TensorAxes((*input[:-1], *weight[:-1]))


@rule("conv1d", "conv2d", "conv3d")
def _convolution(
    call: Call,
    input: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None = None,
    groups: int = 1,
    **_: Any,
) -> TensorAxes:
    count = len(weight) - 2
    call.pin(weight[2:])
    (*batch, channels), spatial = _spatial(call, input, count)
    if groups == 1:
        call.unify(channels, weight[1])
    elif groups == channels.size:
        # Depthwise: each channel makes its own outputs, in the same order in every channel.
        multiple = AxisClass(weight[0].size // groups)
        call.unify(weight[0], product([channels, multiple]))
    else:
        grouped = Call(f"{call.op} with groups={groups}", call.shapes)
        grouped.pin((channels, weight[0], weight[1]))
    if bias is not None:
        call.unify(bias[0], weight[0])
    return TensorAxes((*batch, weight[0], *spatial))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(
    call: Call,
    input: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None = None,
    groups: int = 1,
    **_: Any,
) -> TensorAxes:
    """The weight is [in, out / groups, ...], the other way round than a convolution's."""
    call.pin(weight[2:])
    (*batch, channels), spatial = _spatial(call, input, len(weight) - 2)
    if groups > 1:
        grouped = Call(f"{call.op} with groups={groups}", call.shapes)
        grouped.pin((channels, weight[0], weight[1]))
        out = AxisClass(weight[1].size * groups, pinned=f"op {grouped.op}")
    else:
        call.unify(channels, weight[0])
        out = weight[1]
    if bias is not None:
        call.unify(bias[0], out)
    return TensorAxes((*batch, out, *spatial))


@rule("matmul", "mm", "bmm")
def _matmul(
    call: Call,
    self: TensorAxes,
    other: TensorAxes | None = None,
    mat2: TensorAxes | None = None,
    **_: Any,
) -> TensorAxes:
    right = other if other is not None else mat2
    assert right is not None
    call.unify(self[-1], right[-2] if len(right) > 1 else right[0])
    batch = _broadcast(call, [TensorAxes(self[:-2]), TensorAxes(right[:-2])])
    rows = self[-2:-1] if len(self) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return TensorAxes((*batch, *rows, *columns))


@rule("addmm")
def _addmm(
    call: Call, self: TensorAxes, mat1: TensorAxes, mat2: TensorAxes, **_: Any
) -> TensorAxes:
    return _broadcast(call, [self, _matmul(call, mat1, mat2)])


@rule("embedding")
def _embedding(call: Call, weight: TensorAxes, indices: TensorAxes, **_: Any) -> TensorAxes:
    call.pin(weight[:1])
    return TensorAxes((*indices, weight[1]))


# Pointwise ops: axes that meet by broadcasting are one class.


def _broadcast(call: Call, operands: list[TensorAxes]) -> TensorAxes:
    rank = max(len(axes) for axes in operands)
    out: list[AxisClass] = []
    for place in range(-rank, 0):
        met = [axes[place] for axes in operands if len(axes) >= -place]
        wide = [axis for axis in met if axis.size != 1] or met
        for axis in wide[1:]:
            call.unify(wide[0], axis)
        out.append(wide[0])
    return TensorAxes(out)


@rule(
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "threshold"),
    *("hardtanh", "hardswish", "hardsigmoid", "sigmoid", "log_sigmoid", "softplus", "tanh"),
    *("sin", "cos", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal"),
    *("abs", "neg", "sign", "erf", "erfc", "floor", "ceil", "round", "clamp", "clamp_min"),
    *("clamp_max", "add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "where"),
    *("addcmul", "addcdiv", "lerp", "eq", "ne", "lt", "le", "gt", "ge", "logical_not"),
    *("logical_and", "logical_or", "masked_fill", "dropout", "alpha_dropout", "feature_dropout"),
    *("feature_alpha_dropout", "clone", "contiguous", "detach", "alias", "to", "_to_copy"),
    *("zeros_like", "ones_like", "full_like", "softmax", "log_softmax", "_softmax"),
    "_log_softmax",
)
def _pointwise(call: Call, **arguments: Any) -> TensorAxes:
    """Softmax belongs here too: it commutes with any reordering, also of the axis it sums over."""
    return _broadcast(
        call, [value for value in arguments.values() if isinstance(value, TensorAxes)]
    )


@rule("type_as")
def _type_as(call: Call, self: TensorAxes, other: TensorAxes) -> TensorAxes:
    return self


@rule("prelu")
def _prelu(call: Call, self: TensorAxes, weight: TensorAxes) -> TensorAxes:
    if weight and weight[0].size != 1:
        call.unify(self[1 if len(self) > 1 else 0], weight[0])
    return self


# Normalisation: the parameters lie on the axes that they scale.


@rule("batch_norm", "instance_norm")
def _batch_norm(
    call: Call,
    input: TensorAxes,
    weight: TensorAxes | None,
    bias: TensorAxes | None,
    running_mean: TensorAxes | None,
    running_var: TensorAxes | None,
    **_: Any,
) -> TensorAxes:
    for parameter in (weight, bias, running_mean, running_var):
        if parameter is not None:
            call.unify(input[1], parameter[0])
    return input


@rule("layer_norm", "rms_norm")
def _layer_norm(
    call: Call,
    input: TensorAxes,
    weight: TensorAxes | None = None,
    bias: TensorAxes | None = None,
    **_: Any,
) -> TensorAxes:
    for parameter in (weight, bias):
        if parameter is not None:
            _broadcast(call, [input, parameter])
    return input


@rule("group_norm")
def _group_norm(
    call: Call,
    input: TensorAxes,
    num_groups: int,
    weight: TensorAxes | None = None,
    bias: TensorAxes | None = None,
    **_: Any,
) -> TensorAxes:
    """Units stay inside their normalisation group; one group, or groups of one, tie nothing."""
    channels = input[1]
    if 1 < num_groups < channels.size:
        parts = [AxisClass(channels.size // num_groups) for _ in range(num_groups)]
        channels.refine(Structure.CONCAT, parts, f"op {call.op} with num_groups={num_groups}")
    for parameter in (weight, bias):
        if parameter is not None:
            call.unify(channels, parameter[0])
    return input


# Pooling and resampling: channels keep their order, places do not move.


@rule(*(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)))
def _pool(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    kept, places = _spatial(call, self, _dimensions(call))
    return TensorAxes((*kept, *places))


@rule("upsample_nearest1d", "upsample_linear1d", "upsample_nearest2d", "upsample_bilinear2d")
@rule("upsample_bicubic2d", "upsample_nearest3d", "upsample_trilinear3d")
def _upsample(call: Call, input: TensorAxes, **_: Any) -> TensorAxes:
    kept, places = _spatial(call, input, _dimensions(call))
    return TensorAxes((*kept, *places))


def _dimensions(call: Call) -> int:
    """Return the number of spatial axes, which ends the op's name: `max_pool2d`."""
    return int(call.op.removesuffix("d")[-1])


@rule("pixel_shuffle")
def _pixel_shuffle(call: Call, self: TensorAxes, upscale_factor: int) -> TensorAxes:
    """Channels c r r become places: c is free, the places inside a channel are not."""
    (*batch, channels), spatial = _spatial(call, self, 2)
    kept, inner = AxisClass(call.shape[-3]), call.pinned(upscale_factor**2)
    channels.refine(Structure.PRODUCT, [kept, inner], f"op {call.op}")
    return TensorAxes((*batch, kept, *spatial))


# Symmetric reductions do not see the order of what they reduce.


@rule("mean", "sum", "amax", "amin", "prod", "logsumexp", "var", "std", "linalg_vector_norm")
def _reduction(
    call: Call, self: TensorAxes, dim: Any = None, keepdim: bool = False, **_: Any
) -> TensorAxes:
    dims = range(len(self)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    reduced = {number % len(self) for number in dims} if self else set()
    kept = [
        AxisClass(1) if number in reduced else axis
        for number, axis in enumerate(self)
        if keepdim or number not in reduced
    ]
    return TensorAxes(kept)


# Changes of shape.


@rule("view", "reshape", "_unsafe_view", "view_as", "reshape_as")
@rule("flatten", "unflatten", "squeeze", "unsqueeze")
def _reshape(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """Merge neighbouring axes into products and split axes into factors, slowest first."""
    out = TensorAxes(AxisClass(size) for size in call.shape)
    finest = [leaf for axis in self for leaf in axis.factors() if leaf.size != 1]
    blocks = line_up(finest, [axis for axis in out if axis.size != 1], Structure.PRODUCT)
    if blocks is None:
        call.pin(self)
        call.pin(out)
        return out
    for before, after in blocks:
        if len(after) == 1:
            after[0].refine(Structure.PRODUCT, before, f"op {call.op}")
        else:
            before[0].refine(Structure.PRODUCT, after, f"op {call.op}")
    return out


# Concatenation, and its inverse.


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
    return TensorAxes((*parts[0][:place], along, *parts[0][place + 1 :]))


def _cut(call: Call, self: TensorAxes, dim: int, sizes: list[int]) -> list[TensorAxes]:
    """Cut an axis into neighbouring parts; units then stay inside their part."""
    place = dim % len(self)
    parts = [AxisClass(size) for size in sizes]
    self[place].refine(Structure.CONCAT, parts, f"op {call.op}")
    return [TensorAxes((*self[:place], part, *self[place + 1 :])) for part in parts]


@rule("split", "split_with_sizes", "chunk", "tensor_split")
def _split(call: Call, self: TensorAxes, dim: int = 0, **_: Any) -> tuple[TensorAxes, ...]:
    return tuple(_cut(call, self, dim, [shape[dim] for shape in call.shapes]))


@rule("unbind")
def _unbind(call: Call, self: TensorAxes, dim: int = 0) -> tuple[TensorAxes, ...]:
    place = dim % len(self)
    call.pin(self[place : place + 1])
    return (TensorAxes((*self[:place], *self[place + 1 :])),) * len(call.shapes)


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
        return TensorAxes((*self[: dim % len(self)], call.pinned(call.shape[dim]), *self[dim:][1:]))
    first, last, _ = slice(start, end).indices(size)
    last = max(first, last)
    return _cut(call, self, dim, [first, last - first, size - last])[1]


@rule("select")
def _select(call: Call, self: TensorAxes, dim: int, index: int) -> TensorAxes:
    place, size = dim % len(self), self[dim].size
    first = index % size
    chosen = _cut(call, self, dim, [first, 1, size - first - 1])[1]
    return TensorAxes((*chosen[:place], *chosen[place + 1 :]))


@rule("glu")
def _gated_linear_unit(call: Call, self: TensorAxes, dim: int = -1) -> TensorAxes:
    value, gate = _cut(call, self, dim, [call.shape[dim]] * 2)
    call.unify(value[dim], gate[dim])
    return value


@rule("constant_pad_nd", "pad")
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


@rule("permute")
def _permute(call: Call, self: TensorAxes, dims: list[int]) -> TensorAxes:
    return TensorAxes(self[number] for number in dims)


@rule("transpose", "swapaxes")
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


@rule("expand", "expand_as", "broadcast_to")
def _expand(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    """Repeated places are equal, so their order is free."""
    added = len(call.shape) - len(self)
    old = [None] * added + list(self)
    return TensorAxes(
        axis if axis is not None and axis.size == size else AxisClass(size)
        for axis, size in zip(old, call.shape, strict=True)
    )
