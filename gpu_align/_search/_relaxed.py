"""Doubly stochastic matrices: Sinkhorn scaling, starts, and rounding to permutations."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._problem import Hypotheses
from gpu_align._search._search import Run


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Scale `exp(logits)` towards a doubly stochastic matrix, columns last.

    Rows, then columns, are shifted to a maximum of 0 first: afterwards every row and every column
    has an entry 1, so neither a sum underflows nor a scaling overflows.

    Args:
        logits: [b, n, n].
        iterations: pairs of a row and a column scaling.

    Returns:
        [b, n, n], columns sum to 1.

    Source: Sinkhorn (1964); as used by Cuturi (NeurIPS 2013).
    """
    logits = logits - logits.amax(2, keepdim=True)
    logits = logits - logits.amax(1, keepdim=True)
    kernel = logits.exp_()
    column = torch.ones_like(kernel[:, :1])
    for _ in range(iterations):
        row = 1 / (kernel @ column.transpose(1, 2))
        column = 1 / (row.transpose(1, 2) @ kernel)
    return kernel.mul_(row).mul_(column)


def soft_starts(run: Run, starts: int, noise: float, exact_first: bool) -> dict[str, Tensor]:
    """Return the barycentre with noise, group -> [m * starts, n, n].

    Args:
        run: the running search.
        starts: matrices per model.
        noise: standard deviation of the logits.
        exact_first: whether the first start of each model is the barycentre itself.
    """
    batch = run.problem.models * starts
    soft = {}
    for group, size in run.problem.sizes.items():
        logits = noise * run.normal(batch, size, size)
        if exact_first:
            logits[::starts] = 0
        soft[group] = sinkhorn(logits, 20)
    return soft


def to_hypotheses(run: Run, soft: Mapping[str, Tensor], model: Tensor) -> Hypotheses:
    """Round doubly stochastic matrices to the nearest permutations (one assignment each)."""
    return run.problem.hypotheses({g: run.assign(matrix) for g, matrix in soft.items()}, model)
