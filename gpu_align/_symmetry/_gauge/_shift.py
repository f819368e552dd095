"""Phases applied to tensors: biases shifted by half periods, and what reads their units negated."""

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gpu_align._symmetry._axis import Factor, Units
from gpu_align._symmetry._memory import memory_of
from gpu_align._symmetry._move import multiply, one_of_each
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._tensor_spec import TensorSpec

Phases = Mapping[str, Tensor]


def shift_phases(spec: PermutationSpec, state_dict: StateDict, phases: Phases) -> dict[str, Tensor]:
    """Return a state dict whose units have been moved on by half periods; its function stays.

    Computed in float64 and rounded once. Tensors that do not change are passed on as they are.

    Args:
        spec: the symmetries.
        state_dict: name -> tensor, which fit the spec (`PermutationSpec.validate`).
        phases: group with a phase -> int64 [units], by how many half periods; groups left out stay.

    Returns:
        The same names in the same order, dtypes and devices kept.
    """
    each = one_of_each({name: k for name, k in phases.items() if bool(k.any())})
    done: dict[object, Tensor] = {}
    result = {}
    for alias, tensor in state_dict.items():
        name = spec.ties.get(alias, alias)
        identity = memory_of(tensor), name
        if identity not in done:
            done[identity] = shifted(tensor[None], name, spec, each)[0] if each else tensor
        result[alias] = done[identity]
    return result


def shifted(tensors: Tensor, name: str, spec: PermutationSpec, phases: Phases) -> Tensor:
    """Return a stack of tensors of one name with the phases of their units shifted.

    Args:
        tensors: [m, *shape].
        name: of the tensor in the spec.
        spec: the symmetries.
        phases: group with a phase -> int64 [m, units].

    Returns:
        A new stack, or the same one if no phase acts on it.
    """
    tensor_spec = spec.tensors[name]
    odd = {group: 1 - 2 * (phases[group] & 1) for group in tensor_spec.groups if group in phases}
    if not odd:
        return tensors
    for group in odd:
        phase = spec.groups[group].phase
        assert phase is not None, group
        if phase.bias == name:
            moved = phases[group].to(tensors.device, torch.float64) * phase.shift
            return (tensors.to(torch.float64) + moved).to(tensors.dtype)
    return multiply(tensors, read_only(tensor_spec), spec.groups, odd)


@functools.lru_cache(maxsize=1024)
def read_only(tensor: TensorSpec) -> TensorSpec:
    """Return a tensor that shows signs of units only where these are read."""

    def reading(factor: Factor) -> Factor:
        made = isinstance(factor, Units) and factor.power > 0
        return replace(factor, power=0) if isinstance(factor, Units) and made else factor

    return replace(tensor, axes=tuple(axis.replaced(reading) for axis in tensor.axes))
