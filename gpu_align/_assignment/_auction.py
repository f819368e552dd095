"""Assignment on a CUDA device: the auction and shortest-path kernels of `gpu_align.kernels`."""

import importlib.util
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor

from gpu_align._assignment._failures import STATUS_OF_CODE
from gpu_align._assignment._problem import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
)
from gpu_align._errors import InputError, UnavailableError
from gpu_align._status import Status

if TYPE_CHECKING:
    from gpu_align.kernels.auction import Auction

_DEVICE = "cuda"


@lru_cache(maxsize=1)
def find_cupy() -> bool:
    """Whether CuPy can be imported; imports it only where it is installed."""
    if importlib.util.find_spec("cupy") is None:
        return False
    try:
        import cupy  # noqa: F401
    except ImportError:
        return False
    return True


def missing_for_auction(problem: AssignmentProblem) -> str | None:
    """Return what `AuctionAssignment` lacks for a problem, with the remedy, or None."""
    device = problem.cost.device
    if device.type != _DEVICE:
        return f"the costs are on {device}, not on a CUDA device: move them there with .cuda()"
    if not find_cupy():
        return (
            "CuPy isn't installed: pip install 'gpu-align[cuda]', or 'gpu-align[cuda12]' on CUDA 12"
        )
    return None


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class QueuedAssignment:
    """What a queued call will have written when the device gets there; all tensors lie on it.

    Attributes:
        col_ind: [b, n], int64; see `AssignmentSolution`.
        row_dual: [b, n], float64; see `AssignmentSolution`.
        col_dual: [b, n], float64; see `AssignmentSolution`. Start the next call from it.
        objective: [b], float64; NaN on failure.
        duality_gap: [b], float64; NaN on failure.
        status_codes: [b], int64; 0 where solved, else a failure for `raise_failures`.
        stats: [b, 4], int64; the counts named by `gpu_align.kernels.auction.STATS`.
    """

    col_ind: Tensor
    row_dual: Tensor
    col_dual: Tensor
    objective: Tensor
    duality_gap: Tensor
    status_codes: Tensor
    stats: Tensor

    def named_stats(self) -> dict[str, Tensor]:
        """Each count, [b], by its name."""
        from gpu_align.kernels.auction import STATS

        return dict(zip(STATS, self.stats.unbind(1), strict=True))


@final
@dataclass(frozen=True)
class AuctionAssignment(AbstractAssignmentSolver):
    """A truncated auction and a shortest-path forest, all problems at once on a CUDA device.

    Exact for the costs rounded to at least 28 bits of each problem's range, and deterministic.
    The solution holds duals of the original costs and the gap that they certify: zero for
    integer costs with a range below 2**28, else about 3e-10 of the range for each row.

    Attributes:
        max_rounds: bound on the rounds of a problem; beyond it ends with `Status.ROUND_LIMIT`.

    Raises:
        InputError: `max_rounds` is below 1.

    References:
        Bertsekas, "The auction algorithm: a distributed relaxation method for the assignment
        problem", Annals of Operations Research 14, 1988; Burkard, Dell'Amico and Martello,
        "Assignment Problems", SIAM, 2009, section 4.4 (shortest augmenting paths).
    """

    max_rounds: int = 200_000
    name: ClassVar[str] = "auction"

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise InputError(f"max_rounds: expected at least 1; got {self.max_rounds}.")

    def queueing(self) -> "AuctionAssignment":
        """See `AbstractAssignmentSolver.queueing`."""
        return self

    def solve(
        self, problem: AssignmentProblem, warm_start: AssignmentSolution | None = None
    ) -> AssignmentSolution:
        """Return an optimal matching of each problem, with duals and certified gap.

        Reads the status of each problem back, and so waits for the device once.

        Args:
            problem: on a CUDA device.
            warm_start: solution of a similar batch of the same shape. Each problem judges it, and
                starts cold where it failed then or where too many rows would change columns.

        Raises:
            UnavailableError: the costs are not on a CUDA device, or CuPy is missing.
        """
        if problem.sizes is not None:
            problem = replace(problem, sizes=problem.sizes.to(problem.cost.device))
        duals = (None, None) if warm_start is None else (warm_start.col_dual, warm_start.col_ind)
        found = self.enqueue(problem, *duals)
        exact = (found.duality_gap == 0).to(torch.int64)
        codes = torch.stack([found.status_codes, exact]).tolist()
        return AssignmentSolution(
            col_ind=found.col_ind,
            objective=found.objective,
            status=tuple(_status(code, bool(zero)) for code, zero in zip(*codes, strict=True)),
            stats={"solver": self.name, "threads": 0} | found.named_stats(),
            row_dual=found.row_dual,
            col_dual=found.col_dual,
            duality_gap=found.duality_gap,
        )

    def enqueue(
        self,
        problem: AssignmentProblem,
        warm_start_dual: Tensor | None = None,
        warm_start_col: Tensor | None = None,
    ) -> QueuedAssignment:
        """Queue the work on the current stream and return what it will write, without waiting.

        The first call for a size class of problems compiles its kernel, and may wait for that.

        Args:
            problem: on a CUDA device, its `sizes` too. A problem of size 0 is skipped: its rows
                are matched with themselves, its duals are 0.
            warm_start_dual: [b, n], float64, on that device: duals of the columns of similar
                problems, such as `QueuedAssignment.col_dual`; or None. Each problem judges them:
                one whose first dual is NaN, or where too many rows would change columns, starts
                cold.
            warm_start_col: [b, n], int64, on that device: the matchings that belong to the duals,
                or None.

        Raises:
            UnavailableError: the costs are not on a CUDA device, or CuPy is missing.
            InputError: a tensor has the wrong shape, dtype or device.
        """
        given = [
            None if x is None else x.contiguous()
            for x in (problem.sizes, warm_start_dual, warm_start_col)
        ]
        cost = problem.cost.contiguous()
        return self._prepared(problem, cost, *given).launch()

    def prepare(
        self,
        problem: AssignmentProblem,
        warm_start_dual: Tensor | None = None,
        warm_start_col: Tensor | None = None,
    ) -> "PreparedAssignment":
        """Prepare what `enqueue` does for many launches; all tensors are contiguous.

        They may be overwritten in place between two launches.

        Raises:
            UnavailableError: the costs are not on a CUDA device, or CuPy is missing.
            InputError: a tensor has the wrong shape, dtype or device.
        """
        starts = (warm_start_dual, warm_start_col)
        return self._prepared(problem, problem.cost, problem.sizes, *starts)

    def _prepared(
        self,
        problem: AssignmentProblem,
        cost: Tensor,
        sizes: Tensor | None,
        col_dual: Tensor | None,
        col_ind: Tensor | None,
    ) -> "PreparedAssignment":
        missing = missing_for_auction(problem)
        if missing is not None:
            raise UnavailableError(
                f"AuctionAssignment: {missing}. Or choose ScipyAssignment() or AutoAssignment()."
            )
        from gpu_align.kernels.auction import Auction

        return PreparedAssignment(
            Auction(
                cost.detach(),
                maximize=problem.maximize,
                sizes=sizes,
                col_dual=col_dual,
                col_ind=col_ind,
                max_rounds=self.max_rounds,
            )
        )


class PreparedAssignment:
    """Assignments that are queued again and again, on what is then in the same memory."""

    def __init__(self, auction: "Auction") -> None:
        """Take a prepared launch."""
        self._auction, found = auction, auction.result
        self._queued = QueuedAssignment(
            col_ind=found.col_ind,
            row_dual=found.row_dual,
            col_dual=found.col_dual,
            objective=found.objective,
            duality_gap=found.duality_gap,
            status_codes=found.status,
            stats=found.stats,
        )

    def launch(self) -> QueuedAssignment:
        """Queue them on the current stream; the next launch overwrites what is returned."""
        self._auction.launch()
        return self._queued


def _status(code: int, zero_gap: bool) -> Status:
    """Translate an `AuctionStatus`."""
    status = STATUS_OF_CODE[code]
    return Status.OPTIMAL if status is Status.SOLVED and zero_gap else status
