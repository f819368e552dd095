"""Assignment on a CUDA device: the auction and shortest-path kernels of `gpu_align.kernels`."""

import importlib.util
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from gpu_align._assignment._problem import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
)
from gpu_align._errors import InputError, UnavailableError
from gpu_align._status import Status
from gpu_align.kernels.auction import STATUS_OF_CODE, Auction, AuctionResult, WarmStart, auction

_DEVICE = "cuda"
_EXACT_BITS = 27
"""The kernels' integers hold costs of so many bits and a sign exactly, whatever their range."""


@lru_cache(maxsize=1)
def find_cupy() -> bool:
    """Say whether CuPy can be imported; imports it only where it is installed."""
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
            "CuPy is not installed: pip install 'gpu-align[cuda]', or 'gpu-align[cuda12]' on "
            "CUDA 12"
        )
    return None


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

    Source: Bertsekas, "The auction algorithm: a distributed relaxation method for the assignment
    problem", Annals of Operations Research 14 (1988); Burkard, Dell'Amico & Martello,
    "Assignment Problems", SIAM (2009), section 4.4 (shortest augmenting paths).
    """

    max_rounds: int = 200_000
    name: ClassVar[str] = "auction"

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise InputError(f"max_rounds: expected at least 1; got {self.max_rounds}.")

    def solve(
        self,
        problem: AssignmentProblem,
        warm_start: WarmStart | AssignmentSolution | None = None,
    ) -> AssignmentSolution:
        """Return an optimal matching of each problem, with duals and certified gap.

        Reads the status of each problem back, and so waits for the device once.

        Args:
            problem: on a CUDA device.
            warm_start: `(col_dual, col_ind)` of the solution of a similar batch, or None; see
                `enqueue`. A solution itself is deprecated.

        Raises:
            UnavailableError: the costs are not on a CUDA device, or CuPy is missing.
        """
        if problem.sizes is not None:
            problem = replace(problem, sizes=problem.sizes.to(problem.cost.device))
        found = self.enqueue(problem, _pair(warm_start))
        exact = (found.duality_gap == 0).to(torch.int64)
        codes = torch.stack([found.status_codes, exact]).tolist()
        return AssignmentSolution(
            col_ind=found.col_ind,
            objective=found.objective,
            status=tuple(
                _status(code, zero_gap=bool(zero)) for code, zero in zip(*codes, strict=True)
            ),
            stats={"solver": self.name} | found.named_stats(),
            row_dual=found.row_dual,
            col_dual=found.col_dual,
            duality_gap=found.duality_gap,
        )

    def exact_bits(self, problem: AssignmentProblem) -> int:
        """Return the bits of the kernels' integers."""
        return _EXACT_BITS

    def device_solver(self) -> "AuctionAssignment":
        """Return itself."""
        return self

    def enqueue(
        self,
        problem: AssignmentProblem,
        warm_start: WarmStart | Tensor | None = None,
        warm_start_col: Tensor | None = None,
        *,
        warm_start_dual: Tensor | None = None,
    ) -> AuctionResult:
        """Queue the work on the current stream and return what it will write, without waiting.

        The first call for a size class of problems compiles its kernel, and may wait for that.

        Args:
            problem: on a CUDA device, its `sizes` too. A problem of size 0 is skipped: its rows
                are matched with themselves, its duals are 0.
            warm_start: `(col_dual, col_ind)` on that device, or None. col_dual: [b, n], float64,
                duals of the columns of similar problems, such as `AuctionResult.col_dual`. Each
                problem judges them: one whose first dual is NaN, or where too many rows would
                change columns, starts cold. col_ind: [b, n], int64, the matchings that belong to
                them, or None.
            warm_start_col: deprecated, as is a tensor as `warm_start`.
            warm_start_dual: deprecated.

        Raises:
            UnavailableError: the costs are not on a CUDA device, or CuPy is missing.
            InputError: a tensor has the wrong shape, dtype or device.
        """
        start = _pair(warm_start, warm_start_dual, warm_start_col)
        return auction(problem.cost, **self._options(problem, start))

    def prepare(
        self,
        problem: AssignmentProblem,
        warm_start: WarmStart | Tensor | None = None,
        warm_start_col: Tensor | None = None,
        *,
        warm_start_dual: Tensor | None = None,
    ) -> Auction:
        """Prepare what `enqueue` does for many launches; all tensors are contiguous.

        They may be overwritten in place between two launches.

        Raises:
            UnavailableError: the costs are not on a CUDA device, or CuPy is missing.
            InputError: a tensor has the wrong shape, dtype or device.
        """
        start = _pair(warm_start, warm_start_dual, warm_start_col)
        return Auction(problem.cost.detach(), **self._options(problem, start))

    def _options(self, problem: AssignmentProblem, warm_start: WarmStart | None) -> dict[str, Any]:
        """Return what the launcher is given beside the costs, if it can run."""
        missing = missing_for_auction(problem)
        if missing is not None:
            raise UnavailableError(
                f"AuctionAssignment: {missing}. Or choose ScipyAssignment() or AutoAssignment()."
            )
        return {
            "maximize": problem.maximize,
            "sizes": problem.sizes,
            "warm_start": warm_start,
            "max_rounds": self.max_rounds,
        }


def _pair(
    given: WarmStart | Tensor | AssignmentSolution | None,
    dual: Tensor | None = None,
    col: Tensor | None = None,
) -> WarmStart | None:
    """Return a warm start that may have been given in a deprecated form, which warns."""
    if isinstance(given, AssignmentSolution):
        dual, col = given.col_dual, given.col_ind
    elif isinstance(given, Tensor):
        dual = given
    elif dual is None and col is None:
        return given
    warnings.warn(
        "a warm start is one pair now; pass warm_start=(col_dual, col_ind)",
        DeprecationWarning,
        stacklevel=3,
    )
    return None if dual is None else (dual, col)


def _status(code: int, *, zero_gap: bool) -> Status:
    """Return the status of a code; a gap of zero proves the matching optimal."""
    status = STATUS_OF_CODE[code]
    return Status.OPTIMAL if status is Status.SOLVED and zero_gap else status
