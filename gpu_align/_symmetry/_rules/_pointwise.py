"""Pointwise ops: axes that meet by broadcasting are one class. And tensors made of constants."""

from typing import Any

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._rules._table import Call, Constant, TensorAxes, broadcast, rule


@rule(
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "threshold"),
    *("hardtanh", "hardswish", "hardsigmoid", "sigmoid", "log_sigmoid", "softplus", "hardshrink"),
    *("softshrink", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "square"),
    *("reciprocal", "abs", "neg", "sign", "sgn", "erf", "erfc", "erfinv", "logit", "floor", "ceil"),
    *("round", "trunc", "frac", "nan_to_num", "isnan", "isinf", "isfinite"),
    *("clamp", "clip", "clamp_min", "clamp_max", "add", "sub", "subtract", "rsub", "mul"),
    *("multiply", "div", "divide", "true_divide", "floor_divide", "remainder", "fmod", "pow"),
    *("float_power", "maximum", "minimum", "fmax", "fmin", "atan2", "hypot", "logaddexp", "xlogy"),
    *("addcmul", "addcdiv", "lerp", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge"),
    *("logical_not", "logical_and", "logical_or", "logical_xor", "bitwise_not", "bitwise_and"),
    *("bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__", "complex", "polar", "conj"),
    *("real", "imag", "angle", "copy", "fill", "zero"),
    *("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout"),
)
def _pointwise(call: Call, **arguments: Any) -> Any:
    """Also writing into a tensor, and dropout, which does nothing in evaluation mode."""
    out = broadcast(call, [value for value in arguments.values() if isinstance(value, TensorAxes)])
    return out if len(call.shapes) == 1 else (out,) * len(call.shapes)


@rule("clone", "contiguous", "detach", "alias", "lift", "lift_fresh", "lift_fresh_copy")
@rule("to", "_to_copy", "type_as", "resolve_conj", "resolve_neg", "positive")
def _same(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    return self


@rule("prelu")
def _prelu(call: Call, self: TensorAxes, weight: TensorAxes) -> TensorAxes:
    if weight and weight[0].size != 1:
        call.unify(self[1 if len(self) > 1 else 0], weight[0])
    return self


@rule("zeros", "ones", "full", "scalar_tensor", "new_zeros", "new_ones", "new_full")
@rule("zeros_like", "ones_like", "full_like")
def _constant(call: Call, **_: Any) -> TensorAxes:
    """All places are alike, so any order will do."""
    return Constant(AxisClass(size) for size in call.shape)


@rule("view_as_complex")
def _view_as_complex(call: Call, self: TensorAxes) -> TensorAxes:
    call.pin(self[-1:])
    return TensorAxes(self[:-1])


@rule("view_as_real")
def _view_as_real(call: Call, self: TensorAxes) -> TensorAxes:
    return TensorAxes((*self, call.pinned(2)))
