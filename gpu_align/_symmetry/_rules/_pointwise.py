"""Pointwise ops: axes that meet by broadcasting are one class. And tensors made of constants."""

from collections.abc import Callable, Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._power import (
    AxisPowers,
    Power,
    TensorPowers,
    absolute,
    even,
    homogeneous,
    inverse,
    multiplied,
    odd,
    set_equal,
    set_zero,
    signs_only,
    unchanged,
)
from gpu_align._symmetry._rules._table import (
    Call,
    Constant,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    tensors_given,
    unknown,
)
from gpu_align._symmetry._splits import TensorAxes

_SPECIAL = tuple(
    f"special_{name}"
    for name in (
        *("expit", "logit", "log1p", "expm1", "exp2", "sinc", "round", "erf", "erfc", "erfcx"),
        *("erfinv", "gammaln", "gammainc", "gammaincc", "digamma", "psi", "polygamma", "zeta"),
        *("multigammaln", "entr", "ndtr", "ndtri", "log_ndtr", "xlogy", "xlog1py"),
        *("i0", "i0e", "i1", "i1e", "airy_ai", "spherical_bessel_j0"),
        *("bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1"),
        *("modified_bessel_i0", "modified_bessel_i1", "modified_bessel_k0", "modified_bessel_k1"),
        *("scaled_modified_bessel_k0", "scaled_modified_bessel_k1"),
    )
)


@axis_rule(
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "threshold"),
    *("rrelu", "rrelu_with_noise", "hardtanh", "hardswish", "hardsigmoid", "sigmoid"),
    *("log_sigmoid", "softplus", "hardshrink", "softshrink", "tanh", "sin", "cos", "tan", "sinc"),
    *("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "arcsin", "arccos"),
    *("arctan", "arcsinh", "arccosh", "arctanh", "exp", "exp2", "expm1", "log", "log2", "log10"),
    *("log1p", "sqrt", "rsqrt", "square", "reciprocal", "abs", "absolute", "neg", "negative"),
    *("sign", "sgn", "signbit", "erf", "erfc", "erfinv", "logit", "lgamma", "digamma", "mvlgamma"),
    *("polygamma", "igamma", "igammac", "i0", "deg2rad", "rad2deg"),
    *("floor", "ceil", "round", "trunc", "fix", "frac", "nan_to_num", "isnan", "isinf", "isfinite"),
    *("isposinf", "isneginf", "isreal", "isclose"),
    *("clamp", "clip", "clamp_min", "clamp_max", "add", "sub", "subtract", "rsub", "mul"),
    *("multiply", "div", "divide", "true_divide", "floor_divide", "remainder", "fmod", "pow"),
    *("float_power", "maximum", "minimum", "fmax", "fmin", "atan2", "arctan2", "hypot"),
    *("logaddexp", "logaddexp2", "xlogy", "copysign", "heaviside", "ldexp", "nextafter"),
    *("addcmul", "addcdiv", "lerp", "where", "masked_fill", "lt", "le", "gt", "ge"),
    *("not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("logical_not", "logical_and", "logical_or", "logical_xor", "bitwise_not", "bitwise_and"),
    *("bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift", "gcd", "lcm"),
    *("__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "complex", "polar", "conj"),
    *("real", "imag", "angle", "copy", "fill", "zero"),
    *("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout"),
    *_SPECIAL,
)
def _pointwise(call: Call, **arguments: Any) -> Any:
    """Also writing into a tensor, and dropout, which does nothing in evaluation mode."""
    out = broadcast(call, tensors_given(arguments))
    return out if len(call.shapes) == 1 else (out,) * len(call.shapes)


def _along_each_axis(along: Callable[[AxisPowers], AxisPowers], *ops: str) -> None:
    """Register what ops of one tensor do to the powers along each of its axes."""

    def apply(call: PowerCall, **arguments: Any) -> TensorPowers:
        return TensorPowers(along(axis) for axis in tensors_given(arguments)[0])

    power_rule(*ops)(apply)


_along_each_axis(
    unchanged,
    *("neg", "negative", "positive", "dropout", "feature_dropout", "zero", "deg2rad", "rad2deg"),
)
_along_each_axis(
    odd,
    *("tanh", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh", "erf", "erfinv"),
    *("arcsin", "arctan", "arcsinh", "arctanh", "hardshrink", "softshrink", "round", "trunc"),
    *("fix", "special_erf", "special_erfinv", "special_round", "special_i1", "special_i1e"),
)
_along_each_axis(even, "square", "cos", "cosh", "sinc", "special_sinc", "i0", "special_i0")
_along_each_axis(homogeneous, "relu", "leaky_relu")
_along_each_axis(absolute, "abs", "absolute")
_along_each_axis(inverse, "reciprocal")
_along_each_axis(signs_only, "sign", "sgn")


@power_rule("rrelu")
def _randomised_relu_powers(
    call: PowerCall, self: TensorPowers, lower: float = 0, upper: float = 0, training: bool = False
) -> TensorPowers:
    """In evaluation mode the slope is the mean of the bounds."""
    return unknown(call, [self]) if training else TensorPowers(homogeneous(x) for x in self)


@power_rule("alpha_dropout", "feature_alpha_dropout")
def _dropout_powers(
    call: PowerCall, input: TensorPowers, p: float, train: bool = False
) -> TensorPowers:
    return unknown(call, [input]) if train else input


@power_rule("hardtanh", "clamp", "clamp_min", "clamp_max", "clip")
def _clamp_powers(
    call: PowerCall,
    self: TensorPowers,
    min: Any = None,
    max: Any = None,
    min_val: Any = -1,
    max_val: Any = 1,
) -> TensorPowers:
    """Signs pass through bounds that mirror each other, scales through one bound at 0."""
    low, high = (min_val, max_val) if call.op.startswith("hardtanh") else (min, max)
    bounds = [bound for bound in (low, high) if bound is not None]
    if not all(isinstance(bound, int | float) for bound in bounds):
        return unknown(call, [self, low, high])
    if len(bounds) == 2 and low == -high:
        return TensorPowers(odd(axis) for axis in self)
    if bounds == [0]:
        return TensorPowers(homogeneous(axis) for axis in self)
    return unknown(call, [self])


@power_rule("pow")
def _pow_powers(call: PowerCall, self: Any, exponent: Any) -> TensorPowers:
    is_whole = isinstance(exponent, int | float) and exponent > 0 and exponent % 1 == 0
    if not isinstance(self, TensorPowers) or not is_whole:
        return unknown(call, [self, exponent])
    if exponent == 1:
        return self
    return TensorPowers((even if exponent % 2 == 0 else odd)(axis) for axis in self)


def powers_of_sum(call: PowerCall, terms: Sequence[Any]) -> TensorPowers:
    """Return a sum, or a choice among values, that broadcasts: all terms are multiplied alike.

    Of numbers 0 is no term.
    """
    tensors = [term for term in terms if isinstance(term, TensorPowers)]
    count = len(tensors) + sum(not isinstance(term, TensorPowers) and term != 0 for term in terms)
    out = []
    for place, nothing in zip(range(-len(call.output), 0), call.output, strict=True):
        met = [tensor[place] for tensor in tensors if len(tensor) >= -place]
        wide = [axis for axis in met if axis.axis.size != 1] or [nothing]
        for other in wide[1:]:
            set_equal(wide[0], other)
        if len(wide) < count:
            set_zero(wide)
        out.append(wide[0])
    return TensorPowers(out)


@power_rule("add", "sub", "subtract", "rsub", "copy", "fill")
def _sum_powers(
    call: PowerCall, self: Any, other: Any = 0, src: Any = 0, value: Any = 0, **_: Any
) -> TensorPowers:
    """What is written into a tensor is multiplied as the tensor is."""
    return powers_of_sum(call, [self, other, src, value])


@power_rule("maximum", "minimum", "fmax", "fmin")
def _maximum_powers(call: PowerCall, self: Any, other: Any) -> TensorPowers:
    return TensorPowers(homogeneous(axis) for axis in powers_of_sum(call, [self, other]))


@power_rule("where")
def _choice_powers(call: PowerCall, condition: TensorPowers, self: Any, other: Any) -> TensorPowers:
    set_zero(condition)
    return powers_of_sum(call, [self, other])


@power_rule("masked_fill")
def _masked_fill_powers(
    call: PowerCall, self: TensorPowers, mask: TensorPowers, value: Any
) -> TensorPowers:
    set_zero(mask)
    return powers_of_sum(call, [self, value])


def powers_of_product(a: TensorPowers, b: TensorPowers) -> TensorPowers:
    """Return the product of two values that broadcasts.

    Powers add up, which can be said only where one of them is 0.
    """
    out = []
    for place in range(-max(len(a), len(b)), 0):
        met = [tensor[place] for tensor in (a, b) if len(tensor) >= -place]
        wide = [axis for axis in met if axis.axis.size != 1] or met
        both = len(met) == len(wide) == 2
        stored = (a.is_stored, b.is_stored)
        out.append(multiplied(wide[0], wide[1], stored) if both else wide[0])
    return TensorPowers(out)


@power_rule("mul", "multiply")
def _multiply_powers(call: PowerCall, self: Any, other: Any) -> TensorPowers:
    if isinstance(self, TensorPowers) and isinstance(other, TensorPowers):
        return powers_of_product(self, other)
    return self if isinstance(self, TensorPowers) else other


@power_rule("div", "divide", "true_divide")
def _divide_powers(
    call: PowerCall, self: Any, other: Any, rounding_mode: str | None = None
) -> TensorPowers:
    if rounding_mode is not None:
        return unknown(call, [self, other])
    if not isinstance(other, TensorPowers):
        return self
    divisor = TensorPowers(inverse(axis) for axis in other)
    divisor.is_stored = other.is_stored
    return _multiply_powers(call, self, divisor)


@axis_rule("clone", "contiguous", "detach", "alias", "lift", "lift_fresh", "lift_fresh_copy")
@axis_rule("to", "_to_copy", "type_as", "resolve_conj", "resolve_neg", "positive")
def _same(call: Call, self: TensorAxes, **_: Any) -> TensorAxes:
    return self


@power_rule(
    "clone", "contiguous", "detach", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy"
)
def _copy_powers(call: PowerCall, self: TensorPowers, **_: Any) -> TensorPowers:
    copy = TensorPowers(self)
    copy.is_zero = self.is_zero
    return copy


@axis_rule("prelu")
def _prelu(call: Call, self: TensorAxes, weight: TensorAxes) -> TensorAxes:
    if weight and weight[0].size != 1:
        call.unify(self[1 if len(self) > 1 else 0], weight[0])
    return self


@power_rule("prelu")
def _prelu_powers(call: PowerCall, self: TensorPowers, weight: TensorPowers) -> TensorPowers:
    set_zero(weight)
    return TensorPowers(homogeneous(axis) for axis in self)


@axis_rule("zeros", "ones", "full", "scalar_tensor", "new_zeros", "new_ones", "new_full")
@axis_rule("zeros_like", "ones_like", "full_like")
def _constant(call: Call, **_: Any) -> TensorAxes:
    """All places are alike, so any order will do."""
    return Constant(AxisClass(size) for size in call.shape)


@axis_rule("empty", "empty_like", "new_empty")
def _empty(call: Call, **_: Any) -> TensorAxes:
    """What has no values yet has no order."""
    return TensorAxes(AxisClass(size) for size in call.shape)


@power_rule("zeros", "zeros_like", "new_zeros")
def _zero_powers(call: PowerCall, **_: Any) -> TensorPowers:
    """Zeros stay zeros by whatever they are multiplied."""
    zeros = TensorPowers(
        AxisPowers(axis.axis, tuple(Power.fresh(leaf) for leaf in axis.leaves))
        for axis in call.output
    )
    zeros.is_zero = True
    return zeros


@power_rule("ones_like", "new_ones", "full_like", "new_full")
def _constant_powers(call: PowerCall, **_: Any) -> TensorPowers:
    """Constants are not multiplied, and do not depend on whose shape they take."""
    return call.output


@axis_rule("view_as_complex")
def _view_as_complex(call: Call, self: TensorAxes) -> TensorAxes:
    call.pin(self[-1:])
    return TensorAxes(self[:-1])


@axis_rule("view_as_real")
def _view_as_real(call: Call, self: TensorAxes) -> TensorAxes:
    return TensorAxes((*self, call.pinned(2)))
