"""The tensors of several models side by side, so that one operation serves all of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpu_align._errors import CheckpointError, GpuAlignError, SpecError, bullet_list
from gpu_align._symmetry._move import stack
from gpu_align._symmetry._spec import PermutationSpec, StateDict

_CHUNK_ELEMENTS = 2**18  # stacked to look for NaN: larger copies would cost more than the calls


def stacked(spec: PermutationSpec, name: str, states: Sequence[StateDict]) -> Tensor:
    """Return one tensor of every model on the host, [m, *shape]; see `stack`."""
    return stack([spec.tensor_of(name, state).cpu() for state in states])


def flat(tensors: Tensor) -> Tensor:
    """Return a stack with one row of entries per model, [m, entries]."""
    return tensors.reshape(len(tensors), tensors.shape[1:].numel())


def unusable(spec: PermutationSpec, states: Sequence[StateDict]) -> dict[int, GpuAlignError]:
    """Return what is wrong with the models that cannot be aligned, by their number.

    Names and shapes are checked for each model, then the entries of all that fit at once.
    """
    errors: dict[int, GpuAlignError] = {}
    for number, state in enumerate(states):
        try:
            spec.validate(state, "source")
        except SpecError as error:
            errors[number] = error
    fitting = [number for number in range(len(states)) if number not in errors]
    for number in _not_comparable(spec, states, fitting):
        try:
            check_weights(spec, states[number], "source")
        except CheckpointError as error:
            errors[number] = error
    return dict(sorted(errors.items()))


def _not_comparable(
    spec: PermutationSpec, states: Sequence[StateDict], numbers: Sequence[int]
) -> list[int]:
    """Return which of the models, all of which fit the spec, have something for `check_weights`."""
    found: set[int] = set()
    for name, tensor_spec in spec.tensors.items():
        tensors = {number: spec.tensor_of(name, states[number]) for number in numbers}
        floating = [n for n, tensor in tensors.items() if torch.is_floating_point(tensor)]
        if tensor_spec.counted or tensor_spec.groups:
            found.update(tensors.keys() - set(floating))
        together = max(_CHUNK_ELEMENTS // max(math.prod(tensor_spec.shape), 1), 1)
        for start in range(0, len(floating), together):
            part = floating[start : start + together]
            finite = flat(_isfinite(stack([tensors[n] for n in part]))).all(1).tolist()
            found.update(n for n, good in zip(part, finite, strict=True) if not good)
    return sorted(found)


def check_weights(spec: PermutationSpec, state_dict: StateDict, role: str) -> None:
    """Check that the weights of a network can be compared.

    Raises:
        CheckpointError: weights are integers or complex, or have NaN or infinite entries.
    """
    problems = []
    for name, tensor_spec in spec.tensors.items():
        tensor = spec.tensor_of(name, state_dict)
        if not torch.is_floating_point(tensor):
            if tensor_spec.counted or tensor_spec.groups:
                problems.append(
                    f"{name!r} has dtype {tensor.dtype}, expected real floating point; convert or "
                    "dequantise it"
                )
        elif bad := tensor.numel() - int(_isfinite(tensor).sum()):
            problems.append(
                f"{name!r} has {bad} NaN or infinite entries of {tensor.numel()}; "
                "was the training stable?"
            )
    if problems:
        raise CheckpointError(f"the {role} cannot be aligned:\n{bullet_list(problems)}")


def _isfinite(tensor: Tensor) -> Tensor:
    # The 8-bit formats have no isfinite of their own.
    return torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float())


def compute_dtype(spec: PermutationSpec, states: Sequence[StateDict]) -> torch.dtype:
    """Half precision is computed in float32; float64 wherever a counted tensor has it."""
    double = any(
        spec.tensor_of(name, state).dtype == torch.float64
        for name, tensor_spec in spec.tensors.items()
        if tensor_spec.counted
        for state in states
    )
    return torch.float64 if double else torch.float32
