"""The k best assignments of each problem of a batch.

Murty's method splits the matchings other than the best one, by the first row in which they
differ from it, into n subproblems. The best matching of a subproblem differs from its parent by
one alternating cycle through that row, so all n are found together by one elimination of the
rows, and the assignment solver is needed only once.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu_align._assignment._auto import solve
from gpu_align._assignment._batch import CostBatch, matched_costs, to_numpy
from gpu_align._assignment._potentials import padded_float64
from gpu_align._assignment._problem import AbstractAssignmentSolver, AssignmentProblem
from gpu_align._errors import GpuAlignError, InputError

# Problems expanded together: at most this many entries of their matrices, and of all the
# matrices kept for the k expansions (2 bytes each).
_CHUNK_ENTRIES = 2**18
_KEPT_ENTRIES = 2**26


def k_best(
    problem: AssignmentProblem, k: int, solver: AbstractAssignmentSolver | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k best distinct matchings of each problem, in order of their objective.

    Costs are rounded to integers of 51 - log2(n) bits, so that every sum and every comparison
    is exact and ties can't mislead the search; integer-valued costs are kept as they are.
    Matchings whose objectives differ by less than n * 2**-(51 - log2(n)) of the largest
    absolute cost may therefore stand in for each other. Takes O(k n^3) per problem.

    Args:
        problem: b problems of up to n rows.
        k: how many matchings, at least 1.
        solver: exact solver for the best matching; None for `AutoAssignment()`.

    Returns:
        col_ind [b, k, n], int64, and objective [b, k], float64, best first. Where a problem has
        fewer than k matchings, the remaining objectives are infinite (minus infinity when
        maximizing) and their col_ind repeats the best.

    Raises:
        InputError: k is below 1.
        GpuAlignError: a problem has NaN or infinite costs, or `solver` isn't exact.

    References:
        Murty, "An algorithm for ranking all the assignments in order of increasing cost",
        Operations Research 16(3), 1968; Miller, Stone and Cox, "Optimizing Murty's ranked
        assignment method", IEEE Transactions on Aerospace and Electronic Systems 33(3), 1997
        (children share the work of their parent); Floyd, "Algorithm 97: Shortest path",
        Communications of the ACM 5(6), 1962.
    """
    if k < 1:
        raise InputError(f"k: expected at least 1; got {k}.")
    costs = to_numpy(problem)
    whole = _round_to_integers(costs)
    device = problem.cost.device
    # The work is NumPy's, and the device's solver has fewer bits: by default it isn't asked.
    at = "cpu" if solver is None else device
    sizes = None if problem.sizes is None else problem.sizes.to(at)
    rounded = AssignmentProblem(torch.from_numpy(whole.cost).to(at), sizes=sizes)
    best = solve(rounded, solver).col_ind.cpu().numpy()

    batch, n = problem.batch, problem.n
    col_ind = np.empty((batch, k, n), dtype=np.int64)
    objective = np.empty((batch, k))
    kept = max(1, n * n)
    step = max(1, min(_CHUNK_ENTRIES // kept, _KEPT_ENTRIES // (k * kept)))
    for start in range(0, batch, step):
        part = np.arange(start, min(start + step, batch))
        ranking = _Ranking.start(padded_float64(whole, part), best[part], k)
        for rank in range(1, k if n > 1 else 1):
            ranking.expand(rank - 1)
            ranking.take_best(rank)
        col_ind[part], objective[part] = _in_order(ranking, costs.cost[part])
    if problem.maximize:
        objective = -objective
    return torch.from_numpy(col_ind).to(device), torch.from_numpy(objective).to(device)


def _round_to_integers(costs: CostBatch) -> CostBatch:
    """Scale each problem by a power of two and round, so that float64 sums of 4n costs are exact.

    NaN and infinite costs stay what they are.
    """
    bits = 51 - int(np.ceil(np.log2(max(1, costs.cost.shape[1]))))
    exponent = np.where(costs.finite, np.frexp(costs.peak)[1], bits)
    scaled = np.ldexp(costs.cost.astype(np.float64), (bits - exponent)[:, None, None])
    return replace(costs, cost=np.rint(scaled))


@dataclass(eq=False)
class _Ranking:
    """The matchings found so far, and the best matching of each subproblem left.

    Attributes:
        cost: [c, n, n]; integer-valued, infinite where padding forbids a match.
        col_ind: [c, k, n]; the matchings in order, the best one where none is left.
        total: [c, k]; their costs, infinite where none is left.
        first_free: [c, k]; matching r was found with all rows before this one fixed,
        banned: [c, k, n]; and with these columns forbidden to that row.
        child: [c, k, n]; cost of the best matching that keeps the rows before i of matching r
            but not row i itself; infinite if there is none or it is already taken.
        via: for each expanded rank [c, n, n], what `_eliminate` returned.
    """

    cost: NDArray[np.float64]
    col_ind: NDArray[np.int64]
    total: NDArray[np.float64]
    first_free: NDArray[np.int64]
    banned: NDArray[np.bool_]
    child: NDArray[np.float64]
    via: list[NDArray[np.signedinteger]]

    @classmethod
    def start(cls, cost: NDArray[np.float64], best: NDArray[np.int64], k: int) -> "_Ranking":
        """Begin with the best matchings [c, n] as rank 0."""
        count, n = best.shape
        total = np.full((count, k), np.inf)
        total[:, 0] = matched_costs(cost, best).sum(1)
        return cls(
            cost=cost,
            col_ind=np.repeat(best[:, None], k, axis=1),
            total=total,
            first_free=np.zeros((count, k), dtype=np.int64),
            banned=np.zeros((count, k, n), dtype=bool),
            child=np.full((count, k, n), np.inf),
            via=[],
        )

    def expand(self, rank: int) -> None:
        """Evaluate all children of the matchings of this rank."""
        col_ind, first_free = self.col_ind[:, rank], self.first_free[:, rank]
        problems, rows = np.arange(len(col_ind)), np.arange(col_ind.shape[1])
        arcs = np.take_along_axis(self.cost, col_ind[:, None, :], axis=2)
        arcs -= matched_costs(self.cost, col_ind)[:, :, None]
        arcs[:, rows, rows] = np.inf
        forbidden = np.take_along_axis(self.banned[:, rank], col_ind, axis=1)
        arcs[problems, first_free] = np.where(forbidden, np.inf, arcs[problems, first_free])
        left = np.isfinite(self.total[:, rank])
        self.via.append(_eliminate(arcs, int(first_free[left].min(initial=len(rows)))))
        detour = np.where(rows < first_free[:, None], np.inf, arcs[:, rows, rows])
        if (detour < 0).any():
            raise GpuAlignError(
                "k_best: expected the optimal matching of the rounded costs from the solver; its "
                "matching can be improved. Choose an exact solver, such as ScipyAssignment()."
            )
        self.child[:, rank] = self.total[:, rank, None] + detour

    def take_best(self, rank: int) -> None:
        """Make the best child of all former ranks the matching of this rank."""
        count, n = self.child.shape[0], self.child.shape[2]
        candidates = self.child[:, :rank].reshape(count, -1)
        choice = candidates.argmin(1)
        self.total[:, rank] = candidates[np.arange(count), choice]
        for p in np.flatnonzero(np.isfinite(self.total[:, rank])).tolist():
            parent, row = divmod(int(choice[p]), n)
            self._take(p, rank, parent, row)

    def _take(self, p: int, rank: int, parent: int, row: int) -> None:
        """Write down the child of `parent` that differs from it first in `row`."""
        old = self.col_ind[p, parent]
        self.col_ind[p, rank] = old
        for i, j in _cycle_arcs(self.via[parent][p], row):
            self.col_ind[p, rank, i] = old[j]
        if row == self.first_free[p, parent]:
            self.banned[p, rank] = self.banned[p, parent]
        self.banned[p, rank, old[row]] = True
        self.first_free[p, rank] = row
        self.child[p, parent, row] = np.inf


def _eliminate(arcs: NDArray[np.float64], first: int) -> NDArray[np.signedinteger]:
    """Eliminate the rows from the last to `first`, as Floyd does, but never look back.

    When row i is reached, arcs[i, i] is the length of the shortest cycle through i and rows
    after i. That takes n^3 / 3 steps instead of the n^3 of all shortest paths.

    Args:
        arcs: [c, n, n], without negative cycles, infinite diagonal; lengths of the arcs,
            overwritten with those of the shortest paths through later rows.
        first: rows before this one don't matter.

    Returns:
        [c, n, n]; the lowest row that the path from i to j goes through, -1 for an arc. Since
        the arithmetic is exact and a path is replaced by shorter ones only, no path meets
        itself.
    """
    n = arcs.shape[1]
    via = np.full(arcs.shape, -1, dtype=np.min_scalar_type(-max(n, 1)))
    for k in range(n - 1, first, -1):
        direct = arcs[:, first:k, first:k]
        through = arcs[:, first:k, k, None] + arcs[:, None, k, first:k]
        shorter = through < direct
        np.copyto(direct, through, where=shorter)
        np.copyto(via[:, first:k, first:k], k, where=shorter)
    return via


def _cycle_arcs(via: NDArray[np.signedinteger], row: int) -> list[tuple[int, int]]:
    """The arcs of the shortest cycle through `row` and later rows, given via [n, n]."""
    arcs, paths = [], [(row, row)]
    while paths:
        i, j = paths.pop()
        k = int(via[i, j])
        if k < 0:
            arcs.append((i, j))
        else:
            paths += [(i, k), (k, j)]
    return arcs


def _in_order(
    ranking: _Ranking, cost: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Matchings [c, k, n] and unrounded objectives [c, k], sorted by these objectives."""
    count, n = ranking.col_ind.shape[0], ranking.col_ind.shape[2]
    picked = cost[np.arange(count)[:, None, None], np.arange(n), ranking.col_ind]
    objective = picked.astype(np.float64).sum(2)
    objective[np.isinf(ranking.total)] = np.inf
    order = np.argsort(objective, axis=1, kind="stable")
    objective = np.take_along_axis(objective, order, axis=1)
    col_ind = np.take_along_axis(ranking.col_ind, order[:, :, None], axis=1)
    # Matchings that tie in integers may have changed places: repeat the one that came first.
    return np.where(np.isinf(objective)[:, :, None], col_ind[:, :1], col_ind), objective
