"""State dicts with their units reordered: one, or many together."""

from collections.abc import Mapping

from torch import Tensor

from gpu_align._symmetry._gauge._shift import shifted
from gpu_align._symmetry._memory import memory_of
from gpu_align._symmetry._move import move, multiply
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._stacks import Stack
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
            order, negated = (
                {g: v[number, None].cpu() for g, v in found.items()} for found in (perms, signs)
            )
            results.append(reordered(spec, state, order, negated, {}))
    for name, tensor_spec in spec.tensors.items() if together else ():
        if tensor_spec.groups:
            rows = apart(permuted(weights[name], name, spec, perms, signs, {}).cpu())
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
        if spec.tensors[kept].groups:
            moved = permuted(given.to(weights.device), kept, spec, perms, signs, {})
            given = moved.to(given.device, given.dtype)
        made[name] = given
    return made


def reordered(
    spec: PermutationSpec,
    state: StateDict,
    perms: Mapping[str, Tensor],
    signs: Mapping[str, Tensor],
    phases: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return one state dict with its units reordered; perms, signs and phases [1, units]."""
    done: dict[object, Tensor] = {}
    result = {}
    for alias, tensor in state.items():
        # Names may share memory and still be permuted apart, where the spec does not tie them.
        name = spec.ties.get(alias, alias)
        tensor_spec = spec.tensors[name]
        identity = memory_of(tensor), tensor_spec.axes
        if identity not in done:
            done[identity] = tensor
            if tensor_spec.groups:
                done[identity] = permuted(tensor[None], name, spec, perms, signs, phases)[0]
        result[alias] = done[identity]
    return result


def permuted(
    tensors: Tensor,
    name: str,
    spec: PermutationSpec,
    perms: Mapping[str, Tensor],
    signs: Mapping[str, Tensor],
    phases: Mapping[str, Tensor],
) -> Tensor:
    """Return a stack of tensors of one name, their units reordered, then negated, then shifted."""
    moved = move(tensors, spec.tensors[name], spec.groups, perms)
    return shifted(multiply(moved, spec.tensors[name], spec.groups, signs), name, spec, phases)


def _is_plain(spec: PermutationSpec, state: StateDict) -> bool:
    """Say whether a state dict has the names of the spec only, and each its own memory."""
    if state.keys() != spec.tensors.keys():
        return False
    # Tensors at different places are different memory, those of no entries aside.
    if len({tensor.data_ptr() for tensor in state.values()}) == len(state):
        return True
    return len({memory_of(tensor) for tensor in state.values()}) == len(state)
