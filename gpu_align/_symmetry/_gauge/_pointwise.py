"""Gauge rules of ops that work entry by entry, and of reductions."""

from collections.abc import Callable, Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._gauge._power import (
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
)
from gpu_align._symmetry._gauge._table import GaugeCall, first_tensor, rule, unknown

Along = Callable[[AxisPowers], AxisPowers]


def _unchanged(axis: AxisPowers) -> AxisPowers:
    return axis


def _pointwise(along: Along, *ops: str) -> None:
    def apply(call: GaugeCall, **arguments: Any) -> TensorPowers:
        return TensorPowers(along(axis) for axis in first_tensor(arguments))

    rule(*ops)(apply)


_pointwise(_unchanged, "neg", "positive", "dropout", "feature_dropout", "zero")
_pointwise(
    odd,
    *("tanh", "sin", "tan", "asin", "atan", "sinh", "erf", "erfinv"),
    *("hardshrink", "softshrink", "round", "trunc"),
)
_pointwise(even, "square", "cos", "cosh")
_pointwise(homogeneous, "relu", "leaky_relu")
_pointwise(absolute, "abs")
_pointwise(inverse, "reciprocal")
_pointwise(signs_only, "sign", "sgn")


@rule("clone", "contiguous", "detach", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy")
def _copy(call: GaugeCall, self: TensorPowers, **_: Any) -> TensorPowers:
    copy = TensorPowers(self)
    copy.is_zero = self.is_zero
    return copy


@rule("alpha_dropout", "feature_alpha_dropout")
def _dropout(call: GaugeCall, input: TensorPowers, p: float, train: bool = False) -> TensorPowers:
    return unknown(call, [input]) if train else input


@rule("hardtanh", "clamp", "clamp_min", "clamp_max", "clip")
def _clamp(
    call: GaugeCall,
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


@rule("pow")
def _power(call: GaugeCall, self: Any, exponent: Any) -> TensorPowers:
    is_whole = isinstance(exponent, int | float) and exponent > 0 and exponent % 1 == 0
    if not isinstance(self, TensorPowers) or not is_whole:
        return unknown(call, [self, exponent])
    if exponent == 1:
        return self
    return TensorPowers((even if exponent % 2 == 0 else odd)(axis) for axis in self)


@rule("zeros", "zeros_like", "new_zeros")
def _zeros(call: GaugeCall, **_: Any) -> TensorPowers:
    """Zeros stay zeros by whatever they are multiplied."""
    zeros = TensorPowers(
        AxisPowers(axis.axis, tuple(Power.fresh(leaf) for leaf in axis.leaves))
        for axis in call.output
    )
    zeros.is_zero = True
    return zeros


@rule("ones_like", "new_ones", "full_like", "new_full")
def _constants(call: GaugeCall, **_: Any) -> TensorPowers:
    """Constants are not multiplied, and do not depend on whose shape they take."""
    return call.output


# Sums: all terms are multiplied alike.


def added(call: GaugeCall, terms: Sequence[Any]) -> TensorPowers:
    """Return a sum, or a choice among values, that broadcasts; a number other than 0 is a term."""
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


@rule("add", "sub", "subtract", "rsub")
def _add(call: GaugeCall, self: Any, other: Any, **_: Any) -> TensorPowers:
    return added(call, [self, other])


@rule("copy")
def _write(call: GaugeCall, self: TensorPowers, src: TensorPowers, **_: Any) -> TensorPowers:
    return added(call, [self, src])


@rule("fill")
def _fill(call: GaugeCall, self: TensorPowers, value: Any) -> TensorPowers:
    return added(call, [self, value])


@rule("maximum", "minimum", "fmax", "fmin")
def _maximum(call: GaugeCall, self: Any, other: Any) -> TensorPowers:
    return TensorPowers(homogeneous(axis) for axis in added(call, [self, other]))


@rule("where")
def _where(call: GaugeCall, condition: TensorPowers, self: Any, other: Any) -> TensorPowers:
    set_zero(condition)
    return added(call, [self, other])


@rule("masked_fill")
def _masked_fill(
    call: GaugeCall, self: TensorPowers, mask: TensorPowers, value: Any
) -> TensorPowers:
    set_zero(mask)
    return added(call, [self, value])


# Products: powers add up, which can be said only where one of them is 0.


def product(a: TensorPowers, b: TensorPowers) -> TensorPowers:
    """Return the product of two values that broadcasts."""
    out = []
    for place in range(-max(len(a), len(b)), 0):
        met = [tensor[place] for tensor in (a, b) if len(tensor) >= -place]
        wide = [axis for axis in met if axis.axis.size != 1] or met
        both = len(met) == len(wide) == 2
        stored = (a.is_stored, b.is_stored)
        out.append(multiplied(wide[0], wide[1], stored) if both else wide[0])
    return TensorPowers(out)


@rule("mul", "multiply")
def _multiply(call: GaugeCall, self: Any, other: Any) -> TensorPowers:
    if isinstance(self, TensorPowers) and isinstance(other, TensorPowers):
        return product(self, other)
    return self if isinstance(self, TensorPowers) else other


@rule("div", "divide", "true_divide")
def _divide(
    call: GaugeCall, self: Any, other: Any, rounding_mode: str | None = None
) -> TensorPowers:
    if rounding_mode is not None:
        return unknown(call, [self, other])
    if not isinstance(other, TensorPowers):
        return self
    divisor = TensorPowers(inverse(axis) for axis in other)
    divisor.is_stored = other.is_stored
    return _multiply(call, self, divisor)


@rule("prelu")
def _prelu(call: GaugeCall, self: TensorPowers, weight: TensorPowers) -> TensorPowers:
    set_zero(weight)
    return TensorPowers(homogeneous(axis) for axis in self)


# Reductions.


def _reduction(kept: Along, reduced: Callable[[AxisPowers], object], *ops: str) -> None:
    """Register a reduction: what it does to the powers along kept and along reduced axes."""

    def apply(
        call: GaugeCall, self: TensorPowers, dim: Any = None, keepdim: bool = False, **more: Any
    ) -> TensorPowers:
        order = more.get("ord", more.get("p", 2))
        if order in (0, None):  # counts what is not 0
            return unknown(call, [self])
        dims = range(len(self)) if dim is None or dim == [] else [dim] if type(dim) is int else dim
        numbers = {number % len(self) for number in dims} if self else set()
        out = []
        for number, axis in enumerate(self):
            if number in numbers:
                reduced(axis)
            if number not in numbers:
                out.append(kept(axis))
            elif keepdim:
                out.append(AxisPowers(AxisClass(1)))
        return TensorPowers(out)

    rule(*ops)(apply)


def _zero(axis: AxisPowers) -> None:
    set_zero([axis])


_reduction(_unchanged, _zero, "mean", "sum", "nansum", "nanmean")
_reduction(homogeneous, _zero, "amax", "amin")
_reduction(absolute, even, "linalg_vector_norm", "norm")
_reduction(absolute, _zero, "std")
_reduction(even, _zero, "var")
