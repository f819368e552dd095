"""Assignment by SciPy, always there."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from gpu_align._assignment._batch import to_numpy, to_solution
from gpu_align._assignment._problem import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
)
from gpu_align._assignment._threads import check_threads, solve_each, thread_count


@dataclass(frozen=True)
class ScipyAssignment(AbstractAssignmentSolver):
    """Shortest augmenting paths in float64, `scipy.optimize.linear_sum_assignment`.

    Attributes:
        threads: at most this many threads; None for every CPU that this process may use.

    Raises:
        InputError: `threads` is below 1.

    Source: Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on
    Aerospace and Electronic Systems 52(4) (2016), section II.
    """

    threads: int | None = None
    name: ClassVar[str] = "scipy"

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def solve(self, problem: AssignmentProblem) -> AssignmentSolution:
        """Return an optimal matching for each problem with finite costs."""
        costs = to_numpy(problem)
        col_ind, threads = solve_each(costs, _match, thread_count(self.threads))
        return to_solution(problem, costs, col_ind, {"solver": self.name, "threads": threads})


def _match(cost: NDArray[Any]) -> NDArray[np.int64]:
    """Return the columns [m] of an optimal matching of `cost` [m, m]."""
    col_ind: NDArray[np.int64] = linear_sum_assignment(cost)[1]
    return col_ind
