"""What weights must be to be compared, looked at for many models at once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpu_align._errors import CheckpointError, GpuAlignError, SpecError, bullet_list
from gpu_align._symmetry import (
    PermutationSpec,
    Stack,
    StateDict,
    part_elements,
    part_ranges,
    stack,
    stack_of,
    tensors_of,
)

_HOST = torch.device("cpu")


def flat(tensors: Tensor) -> Tensor:
    """Return a stack with one row of entries per model, [m, entries]."""
    return tensors.reshape(len(tensors), tensors.shape[1:].numel())


def squared_norms(tensors: Tensor) -> Tensor:
    """Return the squared norm of each tensor of a stack, float64 [m].

    In parts, so that no copy in float64 is made of the whole.
    """
    rows, most = flat(tensors), part_elements(tensors.device)
    if rows.numel() <= most:
        return rows.to(torch.float64).square().sum(1)
    width = min(rows.shape[1], most)
    height = min(most // max(width, 1), len(rows))
    wide = rows.new_empty(height, width, dtype=torch.float64)
    total = rows.new_zeros(len(rows), dtype=torch.float64)
    for some, sums in zip(rows.split(max(height, 1)), total.split(max(height, 1)), strict=True):
        for part in some.split(max(width, 1), dim=1):
            sums += wide[: len(part), : part.shape[1]].copy_(part).square_().sum(1)
    return total


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


def unusable_of_stack(spec: PermutationSpec, states: Stack) -> dict[int, GpuAlignError]:
    """Return what is wrong with the models of a stack that cannot be aligned, by their number.

    Raises:
        SpecError: names or shapes, which are those of all, do not fit the spec.
    """
    if not len(states):
        return {}
    spec.validate(states[0], "source")
    errors: dict[int, GpuAlignError] = {}
    for number in _not_comparable(spec, states, range(len(states))):
        try:
            check_weights(spec, states[number], "source")
        except CheckpointError as error:
            errors[number] = error
    return errors


def _not_comparable(
    spec: PermutationSpec, states: Sequence[StateDict], numbers: Sequence[int]
) -> list[int]:
    """Return which of the models, all of which fit the spec, have something for `check_weights`."""
    found: set[int] = set()
    for name, tensor_spec in spec.tensors.items():
        if isinstance(states, Stack):
            found.update(_not_comparable_rows(spec, name, states))
            continue
        held = tensors_of(spec, name, [states[number] for number in numbers])
        tensors = dict(zip(numbers, held, strict=True))
        floating = [n for n, tensor in tensors.items() if tensor.is_floating_point()]
        if tensor_spec.counted or tensor_spec.groups:
            found.update(tensors.keys() - set(floating))
        elements = math.prod(tensor_spec.shape)
        for start, stop in part_ranges(len(floating), elements, part_elements(_HOST)):
            part = floating[start:stop]
            sums = _sums(stack([tensors[n] for n in part])).tolist()
            found.update(n for n, sum_ in zip(part, sums, strict=True) if not math.isfinite(sum_))
    return sorted(found)


def _not_comparable_rows(spec: PermutationSpec, name: str, states: Stack) -> list[int]:
    """Return which models of a stack have one tensor that is none to compare."""
    tensors, tensor_spec = stack_of(spec, name, states), spec.tensors[name]
    if not tensors.is_floating_point():
        return list(range(len(states))) if tensor_spec.counted or tensor_spec.groups else []
    return [int(n) for n in (~has_finite_sums(tensors)).nonzero()[:, 0]]


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
        elif bad := _not_finite(tensor):
            problems.append(
                f"{name!r} has {bad} NaN or infinite entries of {tensor.numel()}; "
                "was the training stable?"
            )
    if problems:
        raise CheckpointError(f"the {role} cannot be aligned:\n{bullet_list(problems)}")


def has_finite_sums(tensors: Tensor) -> Tensor:
    """Say of each tensor of a stack whether the sum of its entries is finite, bool [m].

    One pass. If so, all entries are finite; if not, the sum may just have overflowed.
    """
    return _sums(tensors).isfinite()


def _sums(tensors: Tensor) -> Tensor:
    """Return the sum of the entries of each tensor of a stack, [m], in float32 or float64."""
    dtype = torch.float64 if tensors.dtype == torch.float64 else torch.float32
    # The 8-bit formats cannot be summed.
    rows = flat(tensors if tensors.element_size() > 1 else tensors.float())
    return rows.sum(1, dtype=dtype)


def _not_finite(tensor: Tensor) -> int:
    """Return how many entries are NaN or infinite."""
    if math.isfinite(float(_sums(tensor[None]))):
        return 0
    wide = tensor if tensor.element_size() > 1 else tensor.float()
    return tensor.numel() - int(wide.isfinite().sum())


def compute_dtype(spec: PermutationSpec, states: Sequence[StateDict]) -> torch.dtype:
    """Half precision is computed in float32; float64 wherever a counted tensor has it."""
    counted = [name for name, tensor in spec.tensors.items() if tensor.counted]
    some = states[:1] if isinstance(states, Stack) else states
    double = any(
        tensor.dtype == torch.float64 for name in counted for tensor in tensors_of(spec, name, some)
    )
    return torch.float64 if double else torch.float32
