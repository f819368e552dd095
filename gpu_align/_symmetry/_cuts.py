"""Places that are cut off: those of a table beyond the length of the inputs, mostly.

What the inputs of the trace cut off, by a slice, a split or a selection, longer inputs use. So the
places of a stored tensor are pinned unless the outputs depend on them, however many ops they pass
through before the cut. A tensor that is cut before it meets an input may also be used as a whole;
its places are pinned unless one of the cuts keeps them. Where what it keeps is as long as an axis
of the inputs, that is pinned too, for shorter inputs keep less.
"""

from collections.abc import Iterator
from typing import Any

from torch import fx

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._op import Op
from gpu_align._symmetry._propagation import Traced
from gpu_align._symmetry._rules import CUTS, RECURRENT, tensors_in
from gpu_align._symmetry._splits import TensorAxes

_CUT_OFF = "not used in forward"
_CUT_TO_SIZE = "cut to the size of the inputs"


def pin_cut_off(traced: Traced) -> None:
    """Pin the places of stored tensors that are cut off, and tensors that are not used at all."""
    for name, tensor in traced.tensors.items():
        for axis in tensor if name not in traced.used else ():
            axis.pin(_CUT_OFF)
    live = _live_leaves(traced)
    for name in dict.fromkeys(traced.stored.values()):
        nodes = [node for node, stored in traced.stored.items() if stored == name]
        for leaf in _leaves(traced.values[nodes[0]]).difference(*(live[node] for node in nodes)):
            leaf.pin(_CUT_OFF)
    sizes = _sizes_of_inputs(traced)
    for source, cuts in _cuts_of_constants(traced).items():
        kept = {leaf for node in cuts for leaf in _used_leaves(node, traced)}
        dropped = _leaves(traced.values[source]) - kept
        for leaf in dropped:
            leaf.pin(_CUT_OFF)
        for node in cuts if dropped else ():
            dim = _cut_dim(node)
            if not sizes.isdisjoint(axes[dim].size for axes in _outputs(node, traced)):
                _pin_cut_axis(node, traced)


def pin_cut_axes(traced: Traced) -> None:
    """Pin each axis that is cut, what is kept of it too: the size may be that of the inputs."""
    for node in traced.values:
        if Op(node).name in CUTS:
            _pin_cut_axis(node, traced)


def _pin_cut_axis(node: fx.Node, traced: Traced) -> None:
    [axes] = tensors_in(traced.values[node.all_input_nodes[0]])
    axes[_cut_dim(node)].pin(_CUT_TO_SIZE)


def _cut_dim(node: fx.Node) -> int:
    return Op(node).arguments().get("dim", 0)


def _outputs(node: fx.Node, traced: Traced) -> Iterator[TensorAxes]:
    """Yield the outputs of a cut that have the axis still."""
    if Op(node).name not in ("select", "unbind"):
        yield from tensors_in(traced.values[node])


def _sizes_of_inputs(traced: Traced) -> set[int]:
    inputs = (n for n in traced.graph.nodes if n.op == "placeholder" and n not in traced.stored)
    axes = (axis for n in inputs for axes in tensors_in(traced.values[n]) for axis in axes)
    return {axis.size for axis in axes if axis.size > 1}


def _live_leaves(traced: Traced) -> dict[fx.Node, set[AxisClass]]:
    """Return the places of each value on which the outputs depend, by one walk back."""
    live: dict[fx.Node, set[AxisClass]] = {node: set() for node in traced.values}
    needed: set[fx.Node] = set()
    for node in reversed(traced.graph.nodes):
        if node.op == "output":
            for argument in node.all_input_nodes:
                needed.add(argument)
                live[argument] |= _leaves(traced.values[argument])
            continue
        op = Op(node)
        if op.writes or (node in needed and op.gives_tensors):
            for argument in node.all_input_nodes:
                needed.add(argument)
                live[argument] |= _live_before(op, argument, live[node], traced)
    return live


def _live_before(op: Op, argument: fx.Node, live: set[AxisClass], traced: Traced) -> set[AxisClass]:
    """Return the places of an argument that an op uses, of whose outputs some are live."""
    own = _leaves(traced.values[argument])
    if op.name in CUTS or op.is_item:
        return own & live
    if op.writes or op.name in RECURRENT:
        return own
    # What is not passed on is summed over.
    return own & live | own - _leaves(traced.values[op.node])


def _cuts_of_constants(traced: Traced) -> dict[fx.Node, list[fx.Node]]:
    """Return the values that do not depend on the inputs and are cut, each with its cuts."""
    constant: set[fx.Node] = set(traced.stored)
    cuts: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "call_function" and sources and constant.issuperset(sources):
            constant.add(node)
            if Op(node).name in CUTS:
                cuts.setdefault(sources[0], []).append(node)
    return cuts


def _used_leaves(node: fx.Node, traced: Traced) -> set[AxisClass]:
    """Return what a node keeps; of several outputs that of those that are used."""
    if type(traced.values[node]) is not tuple:
        return _leaves(traced.values[node])
    used = (getter for getter in node.users if getter.users)
    return {leaf for getter in used for leaf in _leaves(traced.values[getter])}


def _leaves(value: Any) -> set[AxisClass]:
    return {leaf for axes in tensors_in(value) for axis in axes for leaf in axis.leaves()}
