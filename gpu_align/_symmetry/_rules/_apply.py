"""How a rule is applied to arguments that are marked."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_align._symmetry._rules._marks import (
    READS,
    Choice,
    Chosen,
    Listed,
    Marked,
    Numbered,
    Places,
    Repeated,
    tensors_in,
)
from gpu_align._symmetry._rules._table import AXIS_RULES, Call, Rule
from gpu_align._symmetry._splits import TensorAxes


def _rules_of(*ops: str) -> frozenset[Rule]:
    return frozenset(AXIS_RULES[op] for op in ops)


_COPIES = _rules_of("clone")
_MAKERS = _rules_of("zeros", "empty")
_MOVES = _rules_of(
    *("view", "unsqueeze", "squeeze", "permute", "transpose", "t", "movedim", "expand", "repeat"),
    *("slice", "narrow", "select"),
)
"""Their outputs are entries of their input."""
_ALIKE = _COPIES | _rules_of(
    *("relu", "prelu", "view", "unsqueeze", "squeeze", "permute", "transpose", "t", "movedim"),
    *("expand", "split", "slice", "narrow", "select", "glu", "linear", "matmul", "addmm"),
    *("baddbmm", "einsum", "sum", "softmax", "layer_norm"),
)
"""They do the same at each place along an axis that is on their output still."""


def apply_rule(rule: Rule, call: Call, arguments: Mapping[str, Any]) -> Any:
    """Return what a rule says of arguments of which some may be marked."""
    known = READS.get(rule, ())
    if rule not in _COPIES | _MOVES:
        # These depend on no units, so an op that does not read them need not care.
        arguments = _without(arguments, Numbered | Listed | Repeated, known)
    tensors = list(tensors_in(list(arguments.values())))
    marks = [axes for axes in tensors if isinstance(axes, Marked)]
    if rule in _MAKERS or all(isinstance(mark, known) for mark in marks):
        return rule(call, **arguments)
    plain = _without(arguments, Marked)
    if len(marks) == 1 and marks[0] is tensors[0]:
        if rule in _COPIES or (rule in _MOVES and type(marks[0]) is Places):
            return marks[0].moved(rule(call, **plain))
        if rule in _MOVES and isinstance(marks[0], Numbered):
            return marks[0].beside_ones(rule(call, **plain))
    by = _only_choice(marks)
    if by is not None and rule in _ALIKE:
        visited = len(call.visited)
        made = rule(call, **plain)
        unmarked = [axes for axes in tensors if not isinstance(axes, Marked)]
        return _passed_on(made, call, visited, unmarked, by)
    for mark in marks:
        mark.give_up(f"{call.reason} of {mark.meaning}")
    return rule(call, **plain)


def _only_choice(marks: Sequence[Marked]) -> Choice | None:
    """Return the choice on which all marked tensors depend, if they do on nothing else."""
    choices = [mark.by for mark in marks if isinstance(mark, Chosen)]
    return choices[0] if len(set(choices)) == 1 and len(choices) == len(marks) else None


def _passed_on(
    made: Any, call: Call, visited: int, unmarked: Sequence[TensorAxes], by: Choice
) -> Any:
    """Return the outputs of a rule that does the same at each slot of a choice.

    Args:
        made: what the rule has returned.
        call: what it has said.
        visited: how much had been visited before.
        unmarked: arguments that do not depend on the choice.
        by: the choice.
    """
    call.visited[visited:] = [by.with_units(axes) for axes in call.visited[visited:]]
    outputs = (made,) if isinstance(made, TensorAxes) else made
    if by.is_sorted and (any(map(by.touches, unmarked)) or not all(map(by.lies_on, outputs))):
        by.units.pin(f"{call.reason} of {Chosen.meaning}")
    marked = tuple(Chosen.of(axes, by) if by.lies_on(axes) else axes for axes in outputs)
    return marked[0] if isinstance(made, TensorAxes) else marked


def _without(arguments: Mapping[str, Any], marks: Any, but: Any = ()) -> dict[str, Any]:
    """Return arguments without marks of some kinds."""

    def plain(value: Any) -> Any:
        if isinstance(value, TensorAxes):
            is_one = isinstance(value, marks) and not isinstance(value, but)
            return TensorAxes(value) if is_one else value
        return [plain(part) for part in value] if isinstance(value, tuple | list) else value

    return {name: plain(value) for name, value in arguments.items()}
