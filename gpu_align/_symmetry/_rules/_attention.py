"""Fused attention: softmax(q k^T) v for every head at once."""

from typing import Any

from gpu_align._symmetry._classes import AxisClass, product
from gpu_align._symmetry._power import TensorPowers, set_opposite, set_zero
from gpu_align._symmetry._rules._table import (
    Call,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    replaced,
)
from gpu_align._symmetry._splits import TensorAxes


@axis_rule("scaled_dot_product_attention")
def _attention(
    call: Call,
    query: TensorAxes,
    key: TensorAxes,
    value: TensorAxes,
    attn_mask: TensorAxes | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
    **_: Any,
) -> TensorAxes:
    """Queries [..., L, E], keys [..., S, E], values [..., S, V]; a mask for scores [..., L, S].

    With `enable_gqa` several neighbouring query heads share a key head.
    """
    if enable_gqa:
        key, value = (_repeat_heads(axes, query[-3].size) for axes in (key, value))
    batch = broadcast(call, [TensorAxes(axes[:-2]) for axes in (query, key, value)])
    rows, columns = query[-2], key[-2]
    call.unify(query[-1], key[-1])
    call.unify(columns, value[-2])
    scores = TensorAxes((*batch, rows, columns))
    if attn_mask is not None:
        scores = broadcast(call, [scores, attn_mask])
    if is_causal:
        call.pin((rows, columns))
    call.visit((*scores, query[-1]))
    call.visit(scores)
    call.visit(scores[:-1])
    call.visit((*scores, value[-1]))
    return TensorAxes((*scores[:-1], value[-1]))


@power_rule("scaled_dot_product_attention")
def _attention_powers(
    call: PowerCall,
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


def _repeat_heads(axes: TensorAxes, count: int) -> TensorAxes:
    repeats = AxisClass(count // axes[-3].size)
    return replaced(axes, len(axes) - 3, product([axes[-3], repeats]))


@axis_rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention")
@axis_rule("_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention")
def _backend_attention(
    call: Call,
    query: TensorAxes,
    key: TensorAxes,
    value: TensorAxes,
    attn_mask: TensorAxes | None = None,
    attn_bias: TensorAxes | None = None,
    is_causal: bool = False,
    **_: Any,
) -> Any:
    """What the fused op is decomposed into; further outputs are for the backward pass."""
    mask = attn_mask if attn_mask is not None else attn_bias
    out = _attention(call, query, key, value, mask, is_causal)
    return out, *(TensorAxes(call.pinned(n) for n in shape) for shape in call.shapes[1:])
