"""The k best assignments of each problem of a batch.

Murty's method splits the matchings other than the best one, by the last row in which they
differ from it, into n subproblems. The best matching of a subproblem differs from its parent by
one alternating cycle through that row, so all n are found together by one elimination of the
rows, and the assignment solver is needed only once. On a CUDA device with CuPy one kernel launch
finds all ranks, while a matrix fits the shared memory of a block (n up to 169 with 227 KiB).
Everywhere else all problems advance together by torch operations, to the same matchings, and the
loop over ranks never waits for the device.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._assignment._auction import find_cupy
from gpu_align._assignment._auto import AutoAssignment, solve
from gpu_align._assignment._problem import AbstractAssignmentSolver, AssignmentProblem
from gpu_align._errors import GpuAlignError, InputError
from gpu_align.kernels.k_best import fits, rank_matchings

_DEVICE = "cuda"

# Problems expanded together: on the CPU at most this many entries of their matrices, which then
# stay in the cache; and of all that is kept: torch keeps the matrices of the k expansions (9 bytes
# an entry), the kernel only their children.
_CHUNK_ENTRIES = 2**18
_KEPT_ENTRIES = 2**24


def k_best(
    problem: AssignmentProblem, k: int, solver: AbstractAssignmentSolver | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k best distinct matchings of each problem, in order of their objective.

    Costs are rounded to integers so that every sum and every comparison is exact and ties cannot
    mislead the search; integer-valued costs are kept as they are. They have 51 - log2(n) bits,
    or fewer where the solver's own integers hold no more: 27 and a sign for `AuctionAssignment`,
    which finds the best matching by default on a CUDA device. So its optimum is theirs. Matchings
    whose objectives differ by less than n * 2**-bits of the largest absolute cost may therefore
    stand in for each other. Takes O(k n^3) per problem.

    Works on the device of the costs, and waits for it only before the first rank and after the
    last one.

    Args:
        problem: b problems of up to n rows.
        k: how many matchings, at least 1.
        solver: exact solver for the best matching; None for `AutoAssignment()`.

    Returns:
        col_ind [b, k, n], int64, and objective [b, k], float64, best first. Where a problem has
        fewer than k matchings, the remaining objectives are infinite (minus infinity when
        maximising) and their col_ind repeats the best.

    Raises:
        InputError: k is below 1.
        GpuAlignError: a problem has NaN or infinite costs, or `solver` is not exact.

    Source: Murty, "An algorithm for ranking all the assignments in order of increasing cost",
    Operations Research 16(3) (1968); Miller, Stone & Cox, "Optimizing Murty's ranked assignment
    method", IEEE Transactions on Aerospace and Electronic Systems 33(3) (1997) (children share
    the work of their parent); Floyd, "Algorithm 97: Shortest path", Communications of the ACM
    5(6) (1962).
    """
    if k < 1:
        raise InputError(f"k: expected at least 1; got {k}.")
    solver = solver or AutoAssignment()
    batch, n, device = problem.batch, problem.n, problem.cost.device
    cost = _without_padding(problem)
    whole = _round_to_integers(cost, solver.exact_bits(problem))
    best = solve(AssignmentProblem(whole, sizes=problem.sizes), solver).col_ind
    if problem.sizes is not None:
        # Padding may keep its own column only.
        diagonal = torch.eye(n, dtype=torch.bool, device=device)
        whole.masked_fill_(_padding(problem) & ~diagonal, math.inf)
    col_ind = torch.empty((batch, k, n), dtype=torch.int64, device=device)
    objective = torch.empty((batch, k), dtype=torch.float64, device=device)
    for part in _parts(whole, k):
        found, total = _rank(whole[part], best[part], k)
        col_ind[part], objective[part] = _in_order(found, total, cost[part])
    return col_ind, -objective if problem.maximize else objective


def _padding(problem: AssignmentProblem) -> Tensor:
    """Return which entries [b, n, n] have a row or column of padding."""
    assert problem.sizes is not None
    device = problem.cost.device
    beyond = torch.arange(problem.n, device=device) >= problem.sizes.to(device)[:, None]
    return beyond[:, :, None] | beyond[:, None, :]


def _without_padding(problem: AssignmentProblem) -> Tensor:
    """Return the costs [b, n, n] to be minimised, zero on padding."""
    cost = problem.cost.detach()
    if problem.sizes is not None:
        cost = cost.masked_fill(_padding(problem), 0)
    return -cost if problem.maximize else cost


def _round_to_integers(cost: Tensor, most_bits: int) -> Tensor:
    """Scale each problem by a power of two and round, so that float64 sums of 4n costs are exact.

    The integers have at most `most_bits` bits and a sign. NaN and infinite costs stay as they are.
    """
    n = cost.shape[1]
    bits = min(most_bits, 51 - math.ceil(math.log2(max(1, n))))
    if cost.numel() == 0:
        return cost.double()
    low, high = torch.aminmax(cost.flatten(1), dim=1)
    peak = torch.maximum(high, -low).double()
    solvable = peak <= torch.finfo(torch.float64).max / (8 * (n + 1))
    exponent = torch.where(solvable, torch.frexp(peak).exponent, bits)
    shift = (bits - exponent).long()
    # In two steps: the whole power may be beyond the range of float64.
    half = shift.div(2, rounding_mode="floor")
    first, second = (_power_of_two(s)[:, None, None] for s in (half, shift - half))
    return cost.double().mul(first).mul_(second).round_()


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2**exponent in float64, to the last bit; exponents from -1022 to 1023."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _parts(cost: Tensor, k: int) -> list[slice]:
    """Cut costs [b, n, n] into runs of problems that are expanded together."""
    batch, n = cost.shape[:2]
    entries = max(1, n * n)
    step = _KEPT_ENTRIES // (entries + k * n if _has_kernel(cost) else k * entries)
    if _reads_are_free(cost.device):
        step = min(step, _CHUNK_ENTRIES // entries)
    step = max(1, step)
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def _rank(cost: Tensor, best: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best matchings of integer-valued costs.

    Args:
        cost: [c, n, n]; infinite where padding forbids a match.
        best: [c, n]; the best matchings.
        k: how many.

    Returns:
        col_ind [c, k, n], which repeats the best where none is left, and the costs [c, k].
    """
    order = _cheap_rows_first(cost, best) if best.shape[1] > 0 else best
    sorted_cost = cost.gather(1, order[:, :, None].expand_as(cost))
    rank = rank_matchings if _has_kernel(cost) else _rank_by_torch
    col_ind, total = rank(sorted_cost, best.gather(1, order), k)
    # A cycle of negative length gives the next matching a lower total.
    if ((total[:, 1:] < total[:, :-1]) | total[:, 1:].isnan()).any():
        raise GpuAlignError(
            "k_best: expected the optimal matching of the rounded costs from the solver; its "
            "matching can be improved. Choose an exact solver, such as ScipyAssignment()."
        )
    place = order[:, None].expand_as(col_ind)
    return torch.empty_like(col_ind).scatter_(2, place, col_ind), total


def _has_kernel(cost: Tensor) -> bool:
    """Say whether one kernel launch ranks the matchings of costs [c, n, n]."""
    n = cost.shape[1]
    return cost.device.type == _DEVICE and n > 0 and find_cupy() and fits(n, cost.device)


def _rank_by_torch(cost: Tensor, best: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Do what `rank_matchings` does, by torch operations on any device."""
    n = best.shape[1]
    splits = n if _reads_are_free(cost.device) else min(n, _few_splits(n))
    ranking = _Ranking.start(cost, best, k, splits).run()
    if ranking.unfinished:
        ranking = _Ranking.start(cost, best, k, n).run()
    return ranking.col_ind, ranking.total


def _reads_are_free(device: torch.device) -> bool:
    """Say whether a value can be read without waiting for a device."""
    return device.type == "cpu"


def _few_splits(n: int) -> int:
    """Return how often paths are split before a device is asked whether that did.

    Random, rank-one, planted and tied costs of n = 8 to 512 needed 10 at most, 8 for n = 24.
    """
    return 6 + n.bit_length()


def _cheap_rows_first(cost: Tensor, best: Tensor) -> Tensor:
    """Sort rows [c, n] by what the best matchings [c, n] lose if the row swaps its column.

    The cheapest cycles then lie among the first rows, and fewer rows are eliminated for them.
    """
    swapped = cost.gather(2, best[:, None].expand_as(cost))
    swapped -= swapped.diagonal(dim1=1, dim2=2).clone()[:, :, None]
    swapped = swapped + swapped.mT
    swapped.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return swapped.amin(2).argsort(dim=1, stable=True)


@dataclass(eq=False)
class _Ranking:
    """The matchings found so far, and the best matching of each subproblem left.

    An arc from row i to row j stands for the column of i passing to j: a cycle turns a matching
    into another one.

    Attributes:
        cost: [c, n, n]; integer-valued, infinite where padding forbids a match; entry (j, i) is
            the cost of row i and column j.
        splits: a cycle is found by splitting its paths at most this many times. n always do;
            fewer, on a device that is not asked whether they did.
        problems: [c]; 0 .. c - 1.
        first_rows: [c, 1]; where each matrix begins among all the rows.
        rows: [n]; 0 .. n - 1.
        beyond: [n, n]; infinite from the diagonal on, else zero.
        col_ind: [c, k, n]; the matchings in order, the best one where none is left.
        total: [c, k]; their costs, infinite where none is left.
        last_free: [c, k]; matching r was found with all rows after this one fixed (-1 where none
            is left),
        banned: [c, k, n]; and with these columns forbidden to that row.
        child: [c, k, n]; cost of the best matching that keeps the rows after i of matching r
            but not row i itself; infinite if there is none or it is already taken.
        shortest: [c, k - 1, n, n]; for each expanded rank the lengths of the shortest paths from
            row i to row j through rows before both.
        is_long: [c, k - 1, n, n]; whether the arc from i to j is longer; False for i = j.
        work: [c, n, n], where `_eliminate` works, by these views.
        unfinished: [], whether `splits` did not do.
    """

    cost: Tensor
    splits: int
    problems: Tensor
    first_rows: Tensor
    rows: Tensor
    beyond: Tensor
    col_ind: Tensor
    total: Tensor
    last_free: Tensor
    banned: Tensor
    child: Tensor
    shortest: Tensor
    is_long: Tensor
    work: Tensor
    views: list[tuple[Tensor, Tensor, Tensor]]
    unfinished: Tensor

    @classmethod
    def start(cls, cost: Tensor, best: Tensor, k: int, splits: int) -> "_Ranking":
        """Begin with costs [c, n, n] and the best matchings [c, n] as rank 0."""
        count, n = best.shape
        total = cost.new_full((count, k), math.inf)
        total[:, 0] = cost.gather(2, best[:, :, None]).sum((1, 2))
        work, flag = torch.empty_like(cost), torch.zeros((), dtype=torch.bool, device=cost.device)
        return cls(
            cost=cost.mT.contiguous(),
            splits=splits,
            problems=torch.arange(count, device=cost.device),
            first_rows=torch.arange(count, device=cost.device)[:, None] * n,
            rows=torch.arange(n, device=cost.device),
            beyond=cost.new_full((n, n), math.inf).triu_(),
            col_ind=best[:, None].repeat(1, k, 1),
            total=total,
            last_free=best.new_full((count, k), n - 1),
            banned=flag.new_zeros(count, k, n),
            child=cost.new_full((count, k, n), math.inf),
            shortest=cost.new_empty(count, k - 1, n, n),
            is_long=flag.new_empty(count, k - 1, n, n),
            work=work,
            views=[
                (work[:, m + 1 :, m + 1 :], work[:, m + 1 :, m, None], work[:, m, None, m + 1 :])
                for m in range(n - 1)
            ],
            unfinished=flag,
        )

    def run(self) -> "_Ranking":
        """Find the matchings of all ranks, one after another."""
        for rank in range(1, self.total.shape[1] if len(self.rows) > 1 else 1):
            self.expand(rank - 1)
            self.take_best(rank)
        return self

    def expand(self, rank: int) -> None:
        """Evaluate all children of the matchings of this rank."""
        work, rows, col_ind = self.work, self.rows, self.col_ind[:, rank]
        last_free, diagonal = self.last_free[:, rank, None], work.diagonal(dim1=1, dim2=2)
        columns = (col_ind + self.first_rows).flatten()
        torch.index_select(self.cost.flatten(0, 1), 0, columns, out=work.flatten(0, 1))
        work -= diagonal.clone()[:, None]
        diagonal.fill_(math.inf)
        forbidden = self.banned[:, rank].gather(1, col_ind)
        work.masked_fill_(forbidden[:, :, None] & (rows == last_free)[:, None], math.inf)
        arcs = work.clone()
        # The rows after all last free ones do not matter; a device is not asked which they are.
        end = int(last_free.max()) if _reads_are_free(work.device) else len(rows)
        _eliminate(self.views[: max(0, end)])
        self.shortest[:, rank] = work
        torch.ne(work, arcs, out=self.is_long[:, rank])
        self.is_long[:, rank].diagonal(dim1=1, dim2=2).fill_(False)
        detour = diagonal.masked_fill(rows > last_free, math.inf)
        torch.add(detour, self.total[:, rank, None], out=self.child[:, rank])

    def take_best(self, rank: int) -> None:
        """Make the best child of all former ranks the matching of this rank."""
        n, k = len(self.rows), self.total.shape[1]
        children = self.child.flatten(1)
        total, choice = children[:, : rank * n].min(1)
        parent = choice.div(n, rounding_mode="floor")
        # Where none is left, row -1: no row at all.
        row = choice.sub(parent, alpha=n).masked_fill_(total.isinf(), -1)
        at = parent.add(self.problems, alpha=k)
        old = self.col_ind.flatten(0, 1).index_select(0, at)
        self.col_ind[:, rank] = old.scatter(1, self._cycle(at - self.problems, row), old)
        column = old.gather(1, row.clamp_min(0)[:, None])
        same_row = row == self.last_free.flatten().index_select(0, at)
        banned = self.banned.flatten(0, 1).index_select(0, at) & same_row[:, None]
        self.banned[:, rank] = banned.scatter_(1, column, True)
        self.last_free[:, rank] = row
        self.total[:, rank] = total
        children.scatter_(1, choice[:, None], math.inf)

    def _cycle(self, at: Tensor, row: Tensor) -> Tensor:
        """Follow the shortest cycle through a row and former ones in the arcs of a matching.

        Paths that are no arcs are split, all at once, at the highest row that they go through:
        the last one with which `_eliminate` made them shorter, so the first one that makes them
        as short as they are.

        Args:
            at: [c]; of the matching in `shortest`.
            row: [c]; -1 for no cycle.

        Returns:
            [c, n]; the row after each row on the cycle, the row itself off the cycle.
        """
        n = len(self.rows)
        is_long = self.is_long.flatten(0, 1).index_select(0, at)
        shortest = self.shortest.flatten(0, 1).index_select(0, at)
        leave = shortest + self.beyond  # [c, i, k], from row i to rows k before it
        arrive = torch.add(shortest.mT, self.beyond, out=torch.empty_like(leave)).flatten(0, 1)
        is_open = self.rows == row[:, None]
        after = torch.arange(n + 1, device=row.device).expand(len(row), -1)  # n: nowhere
        for _ in range(self.splits):
            end = after[:, :n]
            through = (
                arrive.index_select(0, (end + self.first_rows).flatten()).view_as(leave).add_(leave)
            )
            middle = torch.where(is_open, through.argmin(2), n)
            after = after.scatter(1, middle, end)
            end = after[:, :n]
            torch.where(is_open, middle, end, out=end)
            is_open = is_long.gather(2, end[:, :, None])[:, :, 0]
            if _reads_are_free(row.device) and not is_open.any():
                return end
        self.unfinished |= is_open.any()
        return after[:, :n]


def _eliminate(views: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Eliminate rows from the first one on, as Floyd does, but never look back.

    When row i is reached, entry (i, i) is the length of the shortest cycle through i and rows
    before i. That takes n^3 / 3 steps instead of the n^3 of all shortest paths.

    Args:
        views: of a matrix [c, n, n] of the lengths of arcs, without negative cycles, infinite on
            the diagonal: for m = 0, 1, ... its entries [m + 1:, m + 1:], [m + 1:, m] and
            [m, m + 1:]. Overwritten with the shortest paths through former rows. Since the
            arithmetic is exact and a path is replaced by shorter ones only, no path meets itself.
    """
    for direct, to, onward in views:
        torch.minimum(direct, to + onward, out=direct)


def _in_order(col_ind: Tensor, total: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Return matchings [c, k, n] and unrounded objectives [c, k], sorted by these objectives."""
    picked = cost.gather(2, col_ind.mT).double().sum(1)
    objective, order = picked.masked_fill(total.isinf(), math.inf).sort(dim=1, stable=True)
    col_ind = col_ind.gather(1, order[:, :, None].expand_as(col_ind))
    # Matchings that tie in integers may have changed places: repeat the one that came first.
    return torch.where(objective.isinf()[:, :, None], col_ind[:, :1], col_ind), objective
