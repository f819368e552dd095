"""What the CPU solvers share: conversion to NumPy and back, and the screening of the costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_align._assignment._problem import (
    AssignmentProblem,
    AssignmentSolution,
    check_size_values,
)
from gpu_align._status import Status


@dataclass(frozen=True, eq=False)
class CostBatch:
    """The costs of a batch as NumPy sees them, always to be minimised.

    Attributes:
        cost: [b, n, n], float32 or float64; the negated costs where the sum is maximised.
            Padding is zero. May share memory with the problem's tensor: read only.
        sizes: [b], int64; number of rows of each problem.
        peak: [b], float64; largest absolute cost of each problem.
        finite: [b], bool; False where a cost is NaN or infinite, or so large that potentials
            would overflow.
    """

    cost: NDArray[Any]
    sizes: NDArray[np.int64]
    peak: NDArray[np.float64]
    finite: NDArray[np.bool_]

    @property
    def is_ragged(self) -> bool:
        """Whether some problem has padding."""
        return bool((self.sizes < self.cost.shape[1]).any())

    @property
    def solvable(self) -> NDArray[np.bool_]:
        """Problems that have rows, and costs which a solver can take; [b]."""
        return self.finite & (self.sizes > 0)

    def padding(self) -> NDArray[np.bool_]:
        """Return which rows (and columns) are padding, [b, n]."""
        return np.arange(self.cost.shape[1]) >= self.sizes[:, None]


def to_numpy(problem: AssignmentProblem) -> CostBatch:
    """Convert the whole batch at once; costs nothing for a CPU tensor to be minimised.

    Problems of size 0 are neither read nor, in what is returned, written.

    Raises:
        InputError: a size is not within 0..n.
    """
    batch, n = problem.batch, problem.n
    if problem.sizes is None:
        sizes = np.full(batch, n, dtype=np.int64)
    else:
        on_cpu = problem.sizes.cpu()
        check_size_values(on_cpu, n)
        sizes = on_cpu.numpy()
    given, some = problem.cost.detach(), sizes > 0
    if not some.all():
        given = given[torch.from_numpy(some).to(given.device)]
    cost = _without_padding(given.cpu().numpy(), sizes[some])
    if problem.maximize:
        cost = -cost
    peak = np.zeros(batch)
    peak[some] = np.maximum(cost.max((1, 2), initial=0), -cost.min((1, 2), initial=0))
    if len(cost) < batch:
        # Fresh zeros take no memory until they are touched.
        whole = np.zeros((batch, n, n), dtype=cost.dtype)
        whole[some] = cost
        cost = whole
    # Potentials are sums of up to 2n costs, and reduced costs add two of them.
    finite = peak <= np.finfo(np.float64).max / (8 * (n + 1))
    return CostBatch(cost=cost, sizes=sizes, peak=peak, finite=finite)


def _without_padding(cost: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[Any]:
    """Return the costs [c, n, n] with zeros in the place of padding."""
    n = cost.shape[1]
    if (sizes == n).all():
        return cost
    real = np.arange(n) < sizes[:, None]
    return np.where(real[:, :, None] & real[:, None, :], cost, cost.dtype.type(0))


def identity_matching(batch: int, n: int) -> NDArray[np.int64]:
    """Match every row with the column of its own index, [batch, n]."""
    return np.tile(np.arange(n), (batch, 1))


def matched_costs(cost: NDArray[Any], col_ind: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the costs [b, n] (float64) that a matching picks from [b, n, n]."""
    batch, n = col_ind.shape
    return cost[np.arange(batch)[:, None], np.arange(n), col_ind].astype(np.float64)


def to_solution(
    problem: AssignmentProblem,
    costs: CostBatch,
    col_ind: NDArray[np.int64],
    stats: Mapping[str, object],
) -> AssignmentSolution:
    """Build the solution of `problem` from the matchings [b, n] found by a solver."""
    picked = matched_costs(costs.cost, col_ind)
    picked[~costs.finite] = np.nan
    objective = picked.sum(1)
    if problem.maximize:
        objective = -objective
    device = problem.cost.device
    return AssignmentSolution(
        col_ind=torch.from_numpy(col_ind).to(device),
        objective=torch.from_numpy(objective).to(device),
        status=tuple(Status.SOLVED if ok else Status.NOT_FINITE for ok in costs.finite),
        stats=stats,
    )
