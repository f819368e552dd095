"""discover: find the permutation symmetries of a model by tracing it."""

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gpu_align._errors import ModelError
from gpu_align._process import MODULES
from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._cuts import pin_cut_axes, pin_cut_off
from gpu_align._symmetry._flat_graph import flat_graph
from gpu_align._symmetry._gauge._find import with_gauges
from gpu_align._symmetry._gauge._norm_scale import find_norm_scales
from gpu_align._symmetry._layout import layout, name_groups
from gpu_align._symmetry._memory import memory_of, overlapping
from gpu_align._symmetry._propagation import propagate
from gpu_align._symmetry._spec import PermutationSpec, Pin, TensorSpec
from gpu_align._symmetry._splits import TensorAxes
from gpu_align._symmetry._untouched import untouched
from gpu_align._symmetry._verify import SizeError, as_arguments, copied, evaluation_mode


def discover(
    model: nn.Module | ExportedProgram, example_inputs: object, *, verify: bool = True
) -> PermutationSpec:
    """Find the groups of interchangeable units of a model.

    The model is traced with `torch.export` in evaluation mode and axis classes are propagated
    through the graph, one rule per kind of op (`gpu_align._symmetry._rules`). Graph inputs and
    outputs are pinned, and so is all that an op without a rule touches. What is found is checked
    on inputs of the traced shape and of other sizes, as far as the model takes them; trace with a
    batch of two or more, as a model may treat a batch of one in its own way.

    Args:
        model: a module, or a program already exported with `torch.export`.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; for an
            exported program it may be None, then its own example inputs are used.
        verify: check on random symmetries that the outputs do not change (float64).

    Returns:
        The spec; `spec.pins` says which axes stay fixed and why.

    Raises:
        ModelError: the model cannot be traced or its forward fails.
        SpecError: the self-test failed.
    """
    with MODULES:
        return _discover(model, example_inputs, verify)


def _discover(
    model: nn.Module | ExportedProgram, example_inputs: object, verify: bool
) -> PermutationSpec:
    module: nn.Module
    held: Mapping[str, object]
    if isinstance(model, ExportedProgram):
        program, module, held = model, model.module(), model.state_dict
        example_inputs = program.example_inputs if example_inputs is None else example_inputs
    else:
        program, module, held = _export(model, example_inputs), model, model.state_dict()
    state = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
    origin = f"traced from {type(module).__name__}"
    spec = _build(program, state, origin)
    if not verify:
        return spec
    try:
        spec.verify(module, example_inputs, draws=1)
    except SizeError:
        spec = _build(program, state, origin, pin_cuts=True)
        spec.verify(module, example_inputs, draws=1)
    return spec


def _export(model: nn.Module, example_inputs: object) -> ExportedProgram:
    with untouched(model, weights=True), evaluation_mode(model), torch.no_grad():
        args, kwargs = copied(as_arguments(example_inputs))
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise ModelError(
                f"the model's forward fails on the example inputs: {type(error).__name__}: {error}"
                "; pass inputs of the shape, dtype and device that the model expects"
            ) from error
        try:
            with warnings.catch_warnings():
                # Recurrent layers keep a private list of their parameters.
                warnings.filterwarnings("ignore", "The tensor attribute.* assigned during export")
                return torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise ModelError(
                f"torch.export cannot trace the model: {type(error).__name__}: {error}; "
                "remove control flow that depends on data, or pass a spec instead of a model"
            ) from error


def _build(
    program: ExportedProgram, state: Mapping[str, Tensor], origin: str, *, pin_cuts: bool = False
) -> PermutationSpec:
    """Find the symmetries in a program; `pin_cuts` leaves every axis fixed that it cuts."""
    tensors, ties = _fresh_axes(state)
    traced = propagate(flat_graph(program), program.graph_signature, tensors, ties)
    pin_cut_off(traced)
    if pin_cuts:
        pin_cut_axes(traced)
    names, groups = name_groups(traced)
    parameters = {ties.get(name, name) for name in program.graph_signature.parameters}
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
        partial_pins=tuple(_pins(tensors, partial=True)),
    )
    return with_gauges(spec, traced, names, state)


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


def _pins(tensors: Mapping[str, TensorAxes], *, partial: bool) -> Iterator[Pin]:
    """Yield the axes that stay fixed as a whole, or those of which only some part does."""
    for name, axes in tensors.items():
        for number, axis in enumerate(axes):
            all_reasons = dict.fromkeys(leaf.pinned for leaf in axis.leaves() if leaf.size > 1)
            reasons = [reason for reason in all_reasons if reason is not None]
            if reasons and partial == (None in all_reasons):
                yield Pin(name, number, ", ".join(reasons))
