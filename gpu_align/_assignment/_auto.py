"""The one place which chooses a solver, and the front door of the package."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from gpu_align._assignment._auction import AuctionAssignment, missing_for_auction
from gpu_align._assignment._failures import raise_failures
from gpu_align._assignment._lapx import LapxAssignment, find_lapx
from gpu_align._assignment._potentials import certify as certify_solution
from gpu_align._assignment._problem import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
)
from gpu_align._assignment._scipy import ScipyAssignment

# One matrix, costs -A @ B.T, SciPy's time / lapx's: n = 8 0.8, 16 1.3, 24 2.2, 64 2.4, 1024 3.5.
# Batches of 2000 on two threads: n = 8 1.7, n = 24 2.2. Rank one, n <= 128: 0.3 to 0.8.
_LAPX_MIN_N = 16


@final
@dataclass(frozen=True)
class AutoAssignment(AbstractAssignmentSolver):
    """The fastest exact solver that is installed; `select` says which and why.

    Costs on a CUDA device are solved there, where CuPy is installed; see `AuctionAssignment`.
    """

    name: ClassVar[str] = "auto"

    def select(self, problem: AssignmentProblem) -> tuple[AbstractAssignmentSolver, str]:
        """Return the solver that `solve` would take for `problem`, and a sentence that says why."""
        if problem.cost.device.type == "cuda":
            missing = missing_for_auction(problem)
            if missing is None:
                return AuctionAssignment(), "the costs are on a CUDA device: auction on the device"
            solver, reason = self._select_cpu(problem)
            return solver, f"no auction on the device, {missing}; on the CPU {reason}"
        return self._select_cpu(problem)

    def _select_cpu(self, problem: AssignmentProblem) -> tuple[AbstractAssignmentSolver, str]:
        """The same among the solvers on the CPU."""
        if find_lapx() is None:
            return ScipyAssignment(), (
                "lapx >= 0.11 isn't installed (pip install gpu-align[fast]): SciPy"
            )
        if problem.n < _LAPX_MIN_N and problem.batch <= 1:
            return ScipyAssignment(), (
                f"lapx is installed, but gains nothing on one problem of n = {problem.n}: SciPy"
            )
        return (
            LapxAssignment(),
            "lapx is installed: faster than SciPy on all but nearly rank-one costs",
        )

    def queueing(self) -> AuctionAssignment:
        """See `AbstractAssignmentSolver.queueing`."""
        return AuctionAssignment()

    def solve(self, problem: AssignmentProblem) -> AssignmentSolution:
        """Solve with the selected solver; its reason is added to the stats."""
        solver, reason = self.select(problem)
        solution = solver.solve(problem)
        return replace(solution, stats={**solution.stats, "reason": reason})


def solve(
    problem: AssignmentProblem,
    solver: AbstractAssignmentSolver | None = None,
    *,
    certify: bool = False,
    throw: bool = True,
) -> AssignmentSolution:
    """Match rows with columns in every problem of a batch, to optimality.

    Args:
        problem: b problems of up to n rows.
        solver: None for `AutoAssignment()`.
        certify: also compute feasible potentials, and with them the duality gap, which proves
            the matching optimal (`Status.OPTIMAL`). A solver that gives its own keeps them.
        throw: raise where a problem failed; otherwise its status says why.

    Returns:
        One matching for each problem.

    Raises:
        AssignmentError: `throw`, and at least one problem failed; names their batch indices.
        UnavailableError: the library of an explicitly chosen solver isn't installed.
    """
    solution = (solver or AutoAssignment()).solve(problem)
    if certify and solution.duality_gap is None:
        solution = certify_solution(problem, solution)
    if throw:
        raise_failures(solution.status)
    return solution
