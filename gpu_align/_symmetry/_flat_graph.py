"""The graph of a traced model as one flat list of ops."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind
from torch.utils._pytree import TreeSpec

_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
"""Ops that run a part of the model as it is: under `torch.no_grad`, under `torch.autocast`."""


@dataclass(frozen=True)
class Program:
    """A traced model.

    Attributes:
        graph_module: its ops.
        graph_signature: what its inputs and outputs are, in order.
        out_spec: how its outputs are nested.
        constants: tensors that are written in its code, by the names of their inputs.
    """

    graph_module: fx.GraphModule
    graph_signature: ExportGraphSignature
    out_spec: TreeSpec
    constants: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, program: ExportedProgram) -> "Program":
        """Return what the rules look at of an exported program."""
        out_spec = program.call_spec.out_spec
        assert out_spec is not None
        return cls(program.graph_module, program.graph_signature, out_spec, program.constants)


def flat_graph(program: Program) -> fx.Graph:
    """Return a copy of a program's graph with the parts inlined that a context manager wraps.

    Nodes of tensors that are written in the model's code have them in `meta["constant"]`.
    """
    graph = fx.Graph()
    graph.output(_copy(program.graph_module, graph, {}))
    places = (node for node in graph.nodes if node.op == "placeholder")
    for node, spec in zip(places, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.CONSTANT_TENSOR:
            node.meta["constant"] = program.constants.get(spec.target or "")
    return graph


def _copy(module: Any, graph: fx.Graph, found: dict[fx.Node, Any]) -> Any:
    """Copy the nodes of a module that are not in `found` yet; return its outputs."""
    for node in module.graph.nodes:
        if node in found:
            continue
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda n: found[n])
        if node.op == "call_function" and getattr(node.target, "__name__", "") in _WRAPPERS:
            found[node] = _inline(module, node, graph, found)
        elif node.target is operator.getitem and not isinstance(found[node.args[0]], fx.Node):
            found[node] = found[node.args[0]][node.args[1]]
        else:
            found[node] = graph.node_copy(node, lambda n: found[n])
    raise AssertionError("a graph ends with its output")


def _inline(module: Any, node: fx.Node, graph: fx.Graph, found: dict[fx.Node, Any]) -> Any:
    """Copy the module that a wrapper runs: its arguments come after the module's."""
    names = [argument for argument in node.args if isinstance(argument, fx.Node)]
    inner = module.get_submodule(names[0].target)
    inputs = node.args[node.args.index(names[0]) + 1 :]
    placeholders = [place for place in inner.graph.nodes if place.op == "placeholder"]
    values = fx.node.map_arg(tuple(inputs), lambda n: found[n])
    return _copy(inner, graph, dict(zip(placeholders, values, strict=True)))
