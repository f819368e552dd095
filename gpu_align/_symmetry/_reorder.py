"""State dicts with their units reordered: one, or many together."""

from collections.abc import Mapping

from torch import Tensor

from gpu_align._symmetry._memory import memory_of
from gpu_align._symmetry._move import move, multiply
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._stacks import Stack
from gpu_align._symmetry._tensor_spec import TensorSpec
from gpu_align._symmetry._weights import Weights, apart


def apply_permutations(
    weights: Weights, perms: Mapping[str, Tensor], signs: Mapping[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Return the state dict of every model with its units reordered by its own permutation.

    The same as `Permutation.apply` of one after another; all tensors of one name are moved at once.

    Args:
        weights: m models.
        perms: group -> int64 [m, units], on the device of the weights.
        signs: signed group -> int64 [m, units].
    """
    spec = weights.spec
    results: list[dict[str, Tensor]] = []
    together = []
    for number, state in enumerate(weights.states):
        if len(weights) > 1 and _is_plain(spec, state):
            results.append(dict(state))
            together.append(number)
        else:
            own = ({g: v[number, None].cpu() for g, v in found.items()} for found in (perms, signs))
            results.append(reordered(spec, state, *own))
    for name, tensor_spec in spec.tensors.items() if together else ():
        if tensor_spec.groups:
            rows = apart(_permuted(weights[name], tensor_spec, spec, perms, signs).cpu())
            for number in together:
                given = results[number][name]
                results[number][name] = rows[number].to(given.device, given.dtype)
    return results


def permuted_stack(
    weights: Weights, perms: Mapping[str, Tensor], signs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a stack with the units of every model reordered by its own permutation.

    The same as `apply_permutations`, without a state dict for each model.

    Args:
        weights: of a `Stack`.
        perms: group -> int64 [m, units], on the device of the weights.
        signs: signed group -> int64 [m, units].
    """
    assert isinstance(weights.states, Stack)
    spec, made = weights.spec, {}
    for name, given in weights.states.tensors.items():
        kept = spec.ties.get(name, name)
        tensor_spec = spec.tensors[kept]
        if tensor_spec.groups:
            moved = _permuted(given.to(weights.device), tensor_spec, spec, perms, signs)
            given = moved.to(given.device, given.dtype)
        made[name] = given
    return made


def reordered(
    spec: PermutationSpec,
    state: StateDict,
    perms: Mapping[str, Tensor],
    signs: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return one state dict with its units reordered; perms and signs [1, units]."""
    done: dict[object, Tensor] = {}
    result = {}
    for name, tensor in state.items():
        # Names may share memory and still be permuted apart, where the spec does not tie them.
        tensor_spec = spec.lookup(name)
        identity = memory_of(tensor), tensor_spec.axes
        if identity not in done:
            done[identity] = tensor
            if tensor_spec.groups:
                done[identity] = _permuted(tensor[None], tensor_spec, spec, perms, signs)[0]
        result[name] = done[identity]
    return result


def _permuted(
    tensors: Tensor,
    tensor_spec: TensorSpec,
    spec: PermutationSpec,
    perms: Mapping[str, Tensor],
    signs: Mapping[str, Tensor],
) -> Tensor:
    """Return a stack of tensors with their units reordered and negated."""
    moved = move(tensors, tensor_spec, spec.groups, perms)
    return multiply(moved, tensor_spec, spec.groups, signs)


def _is_plain(spec: PermutationSpec, state: StateDict) -> bool:
    """Say whether a state dict has the names of the spec only, and each its own memory."""
    if state.keys() != spec.tensors.keys():
        return False
    # Tensors at different places are different memory, those of no entries aside.
    if len({tensor.data_ptr() for tensor in state.values()}) == len(state):
        return True
    return len({memory_of(tensor) for tensor in state.values()}) == len(state)
