"""Propagation: one walk through a traced graph that gives every value its axes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.export.graph_signature import ExportGraphSignature, InputKind

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._op import Op, extent
from gpu_align._symmetry._rules import (
    AXIS_RULES,
    RECURRENT,
    Call,
    Chosen,
    Constant,
    Marked,
    apply_rule,
    find_rule,
    listed,
    tensors_in,
)
from gpu_align._symmetry._splits import TensorAxes, settle, settled


@dataclass(frozen=True)
class Traced:
    """What the walk has found.

    Where slices of a split axis have been taken apart, a value with that axis and its slices has
    the axis that was split in place of the first, and axes of size 1 in place of the others.

    Attributes:
        graph: what was walked.
        tensors: state-dict name -> its axes.
        values: node -> the axes of its tensor, a tuple of them for several outputs.
        stored: placeholder node -> the state-dict name of its tensor, tied names resolved.
        used: state-dict names in the order in which they are used.
        computed: the axes of all tensors that ops give or pass through.
    """

    graph: fx.Graph
    tensors: Mapping[str, TensorAxes]
    values: dict[fx.Node, Any]
    stored: dict[fx.Node, str]
    used: list[str]
    computed: list[TensorAxes]


def propagate(
    graph: fx.Graph,
    signature: ExportGraphSignature,
    tensors: Mapping[str, TensorAxes],
    ties: Mapping[str, str],
    outputs: Sequence[tuple[fx.Node, str]],
) -> Traced:
    """Walk the graph and unify, refine and pin axes by the rules of its ops.

    Args:
        graph: of the traced model.
        signature: what its inputs are, in order.
        tensors: state-dict name -> its axes.
        ties: further name of a shared tensor -> its name in `tensors`.
        outputs: the values that must stay as they are, each with the reason.
    """
    walk = _AxisWalk()
    inputs = iter(signature.input_specs)
    stored: dict[fx.Node, str] = {}
    used: dict[str, None] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            spec = next(inputs)
            name = ties.get(spec.target or "", spec.target or "")
            if name in tensors:
                stored[node], walk.values[node] = name, tensors[name]
            else:
                made = _pinned_like(node, _ROLES.get(spec.kind, "constant"))
                walk.values[node] = listed(made, node.meta.get("constant"))
        elif node.op == "call_function":
            walk.values[node] = walk.call(node)
            walk.computed += map(_with_units, tensors_in(walk.values[node]))
            used.update((stored[a], None) for a in node.all_input_nodes if a in stored)
        elif node.op == "output":
            for value, reason in outputs:
                _pin_all(walk.values[value], reason)
        else:
            walk.values[node] = _pinned_like(node, "constant")
    walk.finish()
    return Traced(graph, tensors, walk.values, stored, list(used), walk.computed)


_ROLES = {InputKind.USER_INPUT: "graph input", InputKind.BUFFER: "non-persistent buffer"}


class _AxisWalk:
    """The axes of the values so far, and what is still to be said about them."""

    def __init__(self) -> None:
        self.values: dict[fx.Node, Any] = {}
        self.computed: list[TensorAxes] = []
        self.deferred: list[Callable[[], None]] = []

    def call(self, node: fx.Node) -> Any:
        """Apply the rule of one node, or pin what it touches."""
        op = Op(node)
        if op.is_item:
            return op.item(self.values.__getitem__)
        if not op.name:
            return self._pin_touched(node, f"{node.target} has no rule")
        if not op.gives_tensors and not op.writes:
            return extent(node.meta.get("val"))
        if op.has_out:
            return self._pin_touched(node, f"op {op.name} with out=")
        arguments, shapes = op.arguments(self.values.__getitem__), op.shapes
        if op.draws(arguments):
            return self._pin_touched(node, f"noise of op {op.name}")
        rule = find_rule(AXIS_RULES, op.name, arguments)
        if rule is None or shapes is None:
            return self._pin_touched(node, f"op {op.name} has no rule")
        call = Call(op.name, shapes, _used_outputs(node), self.computed, self.deferred)
        made = apply_rule(rule, call, arguments)
        if op.writes and isinstance(made, Marked) and not self._is_own(node):
            made.give_up(call.reason)
        if isinstance(made, Constant) and not _starts_recurrence(node):
            made = TensorAxes(made)
        outputs = (made,) if isinstance(made, TensorAxes) else made
        sizes = tuple(tuple(axis.size for axis in axes) for axes in outputs)
        assert sizes == shapes, (
            f"the rule of op {op.name} gives shapes {sizes}, the op gives {shapes}"
        )
        return made

    def _is_own(self, node: fx.Node) -> bool:
        """Whether what a node writes into is marked already, or is seen by no other node."""
        written = [Op(node).arguments()[name] for name in Op(node).written]
        return all(
            isinstance(self.values[n], Marked)
            or (len(n.users) == 1 and Op(n).name in ("empty", "empty_like", "new_empty"))
            for n in written
        )

    def _pin_touched(self, node: fx.Node, reason: str) -> Any:
        for argument in node.all_input_nodes:
            _pin_all(self.values[argument], reason, mixed=True)
        return _pinned_like(node, reason)

    def finish(self) -> None:
        """Say what was deferred, and close what cannot stay open."""
        for say in self.deferred:
            say()
        settle([*self.computed, *tensors_in(list(self.values.values()))])
        self.values = {node: _settled(value) for node, value in self.values.items()}
        self.computed = [settled(axes) for axes in self.computed]


def _used_outputs(node: fx.Node) -> frozenset[int]:
    getters = [user for user in node.users if Op(user).is_item and user.users]
    return frozenset(user.args[1] for user in getters if isinstance(user.args[1], int))


def _starts_recurrence(node: fx.Node) -> bool:
    """Whether nothing but recurrent layers uses a value, so that nothing writes into it."""

    def is_harmless(user: fx.Node) -> bool:
        op = Op(user).name
        looks_only = op in RECURRENT or op == "_assert_tensor_metadata"
        return looks_only or (op in _COPIES and _starts_recurrence(user))

    return all(is_harmless(user) for user in node.users)


_COPIES = frozenset({"to", "_to_copy", "clone", "contiguous", "detach", "type_as"})


def _pin_all(value: Any, reason: str, *, mixed: bool = False) -> None:
    for axes in tensors_in(value):
        for axis in axes:
            axis.pin(reason, mixed=mixed)
        if isinstance(axes, Marked):
            axes.give_up(reason)


def _with_units(axes: TensorAxes) -> TensorAxes:
    """Return the axes, and with what belongs to chosen units the axis of these."""
    return axes.by.with_units(axes) if isinstance(axes, Chosen) else axes


def _settled(value: Any) -> Any:
    if isinstance(value, TensorAxes):
        return settled(value)
    return tuple(_settled(part) for part in value) if isinstance(value, tuple | list) else value


def _pinned_like(node: fx.Node, reason: str) -> Any:
    """Return fresh pinned axes for whatever tensors the node gives out."""

    def fresh(value: Any) -> Any:
        if isinstance(value, Tensor):
            return TensorAxes(AxisClass(extent(n) or 0, pinned=reason) for n in value.shape)
        return tuple(fresh(part) for part in value) if isinstance(value, tuple | list) else None

    return fresh(node.meta.get("val"))
