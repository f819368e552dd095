"""Scales: what counts as rounding noise, and how far the entries of a matrix spread."""

import torch
from torch import Tensor

from gpu_align._problem import AlignmentProblem


def tolerance(problem: AlignmentProblem, model: Tensor) -> Tensor:
    """Return the decrease of D below which a move is rounding noise, int64 [b] -> float64 [b]."""
    return rounding(problem) * problem.magnitude[model]


def rounding(problem: AlignmentProblem) -> float:
    """Return the share of the magnitude of objectives that is rounding noise."""
    return 1e-7 if problem.dtype == torch.float32 else 1e-13


def deviation(matrices: Tensor) -> Tensor:
    """Return the standard deviation of the entries of each matrix, [b, n, n] -> [b]; 0 if one."""
    entries = matrices.flatten(1)
    # In two passes: on the CPU torch's own std takes twice the time.
    centred = entries - entries.mean(1, keepdim=True)
    return torch.linalg.vector_norm(centred, dim=1) / max(entries.shape[1] - 1, 1) ** 0.5
