"""Normalisation: the parameters lie on the axes that they scale.

Each visits its statistics, which have the axes that are not normalised.
"""

from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, recut
from gpu_align._symmetry._power import TensorPowers, odd, set_equal, signs_only
from gpu_align._symmetry._rules._pointwise import powers_of_product
from gpu_align._symmetry._rules._table import (
    Call,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    unknown,
    without,
)
from gpu_align._symmetry._splits import TensorAxes


@axis_rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
def _softmax(call: Call, self: TensorAxes, dim: int, **_: Any) -> TensorAxes:
    """It commutes with any reordering, also of the axis it sums over."""
    call.visit(without(self, [dim]))
    return self


@axis_rule("batch_norm", "instance_norm")
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
    call.visit(input[1:2] if call.op == "batch_norm" else input[:2])
    return input


@power_rule("batch_norm")
def _batch_norm_powers(
    call: PowerCall,
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


@axis_rule("_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm")
def _native_batch_norm(call: Call, input: TensorAxes, **arguments: Any) -> tuple[TensorAxes, ...]:
    """Further outputs are statistics of the batch, which have no places in evaluation mode."""
    parameters = {"weight": None, "bias": None, "running_mean": None, "running_var": None}
    out = _batch_norm(Call("batch_norm", call.shapes), input, **{**parameters, **arguments})
    call.visit(input[1:2])
    none = (AxisClass(0),)
    return (out, *(TensorAxes(input[1:2] if n else none) for (n,) in call.shapes[1:]))


@power_rule("_native_batch_norm_legit_no_training")
def _native_batch_norm_powers(
    call: PowerCall, input: TensorPowers, **arguments: Any
) -> tuple[TensorPowers, ...]:
    """Further outputs are for the backward pass."""
    return _batch_norm_powers(call, input, **arguments), *call.outputs[1:]


@axis_rule("layer_norm", "rms_norm")
def _layer_norm(
    call: Call,
    input: TensorAxes,
    normalized_shape: list[int],
    weight: TensorAxes | None = None,
    bias: TensorAxes | None = None,
    **_: Any,
) -> TensorAxes:
    for parameter in (weight, bias):
        if parameter is not None:
            broadcast(call, [input, parameter])
    call.visit(input[: -len(normalized_shape)])
    return input


@power_rule("rms_norm")
def _rms_norm_powers(
    call: PowerCall,
    input: TensorPowers,
    normalized_shape: Any,
    weight: TensorPowers | None = None,
    eps: float | None = None,
) -> TensorPowers:
    """The mean of squares does not see signs."""
    normalized = TensorPowers(odd(axis) for axis in input)
    return normalized if weight is None else powers_of_product(normalized, weight)


@axis_rule("native_layer_norm")
def _native_layer_norm(
    call: Call, input: TensorAxes, normalized_shape: list[int], **arguments: Any
) -> tuple[TensorAxes, ...]:
    out = _layer_norm(call, input, normalized_shape, **arguments)
    count = len(normalized_shape)
    statistics = TensorAxes((*input[:-count], *(AxisClass(1) for _ in range(count))))
    return out, statistics, statistics


@axis_rule("group_norm")
def _group_norm(
    call: Call,
    input: TensorAxes,
    num_groups: int,
    weight: TensorAxes | None = None,
    bias: TensorAxes | None = None,
    **_: Any,
) -> TensorAxes:
    """Units stay together in their normalisation group; one group, or groups of one, tie none."""
    batch, channels = input[:2]
    for parameter in (weight, bias):
        if parameter is not None:
            call.unify(channels, parameter[0])
    if num_groups == 1:
        call.visit([batch])
    elif num_groups == channels.size:
        call.visit([batch, channels])
    else:
        # How to say it depends on where the channels come from and go to.
        named = Call(f"{call.op} with num_groups={num_groups}", call.shapes, visited=call.visited)
        size = channels.size // num_groups
        call.deferred.append(lambda: _keep_groups(named, batch, channels, size))
    return input


def _keep_groups(call: Call, batch: AxisClass, channels: AxisClass, size: int) -> None:
    """Cut channels into normalisation groups of `size` units.

    A part of a concatenation that has groups of its own only is a product of them, and they may
    be exchanged; where a group straddles two parts each group around has an order of its own.
    """
    parts = channels.flat_parts(Structure.CONCAT)
    extents: list[int] = []
    straddling = 0
    for part in parts:
        if straddling == 0 and part.size % size == 0:
            extents.append(part.size)
        else:
            straddling += part.size
            if straddling % size == 0:
                extents += [size] * (straddling // size)
                straddling = 0
    cut = recut(parts, extents, Structure.CONCAT, call.reason)
    assert cut is not None
    for extent, pieces in zip(extents, cut, strict=True):
        groups = AxisClass(extent // size)
        if groups.size > 1:
            call.refine(pieces[0], Structure.PRODUCT, [groups, AxisClass(size)])
        call.visit([batch, groups])


@axis_rule("native_group_norm")
def _native_group_norm(
    call: Call,
    input: TensorAxes,
    weight: TensorAxes | None,
    bias: TensorAxes | None,
    group: int,
    **_: Any,
) -> tuple[TensorAxes, ...]:
    out = _group_norm(call, input, group, weight, bias)
    statistics = [TensorAxes((input[0], call.pinned(group))) for _ in call.shapes[1:]]
    return (out, *statistics)


@axis_rule("_weight_norm")
def _weight_norm(call: Call, v: TensorAxes, g: TensorAxes, dim: int = 0) -> TensorAxes:
    """Slices of `v` along one axis are brought to the lengths `g`, which has size 1 elsewhere."""
    if dim == -1:
        call.visit(())
        return v
    call.visit(v[dim : dim + 1])
    return broadcast(call, [v, g])


@power_rule("_weight_norm")
def _weight_norm_powers(
    call: PowerCall, v: TensorPowers, g: TensorPowers, dim: int = 0
) -> TensorPowers:
    """Lengths do not see signs; of a slice as a whole its scale is not seen."""
    if dim == -1:
        return unknown(call, [v, g])
    directions = TensorPowers(
        signs_only(axis) if number == dim else odd(axis) for number, axis in enumerate(v)
    )
    directions.is_stored = v.is_stored
    return powers_of_product(directions, g)


@axis_rule("_weight_norm_interface")
def _weight_norm_and_lengths(
    call: Call, v: TensorAxes, g: TensorAxes, dim: int = 0
) -> tuple[TensorAxes, ...]:
    return _weight_norm(call, v, g, dim), g


@power_rule("_weight_norm_interface")
def _weight_norm_and_lengths_powers(
    call: PowerCall, v: TensorPowers, g: TensorPowers, dim: int = 0
) -> tuple[TensorPowers, ...]:
    """The lengths are for the backward pass."""
    return _weight_norm_powers(call, v, g, dim), *call.outputs[1:]


@axis_rule("norm_except_dim")
def _norm_except(call: Call, v: TensorAxes, dim: int = 0, **_: Any) -> TensorAxes:
    if dim == -1:
        return TensorAxes()
    return TensorAxes(axis if number == dim else AxisClass(1) for number, axis in enumerate(v))


@axis_rule("_fused_rms_norm")
def _fused_rms_norm(
    call: Call, input: TensorAxes, normalized_shape: list[int], **arguments: Any
) -> tuple[TensorAxes, ...]:
    return _native_layer_norm(call, input, normalized_shape, **arguments)[:2]
