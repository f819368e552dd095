"""What ATen ops say: of axes, and of the powers of signs and scales.

A rule is called with the op's arguments by their schema names. The rules of one theme are in one
module, both of an op one after the other.

An *axis rule* gets tensors as `TensorAxes` (one AxisClass per axis) and returns the axes of the
output (a tuple of them for several outputs). It may unify axes that must be reordered together,
refine an axis into parts, and pin axes whose order matters; and it names what the op passes through
besides inputs and outputs (`Call.visit`). An op without one pins all axes that it touches. Tensors
that hold the numbers of units, or what was chosen by them, are marked: see `_marks`.

A *power rule* gets tensors as `TensorPowers`, when the axes are known and final: axes of one class
carry the same units in the same order. It may say that powers are equal, opposite or zero. An op
without one makes all powers zero that it touches, and so does a rule that raises `UnmatchedError`.

So what is not said costs symmetries and never makes a wrong one.
"""

from gpu_align._symmetry._rules import (  # noqa: F401  they fill the tables
    _attention,
    _contractions,
    _experts,
    _gradients,
    _joints,
    _norms,
    _numbers,
    _places,
    _pointwise,
    _reductions,
    _shapes,
    _written,
)
from gpu_align._symmetry._rules._apply import apply_rule
from gpu_align._symmetry._rules._joints import CUTS
from gpu_align._symmetry._rules._marks import Chosen, Marked, listed, tensors_in
from gpu_align._symmetry._rules._recurrence import RECURRENT
from gpu_align._symmetry._rules._table import (
    AXIS_RULES,
    POWER_RULES,
    Call,
    Constant,
    PowerCall,
    find_rule,
    unknown,
)

__all__ = [
    "AXIS_RULES",
    "CUTS",
    "POWER_RULES",
    "RECURRENT",
    "Call",
    "Chosen",
    "Constant",
    "Marked",
    "PowerCall",
    "apply_rule",
    "find_rule",
    "listed",
    "tensors_in",
    "unknown",
]
