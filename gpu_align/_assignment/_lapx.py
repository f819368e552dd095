"""Assignment by lapx, an optional dependency."""

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gpu_align._assignment._batch import CostBatch, identity_matching, to_numpy, to_solution
from gpu_align._assignment._problem import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
)
from gpu_align._assignment._threads import check_threads, solve_each, thread_count
from gpu_align._errors import UnavailableError


@lru_cache(maxsize=1)
def find_lapx() -> ModuleType | None:
    """Import lapx on first use; None where it is missing or older than 0.11 (no lapjvr)."""
    try:
        import lap
        from lap import lapjvr, lapjvr_batch  # noqa: F401
    except ImportError:
        return None
    module: ModuleType = lap
    return module


@dataclass(frozen=True)
class LapxAssignment(AbstractAssignmentSolver):
    """Jonker-Volgenant in float64 potentials, lapx's `lapjvr`; exact for float32 costs too.

    Its siblings `lapjv` and `lapjvs` are not used: their augmenting row reduction stalls on
    near ties, which trained weights are full of.

    Attributes:
        threads: at most this many threads; None for every CPU that this process may use.

    Raises:
        InputError: `threads` is below 1.

    Source: Jonker & Volgenant, "A shortest augmenting path algorithm for dense and sparse linear
    assignment problems", Computing 38 (1987), section 4.
    """

    threads: int | None = None
    name: ClassVar[str] = "lapx"

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def solve(self, problem: AssignmentProblem) -> AssignmentSolution:
        """Return an optimal matching for each problem with finite costs.

        Raises:
            UnavailableError: lapx is not installed, or too old.
        """
        lapx = find_lapx()
        if lapx is None:
            raise UnavailableError(
                "LapxAssignment: expected lapx >= 0.11 to be installed; it cannot be imported. "
                "Run `pip install gpu-align[fast]`, or choose ScipyAssignment()."
            )
        costs = to_numpy(problem)
        threads = thread_count(self.threads)
        if (costs.sizes[costs.solvable] == problem.n).all():
            col_ind, threads = _solve_together(lapx, costs, threads)
        else:
            col_ind, threads = solve_each(
                costs, lambda cost: lapx.lapjvr(cost, return_cost=False)[1], threads
            )
        return to_solution(problem, costs, col_ind, {"solver": self.name, "threads": threads})


def _solve_together(
    lapx: ModuleType, costs: CostBatch, threads: int
) -> tuple[NDArray[np.int64], int]:
    """Match problems without padding in one call, whose threads never wait for the GIL."""
    col_ind = identity_matching(*costs.cost.shape[:2])
    todo = costs.solvable
    cost: NDArray[Any] = costs.cost if todo.all() else costs.cost[todo]
    workers = max(1, min(threads, len(cost)))
    if cost.size:
        found = lapx.lapjvr_batch(cost, return_cost=False, n_threads=workers)[1]
        col_ind[todo] = np.stack(found)
    return col_ind, workers
