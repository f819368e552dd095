"""discover: find the permutation symmetries of a model by tracing it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from gpu_align._errors import folded
from gpu_align._process import MODULES
from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._cuts import pin_cut_axes, pin_cut_off
from gpu_align._symmetry._export import export
from gpu_align._symmetry._flat_graph import Program, flat_graph
from gpu_align._symmetry._gauge._find import Layouts, with_gauges
from gpu_align._symmetry._gauge._norm_scale import find_norm_scales
from gpu_align._symmetry._gauge._phase import with_phases
from gpu_align._symmetry._in_double import PRESERVED
from gpu_align._symmetry._layout import layout, name_groups
from gpu_align._symmetry._memory import memory_of, overlapping
from gpu_align._symmetry._outputs import Kept, outputs_of_graph
from gpu_align._symmetry._parts import Pin
from gpu_align._symmetry._propagation import propagate
from gpu_align._symmetry._spec import PermutationSpec
from gpu_align._symmetry._splits import TensorAxes
from gpu_align._symmetry._tensor_spec import TensorSpec
from gpu_align._symmetry._verify import SizeError, verify_spec
from gpu_align._symmetry._wrappers import unwrapped

_OUTPUT = "graph output"


def discover(
    model: nn.Module | ExportedProgram,
    example_inputs: object,
    *,
    verify: bool = True,
    outputs: Kept | None = None,
) -> PermutationSpec:
    """Find the groups of interchangeable units of a model.

    The model is traced with `torch.export` in evaluation mode and axis classes are propagated
    through the graph, one rule per kind of op (`gpu_align._symmetry._rules`). Graph inputs and
    outputs are pinned, and so is all that an op without a rule touches. What is found is checked
    on inputs of the traced shape and of other sizes, as far as the model takes them; trace with a
    batch of two or more, as a model may treat a batch of one in its own way.

    Args:
        model: a module, or a program already exported with `torch.export`. DataParallel,
            AveragedModel and `torch.compile` around a module are taken off.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; for an
            exported program it may be None, then its own example inputs are used.
        verify: check on random symmetries that the outputs do not change (float64).
        outputs: the outputs that must stay as they are: a name (key or field) or number, or
            several. Default: all of them. `spec.outputs` says how many units each holds in place.

    Returns:
        The spec; `spec.pins` says which axes stay fixed and why.

    Raises:
        InputError: there is no such output.
        ModelError: the model cannot be traced or its forward fails.
        SpecError: the self-test failed.
    """
    with MODULES, _mode_of(model):
        if isinstance(model, nn.Module):
            model = unwrapped(model)
        return _discover(model, example_inputs, outputs, verify=verify)


def _mode_of(model: nn.Module | ExportedProgram) -> AbstractContextManager[object]:
    """Return inference mode for a module that was made in it: elsewhere it cannot be traced."""
    if isinstance(model, nn.Module) and any(p.is_inference() for p in model.parameters()):
        return torch.inference_mode()
    return nullcontext()


def _discover(
    model: nn.Module | ExportedProgram,
    example_inputs: object,
    outputs: Kept | None,
    *,
    verify: bool,
) -> PermutationSpec:
    module: nn.Module
    held: Mapping[str, object]
    origin = f"traced from {type(model).__name__}"
    if isinstance(model, ExportedProgram):
        program, module, held = Program.of(model), model.module(), model.state_dict
        example_inputs = model.example_inputs if example_inputs is None else example_inputs
        origin = f"traced from {type(module).__name__}"
    else:
        (program, ignored), module, held = export(model, example_inputs), model, model.state_dict()
        origin += f" without its output {folded(ignored, 3)}" if ignored else ""
    state = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
    spec = find_symmetries(program, state, origin, outputs).spec
    if not verify:
        return spec
    try:
        return _verified(spec, module, example_inputs, outputs)
    except SizeError:
        spec = find_symmetries(program, state, origin, outputs, pin_cuts=True).spec
        return _verified(spec, module, example_inputs, outputs)


def _verified(
    spec: PermutationSpec, model: nn.Module, example_inputs: object, outputs: Kept | None
) -> PermutationSpec:
    """Return a spec that describes symmetries of a model, with a note if float64 did not do."""
    _, note = verify_spec(
        *(spec, model, example_inputs), draws=1, seed=0, tolerance=PRESERVED, outputs=outputs
    )
    return replace(spec, origin=f"{spec.origin}, {note}") if note else spec


@dataclass(frozen=True)
class Symmetries:
    """What was found in a program.

    Attributes:
        spec: the symmetries.
        graph: the ops, flat.
        outputs: the values that must stay as they are, and the name of each; those written into
            buffers have none.
        layouts: where the units of groups are in the values of the graph.
    """

    spec: PermutationSpec
    graph: fx.Graph
    outputs: Sequence[tuple[fx.Node, str]]
    layouts: Layouts


def find_symmetries(
    program: Program,
    state: Mapping[str, Tensor],
    origin: str,
    outputs: Kept | None,
    *,
    pin_cuts: bool = False,
) -> Symmetries:
    """Find the symmetries in a program; `pin_cuts` leaves every axis fixed that it cuts."""
    tensors, ties = _fresh_axes(state)
    graph = flat_graph(program)
    kept = outputs_of_graph(program, graph, outputs)
    origin += "" if outputs is None else f" for its output {folded(_names(kept), 3)}"
    signature = program.graph_signature
    reasons = {name: f"{_OUTPUT} {name}" if len(kept) > 1 else _OUTPUT for _, name in kept}
    pinned = [(value, reasons[name]) for value, name in kept]
    traced = propagate(graph, signature, tensors, ties, pinned)
    pin_cut_off(traced)
    if pin_cuts:
        pin_cut_axes(traced)
    names, groups = name_groups(traced)
    parameters = {ties.get(name, name) for name in signature.parameters}
    spec = PermutationSpec(
        groups=groups,
        tensors={
            name: TensorSpec(tuple(layout(axis, names) for axis in axes), name in parameters)
            for name, axes in tensors.items()
        },
        ties=ties,
        pins=tuple(_pins(tensors, partial=False)),
        origin=origin,
        norm_scales=tuple(find_norm_scales(traced, state)),
        outputs=_held(reasons, tensors) if len(kept) > 1 else {},
        partial_pins=tuple(_pins(tensors, partial=True)),
    )
    spec, layouts = with_gauges(spec, traced, names, state)
    return Symmetries(with_phases(spec, traced, names, state), graph, kept, layouts)


def _fresh_axes(state: Mapping[str, Tensor]) -> tuple[dict[str, TensorAxes], dict[str, str]]:
    """Give each tensor of the state dict its axis classes; names of one memory share them.

    Tensors that are different views of one storage (a transpose, a slice) are pinned: moving one
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
    for name in overlapping(state) & tensors.keys():
        for axis in tensors[name]:
            axis.pin("shares memory in another layout", mixed=True)
    return tensors, ties


def _names(kept: Iterable[tuple[object, str]]) -> list[str]:
    return list(dict.fromkeys(name for _, name in kept if name))


def _held(reasons: Mapping[str, str], tensors: Mapping[str, TensorAxes]) -> dict[str, int]:
    """Return for each output how many units it holds in place that something reads.

    What nothing reads are the units of the output itself.
    """
    read = {leaf for axes in tensors.values() for axis in axes[1:] for leaf in axis.leaves()}
    sizes = [(leaf.pinned, leaf.size) for leaf in read if leaf.size > 1]
    return {
        name: sum(size for pinned, size in sizes if pinned == reason)
        for name, reason in reasons.items()
        if name
    }


def _pins(tensors: Mapping[str, TensorAxes], *, partial: bool) -> Iterator[Pin]:
    """Yield the axes that stay fixed as a whole, or those of which only some part does."""
    for name, axes in tensors.items():
        for number, axis in enumerate(axes):
            all_reasons = dict.fromkeys(leaf.pinned for leaf in axis.leaves() if leaf.size > 1)
            reasons = [reason for reason in all_reasons if reason is not None]
            if reasons and partial == (None in all_reasons):
                yield Pin(name, number, ", ".join(reasons))
