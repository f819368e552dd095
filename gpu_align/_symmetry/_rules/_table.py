"""The table of rules, and what a rule can say."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure
from gpu_align._symmetry._splits import TensorAxes


class Constant(TensorAxes):
    """The axes of a tensor whose entries are all the same number."""


@dataclass(frozen=True)
class Call:
    """The op being traced, and what its rule says.

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


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named ATen ops (in-place variants included)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


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
