"""Reductions: symmetric ones do not see the order of what they reduce."""

from collections.abc import Callable, Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._power import (
    AxisPowers,
    TensorPowers,
    absolute,
    even,
    homogeneous,
    set_zero,
    unchanged,
)
from gpu_align._symmetry._rules._table import (
    Call,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    unknown,
)
from gpu_align._symmetry._splits import TensorAxes


@axis_rule("mean", "sum", "amax", "amin", "prod", "logsumexp", "var", "std", "linalg_vector_norm")
@axis_rule("norm", "nansum", "nanmean", "all", "any", "count_nonzero", "linalg_norm")
@axis_rule("frobenius_norm", "nuclear_norm")
def reduction(
    call: Call, self: TensorAxes, dim: Any = None, keepdim: bool = False, **_: Any
) -> TensorAxes:
    """Return the axes that are not reduced."""
    reduced = numbers_of(self, dim)
    kept = [
        AxisClass(1) if number in reduced else axis
        for number, axis in enumerate(self)
        if keepdim or number not in reduced
    ]
    return TensorAxes(kept)


def numbers_of(axes: Sequence[object], dim: Any) -> set[int]:
    """Return the numbers of the axes that `dim` names: one, several, or all."""
    dims = range(len(axes)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return {number % len(axes) for number in dims} if axes else set()


def _register_powers(
    reduced: Callable[[AxisPowers], object], kept: Callable[[AxisPowers], AxisPowers], *ops: str
) -> None:
    """Register what reductions do to the powers along the axes that are reduced and kept."""

    def apply(
        call: PowerCall, self: TensorPowers, dim: Any = None, keepdim: bool = False, **more: Any
    ) -> TensorPowers:
        order = more.get("ord", more.get("p", 2))
        if order in (0, None):  # counts what is not 0
            return unknown(call, [self])
        numbers = numbers_of(self, dim)
        out = []
        for number, axis in enumerate(self):
            if number not in numbers:
                out.append(kept(axis))
                continue
            reduced(axis)
            if keepdim:
                out.append(AxisPowers(AxisClass(1)))
        return TensorPowers(out)

    power_rule(*ops)(apply)


def _zero(axis: AxisPowers) -> None:
    set_zero([axis])


_register_powers(_zero, unchanged, "mean", "sum", "nansum", "nanmean")
_register_powers(_zero, homogeneous, "amax", "amin")
_register_powers(even, absolute, "linalg_vector_norm", "norm")
_register_powers(_zero, absolute, "std")
_register_powers(_zero, even, "var")


@axis_rule("var_mean", "std_mean", "aminmax")
def _two_reductions(call: Call, self: TensorAxes, **arguments: Any) -> tuple[TensorAxes, ...]:
    return (reduction(call, self, **arguments),) * 2


@axis_rule("quantile", "nanquantile")
def _quantile(
    call: Call, self: TensorAxes, q: Any, dim: int | None = None, keepdim: bool = False, **_: Any
) -> TensorAxes:
    """Several quantiles lie along a first axis."""
    several = q if isinstance(q, TensorAxes) else TensorAxes()
    call.pin(several)
    return TensorAxes((*several, *reduction(call, self, dim, keepdim)))


@axis_rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "kl_div")
@axis_rule("binary_cross_entropy", "binary_cross_entropy_with_logits")
def _loss(call: Call, self: TensorAxes, target: TensorAxes, **more: Any) -> TensorAxes:
    """Entry by entry, or their mean or sum."""
    others = [axes for axes in more.values() if isinstance(axes, TensorAxes)]
    met = broadcast(call, [self, target, *others])
    return met if call.shape else TensorAxes()
