"""One walk through a traced graph that gives every value the powers of its units."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._op import Op
from gpu_align._symmetry._power import (
    AxisPowers,
    Power,
    TensorPowers,
    Unknown,
    UnmatchedError,
    set_equal,
)
from gpu_align._symmetry._propagation import Traced
from gpu_align._symmetry._rules import POWER_RULES, PowerCall, find_rule, unknown
from gpu_align._symmetry._splits import TensorAxes

Names = Mapping[AxisClass, str]

_LOOKS_AT_SHAPES = ("sym_", "_assert")


class PowerWalk:
    """The powers of all values in a graph, node after node.

    Attributes:
        names: leaf -> the name of its group.
        found: node -> its powers.
        cut: nodes whose signs are not those of their arguments, but free.
    """

    def __init__(self, names: Names, cut: Collection[fx.Node] = ()) -> None:
        self.names, self.cut = names, frozenset(cut)
        self.found: dict[fx.Node, Any] = {}

    def stored(self, axes: TensorAxes, tensor: Tensor) -> TensorPowers:
        """Return the unknown powers of a stored tensor; what is not floating point has none."""
        make = Power.fresh if torch.is_floating_point(tensor) else Power.none
        powers = TensorPowers(
            AxisPowers(axis, tuple(make(leaf) for leaf in axis.leaves() if leaf in self.names))
            for axis in axes
        )
        powers.is_stored = True
        return powers

    def unchanged(self, value: Any) -> Any:
        """Return powers of 0 for the axes of a node, which may have several outputs."""
        if isinstance(value, TensorAxes):
            return TensorPowers(
                AxisPowers(
                    axis, tuple(Power.none(leaf) for leaf in axis.leaves() if leaf in self.names)
                )
                for axis in value
            )
        if isinstance(value, tuple | list):
            return tuple(self.unchanged(part) for part in value)
        return value

    def run(self, traced: Traced, stored: Mapping[str, TensorPowers]) -> None:
        """Give every node its powers, and tell what its op says about those of its arguments."""
        for node in traced.graph.nodes:
            if node in traced.stored:
                self.found[node] = stored[traced.stored[node]]
            elif node.op != "output":
                outputs = self.unchanged(traced.values[node])
                is_call = node.op == "call_function"
                powers = self._call(node, outputs) if is_call else outputs
                self.found[node] = _freed(powers) if node in self.cut else powers

    def _call(self, node: fx.Node, outputs: Any) -> Any:
        op = Op(node)
        if op.is_item:
            return op.item(self.found.__getitem__)
        if op.name.startswith(_LOOKS_AT_SHAPES):
            return outputs
        call = _power_call(op, outputs)
        try:
            made = self._apply(op, call)
        except UnmatchedError:
            given = node.args, dict(node.kwargs)
            unknown(call, fx.node.map_arg(given, self.found.__getitem__))
            return outputs
        for axes in made:
            axes.is_stored = all(_are_stored(self.found[n]) for n in node.all_input_nodes)
        return made[0] if isinstance(outputs, TensorPowers) else made

    def _apply(self, op: Op, call: PowerCall) -> tuple[TensorPowers, ...]:
        """Apply the rule of an op.

        Raises:
            UnmatchedError: there is none, or it cannot be applied.
        """
        arguments = op.arguments(self.found.__getitem__)
        rule = None if op.has_out else find_rule(POWER_RULES, op.name, arguments)
        if rule is None or not call.shapes or not op.gives_floats:
            raise UnmatchedError
        made = rule(call, **arguments)
        made = (made,) if isinstance(made, TensorPowers) else made
        leaves = [[axis.leaves for axis in axes] for axes in made]
        if leaves != [[axis.leaves for axis in axes] for axes in call.outputs]:
            raise UnmatchedError
        _tie_written([arguments.get(name) for name in op.written], made[0])
        return tuple(map(copy.copy, made))


def _power_call(op: Op, outputs: Any) -> PowerCall:
    parts = (outputs,) if isinstance(outputs, TensorPowers) else outputs or ()
    given = [Op(argument).shapes for argument in op.node.all_input_nodes[:1]]
    return PowerCall(op.name, parts, given[0][0] if given and given[0] else (), op.shapes or ())


def _are_stored(value: Any) -> bool:
    return isinstance(value, TensorPowers) and value.is_stored


def _tie_written(written: Sequence[Any], made: TensorPowers) -> None:
    """An op that writes into its argument changes what earlier nodes hold: it must not change."""
    for argument in written:
        if not isinstance(argument, TensorPowers) or len(argument) != len(made):
            raise UnmatchedError
        for before, after in zip(argument, made, strict=True):
            set_equal(before, after)


def _freed(axes: TensorPowers) -> TensorPowers:
    """Return the axes of a value whose units may have any signs."""
    return TensorPowers(
        AxisPowers(axis.axis, tuple(Power(p.leaf, Unknown(), p.scale) for p in axis.powers))
        for axis in axes
    )
