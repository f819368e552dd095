"""Propagation: one walk through a traced graph that gives every value its axes."""

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import ExportGraphSignature, InputKind
from torch.utils._pytree import tree_leaves

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._rules import RECURRENT, RULES, Call, Constant, Rule, TensorAxes
from gpu_align._symmetry._splits import settle, settled


@dataclass(frozen=True)
class Traced:
    """What the walk has found.

    Where slices of a split axis have been taken apart, a value with that axis and its slices has
    the axis that was split in place of the first, and axes of size 1 in place of the others.

    Attributes:
        values: node -> the axes of its tensor, a tuple of them for several outputs.
        stored: placeholder node -> the state-dict name of its tensor, tied names resolved.
        used: state-dict names in the order in which they are used.
        computed: the axes of all tensors that ops give or pass through.
    """

    values: dict[fx.Node, Any]
    stored: dict[fx.Node, str]
    used: list[str]
    computed: list[TensorAxes]


def propagate(
    graph: fx.Graph,
    signature: ExportGraphSignature,
    tensors: Mapping[str, TensorAxes],
    ties: Mapping[str, str],
) -> Traced:
    """Walk the graph and unify, refine and pin axes by the rules of its ops.

    Args:
        graph: of the traced model.
        signature: what its inputs are, in order.
        tensors: state-dict name -> its axes.
        ties: further name of a shared tensor -> its name in `tensors`.
    """
    walk = _Walk()
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
                walk.values[node] = _pinned_like(node, _ROLES.get(spec.kind, "constant"))
        elif node.op == "call_function":
            walk.values[node] = walk.call(node)
            walk.computed += tensors_in(walk.values[node])
            used.update((stored[a], None) for a in node.all_input_nodes if a in stored)
        elif node.op == "output":
            for argument in node.all_input_nodes:
                _pin_all(walk.values[argument], "graph output")
        else:
            walk.values[node] = _pinned_like(node, "constant")
    walk.finish()
    return Traced(walk.values, stored, list(used), walk.computed)


_ROLES = {InputKind.USER_INPUT: "graph input", InputKind.BUFFER: "non-persistent buffer"}


class _Walk:
    """The axes of the values so far, and what is still to be said about them."""

    def __init__(self) -> None:
        self.values: dict[fx.Node, Any] = {}
        self.computed: list[TensorAxes] = []
        self.deferred: list[Callable[[], None]] = []

    def call(self, node: fx.Node) -> Any:
        """Apply the rule of one node, or pin what it touches."""
        args: tuple[Any, ...] = fx.node.map_arg(node.args, lambda n: self.values[n])
        kwargs: dict[str, Any] = fx.node.map_arg(dict(node.kwargs), lambda n: self.values[n])
        if node.target is operator.getitem:
            return args[0][args[1]] if type(args[0]) is tuple else None
        if not isinstance(node.target, torch._ops.OpOverload):
            return self._pin_touched(node, f"{node.target} has no rule")
        schema = node.target._schema
        if not gives_tensors(node) and not schema.is_mutable:
            return _extent(node.meta.get("val"))
        op = schema.name.removeprefix("aten::")
        if any(argument.is_out for argument in schema.arguments):
            return self._pin_touched(node, f"op {op} with out=")
        rule = RULES.get(op) or RULES.get(op.removesuffix("_"))
        names = [argument.name for argument in schema.arguments]
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        shapes = output_shapes(node)
        if rule is None or shapes is None or not takes(rule, arguments):
            return self._pin_touched(node, f"op {op} has no rule")
        call = Call(op, shapes, _used_outputs(node), self.computed, self.deferred)
        found = rule(call, **arguments)
        if isinstance(found, Constant) and not _starts_recurrence(node):
            found = TensorAxes(found)
        outputs = (found,) if isinstance(found, TensorAxes) else found
        sizes = tuple(tuple(axis.size for axis in axes) for axes in outputs)
        assert sizes == shapes, f"the rule of op {op} gives shapes {sizes}, the op gives {shapes}"
        return found

    def _pin_touched(self, node: fx.Node, reason: str) -> Any:
        for argument in node.all_input_nodes:
            _pin_all(self.values[argument], reason)
        return _pinned_like(node, reason)

    def finish(self) -> None:
        """Say what was deferred, and close what cannot stay open."""
        for say in self.deferred:
            say()
        settle([*self.computed, *tensors_in(list(self.values.values()))])
        self.values = {node: _settled(value) for node, value in self.values.items()}
        self.computed = [settled(axes) for axes in self.computed]


def takes(rule: Rule, arguments: Mapping[str, Any]) -> bool:
    """Whether a rule is for the overload that has these arguments."""
    try:
        _signature(rule).bind(None, **arguments)
    except TypeError:
        return False
    return True


_signature = functools.cache(inspect.signature)


def _used_outputs(node: fx.Node) -> frozenset[int]:
    getters = [user for user in node.users if user.target is operator.getitem and user.users]
    return frozenset(user.args[1] for user in getters if isinstance(user.args[1], int))


def _starts_recurrence(node: fx.Node) -> bool:
    """Whether nothing but recurrent layers uses a value, so that nothing writes into it."""

    def is_harmless(user: fx.Node) -> bool:
        if not isinstance(user.target, torch._ops.OpOverload):
            return False
        op = user.target._schema.name.removeprefix("aten::")
        looks_only = op in RECURRENT or op == "_assert_tensor_metadata"
        return looks_only or (op in _COPIES and _starts_recurrence(user))

    return all(is_harmless(user) for user in node.users)


_COPIES = frozenset({"to", "_to_copy", "clone", "contiguous", "detach", "type_as"})


def _pin_all(value: Any, reason: str) -> None:
    for axes in tensors_in(value):
        for axis in axes:
            axis.pin(reason)


def tensors_in(value: Any) -> Iterator[TensorAxes]:
    """Yield the axes of each tensor in what a node gives out."""
    if isinstance(value, TensorAxes):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


def _settled(value: Any) -> Any:
    if isinstance(value, TensorAxes):
        return settled(value)
    return tuple(_settled(part) for part in value) if isinstance(value, tuple | list) else value


def output_shapes(node: fx.Node) -> tuple[tuple[int, ...], ...] | None:
    """Return the shapes of a node whose outputs are one tensor or a list of them, else None."""
    value = node.meta.get("val")
    values = [value] if isinstance(value, Tensor) else value
    if not isinstance(values, tuple | list) or not all(isinstance(v, Tensor) for v in values):
        return None
    shapes = tuple(tuple(_extent(size) for size in v.shape) for v in values)
    return None if any(None in shape for shape in shapes) else shapes  # type: ignore[return-value]


def _extent(size: object) -> int | None:
    """Return a size as it was when the model was traced; None if data decides it."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if isinstance(hint, int | torch.SymInt) else None
    return size if isinstance(size, int) else None


def gives_tensors(node: fx.Node) -> bool:
    """Whether a node gives out a tensor, not only sizes or nothing."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(node.meta.get("val")))


def _pinned_like(node: fx.Node, reason: str) -> Any:
    """Return fresh pinned axes for whatever tensors the node gives out."""

    def fresh(value: Any) -> Any:
        if isinstance(value, Tensor):
            return TensorAxes(AxisClass(_extent(n) or 0, pinned=reason) for n in value.shape)
        return tuple(fresh(part) for part in value) if isinstance(value, tuple | list) else None

    return fresh(node.meta.get("val"))
