"""discover: find the permutation symmetries of a model by tracing it."""

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from gpu_align._errors import ModelError
from gpu_align._symmetry._classes import AxisClass, layout, pin_inexpressible
from gpu_align._symmetry._rules import RULES, Call, TensorAxes
from gpu_align._symmetry._spec import Group, PermutationSpec, Pin, TensorSpec, memory_of, storage_of
from gpu_align._symmetry._verify import as_arguments, evaluation_mode


def discover(
    model: nn.Module | ExportedProgram, example_inputs: object, *, verify: bool = True
) -> PermutationSpec:
    """Find the groups of interchangeable units of a model.

    The model is traced with `torch.export` in evaluation mode and axis classes are propagated
    through the graph, one rule per family of ops (`gpu_align._symmetry._rules`). Graph inputs and
    outputs are pinned, and so is all that an op without a rule touches. What is found holds for
    inputs of the traced shape; trace with a batch of two or more, as a model may treat a batch of
    one in its own way.

    Args:
        model: a module, or a program already exported with `torch.export`.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; for an
            exported program it may be None, then its own example inputs are used.
        verify: check on random permutations that the outputs do not change (float64).

    Returns:
        The spec; `spec.pins` says which axes stay fixed and why.

    Raises:
        ModelError: the model cannot be traced or its forward fails.
        SpecError: the self-test failed.
    """
    module: nn.Module
    if isinstance(model, ExportedProgram):
        program, module = model, model.module()
        example_inputs = program.example_inputs if example_inputs is None else example_inputs
    else:
        program, module = _export(model, example_inputs), model
    held = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    state = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
    spec = _build(program, state, f"traced from {type(module).__name__}")
    if verify:
        spec.verify(module, example_inputs, draws=1)
    return spec


def _export(model: nn.Module, example_inputs: object) -> ExportedProgram:
    args, kwargs = as_arguments(example_inputs)
    with evaluation_mode(model), torch.no_grad():
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise ModelError(
                f"the model's forward fails on the example inputs: {type(error).__name__}: {error}"
                "; pass inputs of the shape, dtype and device that the model expects"
            ) from error
        try:
            return torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise ModelError(
                f"torch.export cannot trace the model: {type(error).__name__}: {error}; "
                "remove control flow that depends on data, or pass a spec instead of a model"
            ) from error


def _build(program: ExportedProgram, state: Mapping[str, Tensor], origin: str) -> PermutationSpec:
    tensors, ties = _fresh_axes(state)
    used = _propagate(program, tensors, ties)
    for name, axes in tensors.items():
        for axis in axes:
            if name not in used:
                axis.pin("not used in forward")
            pin_inexpressible(axis)
    names = _name_groups(used, tensors)
    parameters = set(program.graph_signature.parameters)
    return PermutationSpec(
        groups={name: Group(name, leaf.size) for leaf, name in names.items()},
        tensors={
            name: TensorSpec(
                tuple(layout(axis, names) for axis in axes),
                counted=not parameters.isdisjoint(
                    [name, *(alias for alias, kept in ties.items() if kept == name)]
                ),
            )
            for name, axes in tensors.items()
        },
        ties=ties,
        pins=tuple(_pins(tensors)),
        origin=origin,
    )


def _fresh_axes(state: Mapping[str, Tensor]) -> tuple[dict[str, TensorAxes], dict[str, str]]:
    """Give each tensor of the state dict its axis classes; names of one memory share them.

    Tensors that share storage in different layouts (a transpose, a slice) are pinned: moving one
    would move the other in another way.
    """
    tensors: dict[str, TensorAxes] = {}
    ties: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in state.items():
        kept = first.setdefault(memory_of(tensor), name)
        if kept == name:
            tensors[name] = TensorAxes(AxisClass(size) for size in tensor.shape)
        else:
            ties[name] = kept
    stored: dict[int, list[str]] = {}
    for name in tensors:
        if state[name].numel():
            stored.setdefault(storage_of(state[name]), []).append(name)
    for names in stored.values():
        for name in names if len(names) > 1 else ():
            for axis in tensors[name]:
                axis.pin("shares memory in another layout")
    return tensors, ties


def _propagate(
    program: ExportedProgram, tensors: Mapping[str, TensorAxes], ties: Mapping[str, str]
) -> list[str]:
    """Walk the graph once; return the state-dict names in the order in which they are used."""
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    values: dict[fx.Node, Any] = {}
    used: dict[str, None] = {}
    stored: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            target = inputs[node.name].target or ""
            name = ties.get(target, target)
            if name in tensors:
                stored[node], values[node] = name, tensors[name]
            else:
                values[node] = _pinned_like(node, _ROLES.get(inputs[node.name].kind, "constant"))
        elif node.op == "call_function":
            values[node] = _call(node, values)
            used.update((stored[a], None) for a in node.all_input_nodes if a in stored)
        elif node.op == "output":
            for argument in node.all_input_nodes:
                _pin_all(values[argument], "graph output")
        else:
            values[node] = _pinned_like(node, "constant")
    return list(used)


_ROLES = {InputKind.USER_INPUT: "graph input", InputKind.BUFFER: "non-persistent buffer"}


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Apply the rule of one node, or pin what it touches."""
    args: tuple[Any, ...] = fx.node.map_arg(node.args, lambda n: values[n])
    kwargs: dict[str, Any] = fx.node.map_arg(dict(node.kwargs), lambda n: values[n])
    if node.target is operator.getitem:
        return args[0][args[1]] if type(args[0]) is tuple else None
    if not isinstance(node.target, torch._ops.OpOverload):
        return _pin_touched(node, values, f"{node.target} has no rule")
    op = node.target._schema.name.removeprefix("aten::")
    shapes = _shapes(node)
    if not _gives_tensors(node) and not node.target._schema.is_mutable:
        return None
    if any(argument.is_out for argument in node.target._schema.arguments):
        return _pin_touched(node, values, f"op {op} with out=")
    rule = RULES.get(op) or RULES.get(op.removesuffix("_"))
    if rule is None or shapes is None:
        return _pin_touched(node, values, f"op {op} has no rule")
    names = [argument.name for argument in node.target._schema.arguments]
    found = rule(Call(op, shapes), **dict(zip(names, args, strict=False)), **kwargs)
    outputs = (found,) if isinstance(found, TensorAxes) else found
    sizes = tuple(tuple(axis.size for axis in axes) for axes in outputs)
    assert sizes == shapes, f"the rule of op {op} gives shapes {sizes}, the op gives {shapes}"
    return found


def _pin_touched(node: fx.Node, values: Mapping[fx.Node, Any], reason: str) -> Any:
    for argument in node.all_input_nodes:
        _pin_all(values[argument], reason)
    return _pinned_like(node, reason)


def _pin_all(value: Any, reason: str) -> None:
    if isinstance(value, TensorAxes):
        for axis in value:
            axis.pin(reason)
    elif isinstance(value, tuple | list):
        for part in value:
            _pin_all(part, reason)


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], ...] | None:
    """Return the shapes of a node whose outputs are one tensor or a list of them, else None."""
    value = node.meta.get("val")
    values = [value] if isinstance(value, Tensor) else value
    if not isinstance(values, tuple | list) or not all(isinstance(v, Tensor) for v in values):
        return None
    return tuple(tuple(v.shape) for v in values)


def _gives_tensors(node: fx.Node) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(node.meta.get("val")))


def _pinned_like(node: fx.Node, reason: str) -> Any:
    """Return fresh pinned axes for whatever tensors the node gives out."""

    def fresh(value: Any) -> Any:
        if isinstance(value, Tensor):
            return TensorAxes(AxisClass(size, pinned=reason) for size in value.shape)
        return tuple(fresh(part) for part in value) if isinstance(value, tuple | list) else None

    return fresh(node.meta.get("val"))


def _name_groups(used: list[str], tensors: Mapping[str, TensorAxes]) -> dict[AxisClass, str]:
    """Name each free leaf after the module that uses it first, in the order of use."""
    names: dict[AxisClass, str] = {}
    taken: set[str] = set()
    for name in used:
        for axis in tensors[name]:
            free = [leaf for leaf in axis.leaves() if leaf.pinned is None and leaf.size > 1]
            for leaf in dict.fromkeys(leaf for leaf in free if leaf not in names):
                base = name.rpartition(".")[0] or name
                names[leaf] = base if base not in taken else f"{base}[{len(taken)}]"
                taken.add(names[leaf])
    return names


def _pins(tensors: Mapping[str, TensorAxes]) -> Iterator[Pin]:
    for name, axes in tensors.items():
        for number, axis in enumerate(axes):
            reasons = dict.fromkeys(leaf.pinned for leaf in axis.leaves() if leaf.size > 1)
            if reasons and None not in reasons:
                yield Pin(name, number, ", ".join(str(reason) for reason in reasons))
