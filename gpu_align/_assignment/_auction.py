"""Assignment on a CUDA device: the auction and shortest-path kernels of `gpu_align.kernels`."""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, final

import torch

from gpu_align._assignment._problem import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
)
from gpu_align._errors import InputError, UnavailableError
from gpu_align._status import Status


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
    if device.type != "cuda":
        return f"the costs are on {device}, not on a CUDA device: move them there with .cuda()"
    if not find_cupy():
        return (
            "CuPy isn't installed: pip install 'gpu-align[cuda]', or 'gpu-align[cuda12]' on CUDA 12"
        )
    return None


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

    def solve(
        self, problem: AssignmentProblem, warm_start: AssignmentSolution | None = None
    ) -> AssignmentSolution:
        """Return an optimal matching of each problem, with duals and certified gap.

        Reads the status of each problem back, and so waits for the device once.

        Args:
            problem: on a CUDA device.
            warm_start: solution of a similar batch of the same shape. Pays while the costs have
                changed by less than a tenth of their standard deviation.

        Raises:
            UnavailableError: the costs are not on a CUDA device, or CuPy is missing.
        """
        missing = missing_for_auction(problem)
        if missing is not None:
            raise UnavailableError(
                f"AuctionAssignment: {missing}. Or choose ScipyAssignment() or AutoAssignment()."
            )
        from gpu_align.kernels.auction import STATS, auction

        sizes = problem.sizes
        found = auction(
            problem.cost,
            maximize=problem.maximize,
            sizes=None if sizes is None else sizes.to(problem.cost.device),
            col_dual=None if warm_start is None else warm_start.col_dual,
            col_ind=None if warm_start is None else warm_start.col_ind,
            max_rounds=self.max_rounds,
        )
        exact = (found.duality_gap == 0).to(torch.int64)
        codes = torch.stack([found.status, exact]).tolist()
        counted = found.stats.unbind(1)
        return AssignmentSolution(
            col_ind=found.col_ind,
            objective=found.objective,
            status=tuple(_status(code, bool(zero)) for code, zero in zip(*codes, strict=True)),
            stats={"solver": self.name, "threads": 0} | dict(zip(STATS, counted, strict=True)),
            row_dual=found.row_dual,
            col_dual=found.col_dual,
            duality_gap=found.duality_gap,
        )


def _status(code: int, zero_gap: bool) -> Status:
    """Translate an `AuctionStatus`."""
    if code == 0:
        return Status.OPTIMAL if zero_gap else Status.SOLVED
    return (Status.NOT_FINITE, Status.ROUND_LIMIT, Status.INEXACT)[code - 1]
