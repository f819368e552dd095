"""The two tables of rules, and what a rule can say."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from gpu_align._symmetry._classes import AxisClass, Structure
from gpu_align._symmetry._power import TensorPowers, set_zero
from gpu_align._symmetry._splits import TensorAxes


class Constant(TensorAxes):
    """The axes of a tensor whose entries are all the same number."""


@dataclass(frozen=True)
class Call:
    """The op whose axes are looked at, and what its rule says.

    Attributes:
        op: its name for messages.
        shapes: of its outputs.
        used: numbers of the outputs that are used.
        visited: tensors that the op passes through besides its inputs and outputs.
        deferred: what is done when the whole graph has been walked.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]
    used: frozenset[int] = frozenset({0})
    visited: list[TensorAxes] = field(default_factory=list)
    deferred: list[Callable[[], None]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.shapes[0]

    @property
    def reason(self) -> str:
        """What is said of an axis that this op pins."""
        return f"op {self.op}"

    def unify(self, a: AxisClass, b: AxisClass) -> None:
        """Tie two axes; if they cannot be tied this op is named as what pins them."""
        if a is not b:
            a.unify(b, self.reason)

    def refine(self, axis: AxisClass, structure: Structure, parts: list[AxisClass]) -> None:
        """Say that an axis is made of parts."""
        axis.refine(structure, parts, self.reason)

    def pin(self, axes: Iterable[AxisClass]) -> None:
        """Fix the order along the axes because of this op."""
        for axis in axes:
            axis.pin(self.reason)

    def pinned(self, size: int) -> AxisClass:
        """Return a new axis whose order is fixed by this op."""
        return AxisClass(size, pinned=self.reason)

    def visit(self, axes: Iterable[AxisClass]) -> None:
        """Say that the op passes through a tensor with these axes.

        A contraction works on its index space, all indices at once. A norm or a softmax computes
        statistics, which have the axes that are not normalised.
        """
        self.visited.append(TensorAxes(axes))


@dataclass(frozen=True)
class PowerCall:
    """The op whose powers are looked at.

    Attributes:
        op: its name, without `aten.` and overload.
        outputs: its outputs with all powers 0.
        extents: shape of its first argument.
        shapes: of its outputs. Where slices of an axis have been taken apart, shapes differ from
            the sizes of the axes, see `Traced`.
    """

    op: str
    outputs: tuple[TensorPowers, ...]
    extents: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def output(self) -> TensorPowers:
        """The first output with all powers 0."""
        return self.outputs[0]


class Rule(Protocol):
    """What an op says, given its arguments by their schema names."""

    def __call__(self, call: Any, /, *args: Any, **arguments: Any) -> Any:
        """Return what comes out: one tensor, or a tuple of them."""


AXIS_RULES: dict[str, Rule] = {}
POWER_RULES: dict[str, Rule] = {}

R = TypeVar("R", bound=Rule)


def axis_rule(*ops: str) -> Callable[[R], R]:
    """Register a function as what the named ATen ops (also in place) say of axes."""
    return functools.partial(_register, AXIS_RULES, ops)


def power_rule(*ops: str) -> Callable[[R], R]:
    """Register a function as what the named ATen ops (also in place) say of powers."""
    return functools.partial(_register, POWER_RULES, ops)


def _register(rules: dict[str, Rule], ops: tuple[str, ...], function: R) -> R:
    rules.update(dict.fromkeys(ops, function))
    return function


def find_rule(rules: Mapping[str, Rule], op: str, arguments: Mapping[str, Any]) -> Rule | None:
    """Return the rule of an op; None without one, or if it is for another overload."""
    rule: Rule | None = rules.get(op) or rules.get(op.removesuffix("_"))
    if rule is None:
        return None
    try:
        _signature(rule).bind(None, **arguments)  # type: ignore[arg-type]
    except TypeError:
        return None
    return rule


@functools.cache
def _signature(rule: Rule) -> inspect.Signature:
    return inspect.signature(rule)


def broadcast(call: Call, operands: Iterable[TensorAxes]) -> TensorAxes:
    """Unify axes that meet by broadcasting and return those of the result."""
    operands = list(operands)
    rank = max(len(axes) for axes in operands)
    out: list[AxisClass] = []
    for place in range(-rank, 0):
        met = [axes[place] for axes in operands if len(axes) >= -place]
        wide = [axis for axis in met if axis.size != 1] or met
        for axis in wide[1:]:
            call.unify(wide[0], axis)
        out.append(wide[0])
    constant = all(isinstance(axes, Constant) for axes in operands)
    return Constant(out) if constant else TensorAxes(out)


def without(axes: TensorAxes, dims: Iterable[int]) -> TensorAxes:
    """Return the axes without those of these numbers, which may be negative."""
    left_out = {number % len(axes) for number in dims} if axes else set()
    return TensorAxes(axis for number, axis in enumerate(axes) if number not in left_out)


def replaced(axes: TensorAxes, place: int, *axis: AxisClass) -> TensorAxes:
    """Return the axes with others, or none, in one place."""
    return TensorAxes((*axes[:place], *axis, *axes[place + 1 :]))


def unknown(call: PowerCall, arguments: Any) -> Any:
    """Make all powers zero, the rule of ops of which nothing is known."""
    if isinstance(arguments, TensorPowers):
        set_zero(arguments)
    elif isinstance(arguments, dict):
        unknown(call, list(arguments.values()))
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            unknown(call, argument)
    return call.output if len(call.outputs) == 1 else call.outputs


def tensors_given(arguments: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that are tensors, in order."""
    return [x for x in arguments.values() if isinstance(x, TensorAxes | TensorPowers)]
