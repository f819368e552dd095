"""One rule per family of ATen ops: what an op says about the axes of its inputs and outputs.

A rule is called with the op's arguments by their schema names, tensors as `TensorAxes` (one
AxisClass per axis), and returns the axes of the output (a tuple of them for several outputs). It
may unify axes that must be reordered together, refine an axis into parts, and pin axes whose order
matters; and it names what the op passes through besides inputs and outputs (`Call.visit`). An op
without a rule pins all axes it touches: fewer symmetries, never a wrong one.

To add an op: one entry in the module of its theme, one case in the tests of that theme.
"""

from gpu_align._symmetry._rules import (  # noqa: F401  they fill the table
    _attention,
    _contractions,
    _joints,
    _norms,
    _places,
    _pointwise,
    _reductions,
    _shapes,
)
from gpu_align._symmetry._rules._recurrence import RECURRENT
from gpu_align._symmetry._rules._table import RULES, Call, Constant, Rule, TensorAxes

__all__ = ["RECURRENT", "RULES", "Call", "Constant", "Rule", "TensorAxes"]
