"""Assignments on a device that are optimal in float64, with duals that prove it."""

import torch
from torch import Tensor

from gpu_align._assignment._auction import AuctionAssignment
from gpu_align._assignment._failures import raise_failures
from gpu_align._assignment._problem import AssignmentProblem

_LEAST_RANGE = 2.0**-40
"""Of the reduced costs, relative to the largest similarity: far above their rounding."""


def exact_duals(similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve assignments to be maximised on their device, to the rounding of float64.

    The auction works on 28 bits of the range of the costs. Its duals leave a gap g; what each pair
    lacks under them, its reduced cost, is at most g for every pair of an optimal matching. So
    the reduced costs, cut off above g, are solved again: their 28 bits are of a range that is
    a billion times smaller. The sum of both duals proves the second matching optimal, as
    Bellman-Ford potentials would, without a round in which the host looks for convergence.

    Args:
        similarity: float64 [b, n, n], on a device that `AuctionAssignment` can use.

    Returns:
        Columns int64 [b, n], and row and column duals [b, n], float64, with
        `row[i] + col[j] >= similarity[i, j]`.

    Raises:
        AssignmentError: a problem failed. Finding out waits for the device.
    """
    solver = AuctionAssignment()
    first = solver.enqueue(AssignmentProblem(similarity, maximize=True))
    peak = similarity.abs().amax((1, 2)) if similarity.shape[1] else first.objective
    most = torch.maximum(2 * first.duality_gap, _LEAST_RANGE * peak)
    lacking = first.row_dual[:, :, None] + first.col_dual[:, None, :]
    lacking = torch.minimum(lacking.sub_(similarity).clamp_min_(0), most[:, None, None])
    warm_start = (torch.zeros_like(first.col_dual), first.col_ind)
    second = solver.enqueue(AssignmentProblem(lacking), warm_start)
    raise_failures(torch.maximum(first.status_codes, second.status_codes))
    column = first.col_dual - second.col_dual
    row = (similarity - column[:, None, :]).amax(2) if similarity.shape[1] else first.row_dual
    return second.col_ind, row, column
