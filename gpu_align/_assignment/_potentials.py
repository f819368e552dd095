"""Certificates: feasible potentials of a found matching, and the duality gap they prove."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gpu_align._assignment._batch import CostBatch, matched_costs, to_numpy
from gpu_align._assignment._failures import FAILURES
from gpu_align._assignment._problem import AssignmentProblem, AssignmentSolution
from gpu_align._errors import InputError
from gpu_align._status import Status

# A gap is rounding if it is below this, relative to the largest absolute cost of the problem.
# The stopping tolerance of Bellman-Ford adds at most n * 3.6e-15 of that cost to a gap.
_GAP_TOLERANCE = 1e-9
_STEP_TOLERANCE = 16 * float(np.finfo(np.float64).eps)

# Problems are taken together up to 512 KiB of float64, which stay in the cache between rounds.
_CHUNK_ENTRIES = 2**16


def certify(problem: AssignmentProblem, solution: AssignmentSolution) -> AssignmentSolution:
    """Add feasible potentials and the duality gap to a solution, whoever found it.

    For costs to be minimised, u_i + v_j <= c_ij for all i, j proves that no matching costs less
    than sum(u) + sum(v). The gap is the distance of the objective from this bound, and the
    bound is the tightest there is: the gap of an optimal matching is zero up to rounding, that
    of any other matching is what it lacks.

    Args:
        problem: b problems.
        solution: a matching for each of them, optimal or not.

    Returns:
        The solution with row_dual [b, n], col_dual [b, n] and duality_gap [b], all float64. The
        status is OPTIMAL where the gap is at most 1e-9 times the largest absolute cost of the
        problem, which leaves room for rounding only; otherwise OPTIMAL becomes SOLVED.

    Raises:
        InputError: col_ind is no permutation of range(n) in some problem, or moves padding.

    Source: Bellman, "On a routing problem", Quarterly of Applied Mathematics 16 (1958); Burkard,
    Dell'Amico & Martello, "Assignment Problems", SIAM (2009), section 4.1 (duality).
    """
    costs = to_numpy(problem)
    col_ind = solution.col_ind.cpu().numpy()
    _check_matching(col_ind, costs)
    row_dual = np.where(costs.finite[:, None], 0.0, np.full(col_ind.shape, np.nan))
    col_dual, gap = row_dual.copy(), np.where(costs.finite, 0.0, np.nan)
    for part in _chunks(np.flatnonzero(costs.finite), problem.n):
        cost = padded_float64(costs, part)
        tolerance = _STEP_TOLERANCE * costs.peak[part]
        row_dual[part], col_dual[part] = _feasible_duals(cost, col_ind[part], tolerance)
        slack = matched_costs(cost, col_ind[part]) - row_dual[part]
        slack -= np.take_along_axis(col_dual[part], col_ind[part], axis=1)
        gap[part] = np.maximum(slack, 0).sum(1)
    sign, device = -1.0 if problem.maximize else 1.0, problem.cost.device
    optimal = gap <= _GAP_TOLERANCE * costs.peak
    return replace(
        solution,
        row_dual=torch.from_numpy(sign * row_dual).to(device),
        col_dual=torch.from_numpy(sign * col_dual).to(device),
        duality_gap=torch.from_numpy(gap).to(device),
        status=tuple(
            _certified_status(status, optimal=bool(proved))
            for status, proved in zip(solution.status, optimal, strict=True)
        ),
    )


def dual_bounds(problem: AssignmentProblem, columns: Tensor) -> Tensor:
    """Return the tightest bounds that duals prove for assignments, as `certify` does.

    Args:
        problem: b problems with finite costs.
        columns: int64 [b, n], a matching of each, optimal or nearly so.

    Returns:
        Sums of the duals, float64 [b]: no matching is better.
    """
    status = (Status.SOLVED,) * problem.batch
    nothing = torch.zeros(problem.batch, dtype=torch.float64, device="cpu")
    found = certify(
        problem, AssignmentSolution(col_ind=columns, objective=nothing, status=status, stats={})
    )
    assert found.row_dual is not None
    assert found.col_dual is not None
    return found.row_dual.sum(1) + found.col_dual.sum(1)


def padded_float64(costs: CostBatch, part: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return costs [len(part), n, n] of some problems; padding is free on the diagonal only.

    Elsewhere it is infinite: the only finite matching of the padding is the identity.
    """
    cost = costs.cost[part].astype(np.float64)
    if costs.is_ragged:
        padding = costs.padding()[part]
        off_diagonal = ~np.eye(cost.shape[1], dtype=bool)
        cost[(padding[:, :, None] | padding[:, None, :]) & off_diagonal] = np.inf
    return cost


def _check_matching(col_ind: NDArray[np.int64], costs: CostBatch) -> None:
    """Raise InputError unless each line of `col_ind` permutes the real rows of its problem."""
    shape = costs.cost.shape[:2]
    if col_ind.shape != shape:
        raise InputError(
            f"col_ind: expected shape {list(shape)}, as the problem's; got {list(col_ind.shape)}."
        )
    rows = np.arange(shape[1])
    moved = (col_ind != rows) & costs.padding()
    wrong = np.flatnonzero((np.sort(col_ind, axis=1) != rows).any(1) | moved.any(1))
    if len(wrong):
        raise InputError(
            f"col_ind: expected a permutation of range({shape[1]}) with padding in place; got "
            f"{col_ind[wrong[0]].tolist()} for problem {wrong[0]}. Pass the solver's solution."
        )


def _certified_status(status: Status, *, optimal: bool) -> Status:
    """Return the status of a solution once its gap is known."""
    if status in FAILURES:
        return status
    if optimal:
        return Status.OPTIMAL
    return Status.SOLVED if status is Status.OPTIMAL else status


def _chunks(indices: NDArray[np.int64], n: int) -> Iterator[NDArray[np.int64]]:
    """Cut `indices` into runs of problems which fit the cache together."""
    step = max(1, _CHUNK_ENTRIES // max(1, n * n))
    for start in range(0, len(indices), step):
        yield indices[start : start + step]


def _feasible_duals(
    cost: NDArray[np.float64], col_ind: NDArray[np.int64], tolerance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return optimal potentials for costs [c, n, n] to be minimised, given matchings [c, n].

    Returns:
        row_dual [c, n] and col_dual [c, n], feasible up to the rounding of one subtraction.
    """
    col_dual, converged = _column_duals(cost, col_ind, tolerance)
    for i in np.flatnonzero(~converged):
        # A negative cycle: the matching is not optimal. Potentials of an optimal one are
        # feasible just the same, and none prove a tighter bound.
        optimal: NDArray[np.int64] = linear_sum_assignment(cost[i])[1]
        one = slice(i, i + 1)
        col_dual[one] = _column_duals(cost[one], optimal[None], tolerance[one])[0]
    # Feasible by construction, even where the rounds ran out.
    row_dual = (cost - col_dual[:, None, :]).min(2, initial=np.inf)
    return row_dual, col_dual


def _column_duals(
    cost: NDArray[np.float64], col_ind: NDArray[np.int64], tolerance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Find potentials by Bellman-Ford over the rows.

    Taking over the column of row k costs row i w_ik = c[i, m(k)] - c[i, m(i)] for the matching m.
    Potentials with equality on m must have v[m(k)] <= v[m(i)] + w_ik: they are shortest
    distances, which exist if and only if no cycle is negative, that is if m is optimal.

    Returns:
        The potentials [c, n] by column, and [c] whether they settled within `tolerance` [c].
    """
    arcs = np.take_along_axis(cost, col_ind[:, None, :], axis=2)
    arcs -= matched_costs(cost, col_ind)[:, :, None]
    found = distance = np.zeros(col_ind.shape)
    rows: slice | NDArray[np.int64] = slice(None)
    converged, moving = np.ones(len(cost), dtype=bool), np.arange(len(cost))
    for _ in range(cost.shape[1]):
        # Only what has become nearer can bring others nearer.
        through = arcs[:, rows] + distance[:, rows, None]
        shorter = np.minimum(distance, through.min(1))
        fall = distance - shorter
        converged[moving] = fall.max(1) <= tolerance
        if converged[moving].all():
            break
        distance, moves = shorter, fall.any(1)
        if 2 * moves.sum() <= len(moves):
            # The others will not move again.
            found[moving] = distance
            moving, arcs, distance = moving[moves], arcs[moves], distance[moves]
            fall, tolerance = fall[moves], tolerance[moves]
        rows = np.flatnonzero(fall.any(0))
    found[moving] = distance
    col_dual = np.empty_like(found)
    np.put_along_axis(col_dual, col_ind, found, axis=1)
    return col_dual, converged
