"""The table of gauge rules: what an op says about the powers of signs and scales.

A rule is called with the op's arguments by their schema names, tensors as `TensorPowers`, and
returns the powers of the output (a tuple of them for several outputs). It may say that powers are
equal, opposite or zero. An op without a rule makes all powers that it touches zero: fewer
symmetries, never a wrong one. The same comes of a rule that raises `UnmatchedError`.

The axes are known already and final: axes of one class carry the same units in the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_align._symmetry._gauge._power import TensorPowers, set_zero


@dataclass(frozen=True)
class GaugeCall:
    """The op being looked at.

    Attributes:
        op: its name, without `aten.` and overload.
        outputs: its outputs with all powers 0.
        extents: shape of its first argument.
        made: shapes of its outputs. Where slices of an axis have been taken apart, shapes differ
            from the sizes of the axes, see `Traced`.
    """

    op: str
    outputs: tuple[TensorPowers, ...]
    extents: tuple[int, ...]
    made: tuple[tuple[int, ...], ...]

    @property
    def output(self) -> TensorPowers:
        """The first output with all powers 0."""
        return self.outputs[0]


Rule = Callable[..., Any]
GAUGE_RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named ATen ops (in-place variants included)."""

    def register(function: Rule) -> Rule:
        GAUGE_RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def unknown(call: GaugeCall, arguments: Any) -> Any:
    """Make all powers zero, the rule of ops of which nothing is known."""
    if isinstance(arguments, TensorPowers):
        set_zero(arguments)
    elif isinstance(arguments, dict):
        unknown(call, list(arguments.values()))
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            unknown(call, argument)
    return call.output if len(call.outputs) == 1 else call.outputs


def first_tensor(arguments: dict[str, Any]) -> TensorPowers:
    """Return the first argument that is a tensor."""
    return next(value for value in arguments.values() if isinstance(value, TensorPowers))
