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
@axis_rule("norm", "nansum", "nanmean", "all", "any", "count_nonzero")
def _reduction(
    call: Call, self: TensorAxes, dim: Any = None, keepdim: bool = False, **_: Any
) -> TensorAxes:
    reduced = _numbers(self, dim)
    kept = [
        AxisClass(1) if number in reduced else axis
        for number, axis in enumerate(self)
        if keepdim or number not in reduced
    ]
    return TensorAxes(kept)


def _numbers(axes: Sequence[object], dim: Any) -> set[int]:
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
        numbers = _numbers(self, dim)
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
    return (_reduction(call, self, **arguments),) * 2


@axis_rule("max", "min")
def _extremum(
    call: Call, self: TensorAxes, other: TensorAxes | None = None, **arguments: Any
) -> Any:
    """Of two tensors, of all entries, or along an axis: then also where it was."""
    if other is not None:
        return broadcast(call, [self, other])
    found = _reduction(call, self, **arguments)
    if len(call.shapes) == 1:
        return found
    if 1 in call.used:
        call.pin(self[number] for number in _numbers(self, arguments["dim"]))
    return found, found


@axis_rule("argmax", "argmin")
def _index_of_extremum(
    call: Call, self: TensorAxes, dim: int | None = None, keepdim: bool = False
) -> TensorAxes:
    """An index is a place, so places along the axis must not move."""
    call.pin(self[number] for number in _numbers(self, dim))
    return _reduction(call, self, dim, keepdim)
