"""State dicts between those of two networks, or of three."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpu_align._symmetry import StateDict


def between(first: StateDict, second: StateDict, t: float) -> dict[str, Tensor]:
    """Return `(1 - t) first + t second`, in float64.

    Both ends come out exactly, and so does what is equal in both, infinite entries of a mask too.
    What is not of floating point, such as counts, is that of the first.
    """
    found = {}
    for name, tensor in first.items():
        if not _is_mixed(tensor):
            found[name] = tensor.clone()
            continue
        start, end = _wide(tensor), _wide(second[name]).to(tensor.device)
        found[name] = torch.where(start == end, start, torch.lerp(start, end, t))
    return found


def mixed(states: Sequence[StateDict], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return a sum of state dicts with weights that sum to 1, in float64; see `between`."""
    found = {}
    for name, tensor in states[0].items():
        if not _is_mixed(tensor):
            found[name] = tensor.clone()
            continue
        first, *others = (_wide(state[name]).to(tensor.device) for state in states)
        total = first.clone()
        for other, weight in zip(others, weights[1:], strict=True):
            total += weight * torch.where(first == other, 0.0, other - first)
        found[name] = total
    return found


def _is_mixed(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
