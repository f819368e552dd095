"""Gauge rules of contractions, attention, norms, pooling and recurrence."""

from collections.abc import Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure
from gpu_align._symmetry._gauge._pointwise import added, product
from gpu_align._symmetry._gauge._power import (
    AxisPowers,
    TensorPowers,
    UnmatchedError,
    homogeneous,
    multiplied,
    odd,
    placed,
    set_equal,
    set_opposite,
    set_zero,
)
from gpu_align._symmetry._gauge._table import GaugeCall, first_tensor, rule, unknown

# Contractions: what is summed over is multiplied by opposite powers.


@rule("linear")
def _linear(
    call: GaugeCall, input: TensorPowers, weight: TensorPowers, bias: TensorPowers | None = None
) -> TensorPowers:
    set_opposite(input[-1], weight[-1])
    made = TensorPowers((*input[:-1], *weight[:-1]))
    return made if bias is None else added(call, [made, bias])


@rule("conv1d", "conv2d", "conv3d")
def _convolution(
    call: GaugeCall,
    input: TensorPowers,
    weight: TensorPowers,
    bias: TensorPowers | None = None,
    groups: int = 1,
    **_: Any,
) -> TensorPowers:
    """The weight is [groups * out, in, ...] for an input of groups * in channels."""
    count = len(weight) - 2
    *batch, channels = input[:-count]
    shared, inner = _apart(channels, weight[1])
    same, made = weight[0].powers[: len(shared.powers)], weight[0].powers[len(shared.powers) :]
    if inner.powers or made:
        _check_product(groups, channels, weight[0])
    set_opposite(inner, weight[1])
    passed = multiplied(shared, AxisPowers(weight[0].axis, same), (False, True))
    out = AxisPowers(weight[0].axis, passed.powers + made)
    return _with_bias(call, [*batch, out], count, bias)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(
    call: GaugeCall,
    input: TensorPowers,
    weight: TensorPowers,
    bias: TensorPowers | None = None,
    groups: int = 1,
    **_: Any,
) -> TensorPowers:
    """The weight is [groups * in, out, ...] for an output of groups * out channels."""
    count = len(weight) - 2
    *batch, channels = input[:-count]
    out = call.output[-count - 1]
    number = len(out.powers) - len(weight[1].powers)
    shared, inner = channels.powers[:number], channels.powers[number:]
    same, reads = weight[0].powers[:number], weight[0].powers[number:]
    if inner or weight[1].powers:
        _check_product(groups, channels, out)
    set_opposite(AxisPowers(channels.axis, inner), AxisPowers(weight[0].axis, reads))
    passed = multiplied(
        AxisPowers(channels.axis, shared), AxisPowers(weight[0].axis, same), (False, True)
    )
    made = AxisPowers(out.axis, passed.powers + weight[1].powers)
    return _with_bias(call, [*batch, made], count, bias)


def _apart(axis: AxisPowers, last: AxisPowers) -> tuple[AxisPowers, AxisPowers]:
    """Take an axis apart that is a product: its first factors, and those of `last`."""
    number = len(axis.powers) - len(last.powers)
    if number < 0:
        raise UnmatchedError
    return AxisPowers(axis.axis, axis.powers[:number]), AxisPowers(axis.axis, axis.powers[number:])


def _check_product(groups: int, *axes: AxisPowers) -> None:
    """Only of a product the last powers are those inside each group."""
    if groups > 1 and any(len(axis.axis.flat_parts(Structure.CONCAT)) > 1 for axis in axes):
        raise UnmatchedError


def _with_bias(
    call: GaugeCall, axes: list[AxisPowers], count: int, bias: TensorPowers | None
) -> TensorPowers:
    """Return the output of a convolution with its `count` spatial axes."""
    made = TensorPowers((*axes, *call.output[-count:]))
    if bias is None:
        return made
    one = AxisPowers(AxisClass(1))
    return added(call, [made, TensorPowers((*bias, *[one] * count))])


@rule("convolution")
def _any_convolution(call: GaugeCall, transposed: bool, **arguments: Any) -> TensorPowers:
    chosen: Any = _transposed_convolution if transposed else _convolution
    return chosen(call, **arguments)


@rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(
    call: GaugeCall,
    self: TensorPowers,
    other: TensorPowers | None = None,
    mat2: TensorPowers | None = None,
    vec: TensorPowers | None = None,
    tensor: TensorPowers | None = None,
    **_: Any,
) -> TensorPowers:
    right = next(axes for axes in (other, mat2, vec, tensor) if axes is not None)
    set_opposite(self[-1], right[-2] if len(right) > 1 else right[0])
    batches = TensorPowers(self[:-2]), TensorPowers(right[:-2])
    for batch, whole in zip(batches, (self, right), strict=True):
        batch.is_stored = whole.is_stored
    rows = self[-2:-1] if len(self) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return TensorPowers((*product(*batches), *rows, *columns))


@rule("addmm")
def _addmm(
    call: GaugeCall, self: TensorPowers, mat1: TensorPowers, mat2: TensorPowers, **_: Any
) -> TensorPowers:
    return added(call, [self, _matmul(call, mat1, mat2)])


@rule("baddbmm")
def _baddbmm(
    call: GaugeCall, self: TensorPowers, batch1: TensorPowers, batch2: TensorPowers, **_: Any
) -> TensorPowers:
    return added(call, [self, _matmul(call, batch1, batch2)])


@rule("outer", "ger")
def _outer(call: GaugeCall, self: TensorPowers, vec2: TensorPowers) -> TensorPowers:
    return TensorPowers((*self, *vec2))


@rule("einsum")
def _einsum(call: GaugeCall, equation: str, tensors: list[TensorPowers], **_: Any) -> TensorPowers:
    """Indices that are summed over stand in two terms, those that are kept in one or two."""
    terms, arrow, made = equation.replace(" ", "").partition("->")
    if not arrow or "." in equation:
        raise UnmatchedError
    found: dict[str, list[tuple[AxisPowers, bool]]] = {}
    for term, axes in zip(terms.split(","), tensors, strict=True):
        for letter, axis in zip(term, axes, strict=True):
            found.setdefault(letter, []).append((axis, axes.is_stored))
    kept = {letter: _met(places, letter in made) for letter, places in found.items()}
    return TensorPowers(kept[letter] for letter in made)


def _met(places: Sequence[tuple[AxisPowers, bool]], is_kept: bool) -> AxisPowers:
    """Return the axis of an index, given where it stands and whether in a stored tensor."""
    (first, stored), *others = places
    if len(others) > 1:
        raise UnmatchedError
    for other, other_stored in others:
        if is_kept:
            return multiplied(first, other, (stored, other_stored))
        set_opposite(first, other)
    if not is_kept and not others:
        set_zero([first])
    return first


@rule("scaled_dot_product_attention")
def _attention(
    call: GaugeCall,
    query: TensorPowers,
    key: TensorPowers,
    value: TensorPowers,
    attn_mask: TensorPowers | None = None,
    **_: Any,
) -> TensorPowers:
    """Scores do not change; values pass through.

    Heads are left alone: what they could do, the dimensions inside them can do.
    """
    set_opposite(query[-1], key[-1])
    set_zero((*query[:-1], *key[:-1], *value[:-1], *(attn_mask or ())))
    return TensorPowers((*call.output[:-1], value[-1]))


@rule("embedding")
def _embedding(
    call: GaugeCall, weight: TensorPowers, indices: TensorPowers, **_: Any
) -> TensorPowers:
    set_zero((weight[0], *indices))
    return TensorPowers((*call.output[: len(indices)], *weight[1:]))


# Normalisation.


@rule("batch_norm")
def _batch_norm(
    call: GaugeCall,
    input: TensorPowers,
    weight: TensorPowers | None,
    bias: TensorPowers | None,
    running_mean: TensorPowers | None,
    running_var: TensorPowers | None,
    **_: Any,
) -> TensorPowers:
    """The statistics fix what comes in; weight and bias make the units anew."""
    unknown(call, [input, running_mean, running_var])
    if weight is None:
        unknown(call, [bias])
        return call.output
    if bias is not None:
        set_equal(weight[0], bias[0])
    return TensorPowers((call.output[0], weight[0], *call.output[2:]))


@rule("_native_batch_norm_legit_no_training")
def _decomposed_batch_norm(
    call: GaugeCall, input: TensorPowers, **arguments: Any
) -> tuple[TensorPowers, ...]:
    """Further outputs are for the backward pass."""
    return _batch_norm(call, input, **arguments), *call.outputs[1:]


@rule("rms_norm")
def _rms_norm(
    call: GaugeCall,
    input: TensorPowers,
    normalized_shape: Any,
    weight: TensorPowers | None = None,
    eps: float | None = None,
) -> TensorPowers:
    """The mean of squares does not see signs."""
    normalized = TensorPowers(odd(axis) for axis in input)
    return normalized if weight is None else product(normalized, weight)


# Pooling and resampling.


@rule(*(f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg") for n in (1, 2, 3)))
@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
@rule("upsample_nearest1d", "upsample_linear1d", "upsample_nearest2d", "upsample_bilinear2d")
@rule("upsample_bicubic2d", "upsample_nearest3d", "upsample_trilinear3d")
@rule("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa")
def _average(call: GaugeCall, **arguments: Any) -> TensorPowers:
    """Each output is a sum of inputs of the same channel; their places are pinned."""
    return placed(call.output, first_tensor(arguments).powers)


@rule(*(f"max_pool{n}d" for n in (1, 2, 3)))
def _max_pool(call: GaugeCall, **arguments: Any) -> TensorPowers:
    return TensorPowers(homogeneous(axis) for axis in _average(call, **arguments))


# Recurrence. Gates let nothing pass but what is read from the input.


@rule("lstm", "gru")
def _gated_layers(
    call: GaugeCall,
    input: TensorPowers,
    hx: Any,
    params: list[TensorPowers],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    read = [params[number * size] for number in range(directions)]
    _read(input, read)
    others = [weight for weight in params if not any(weight is other for other in read)]
    return unknown(call, [hx, others])


@rule("lstm_cell", "gru_cell")
def _gated_cell(call: GaugeCall, input: TensorPowers, w_ih: TensorPowers, **others: Any) -> Any:
    _read(input, [w_ih])
    return unknown(call, others)


def _read(input: TensorPowers, weights: Sequence[TensorPowers]) -> None:
    set_zero(input[:-1])
    for weight in weights:
        set_opposite(input[-1], weight[1])
        set_zero([weight[0]])


@rule("rnn_tanh", "rnn_relu")
def _recurrent_layers(
    call: GaugeCall,
    input: TensorPowers,
    hx: TensorPowers,
    params: list[TensorPowers],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[TensorPowers, ...]:
    """Layers one after another, each in one direction or two."""
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    set_zero(input[:-1])
    features = input[-1]
    states: list[AxisPowers] = []
    for number in range(num_layers * directions):
        if number % directions == 0 and number:
            features = _side_by_side(states[-directions:])
        weights = params[number * size : (number + 1) * size]
        states.append(_step(call, features, *weights))
    last = _side_by_side(states[-directions:])
    everything = _side_by_side(states)
    _start(hx, everything)
    finals = placed(call.outputs[1], everything.powers)
    return TensorPowers((*call.output[:-1], AxisPowers(call.output[-1].axis, last.powers))), finals


def _start(hx: TensorPowers, states: AxisPowers) -> None:
    """Say that the first states [runs, (batch), units] are states; zeros always are."""
    if hx.is_zero and not hx.powers:
        return
    if not set(states.leaves) <= set(hx.leaves):
        raise UnmatchedError
    set_zero(
        AxisPowers(axis.axis, tuple(p for p in axis.powers if p.leaf not in states.leaves))
        for axis in hx
    )
    [first] = placed(TensorPowers([states]), hx.powers)
    set_equal(first, states)


def _side_by_side(states: Sequence[AxisPowers]) -> AxisPowers:
    return AxisPowers(states[0].axis, tuple(power for axis in states for power in axis.powers))


def _step(
    call: GaugeCall,
    features: AxisPowers,
    w_ih: TensorPowers,
    w_hh: TensorPowers,
    *biases: TensorPowers,
) -> AxisPowers:
    """Return the hidden units of act(w_ih x + w_hh h + biases), where h is what it returned."""
    set_opposite(features, w_ih[1])
    set_opposite(w_hh[0], w_hh[1])
    for other in (w_hh, *biases):
        set_equal(w_ih[0], other[0])
    return odd(w_ih[0]) if "tanh" in call.op else homogeneous(w_ih[0])


@rule("rnn_tanh_cell", "rnn_relu_cell")
def _recurrent_cell(
    call: GaugeCall,
    input: TensorPowers,
    hx: TensorPowers,
    w_ih: TensorPowers,
    w_hh: TensorPowers,
    b_ih: TensorPowers | None = None,
    b_hh: TensorPowers | None = None,
) -> TensorPowers:
    set_zero(input[:-1])
    biases = [bias for bias in (b_ih, b_hh) if bias is not None]
    state = _step(call, input[-1], w_ih, w_hh, *biases)
    _start(hx, state)
    return TensorPowers((*call.output[:-1], AxisPowers(call.output[-1].axis, state.powers)))
