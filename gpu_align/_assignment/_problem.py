"""The assignment problem, its solution, and what a solver is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._status import Status

if TYPE_CHECKING:
    from gpu_align._assignment._auction import AuctionAssignment

_COST_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class AssignmentProblem:
    """A batch of square assignment problems: match every row with its own column.

    Attributes:
        cost: [b, n, n], float32 or float64; cost[p, i, j] is the cost of matching row i with
            column j in problem p. b and n may be 0. NaN and infinite entries are allowed here;
            solvers report them with `Status.NOT_FINITE`.
        maximize: the costs are gains: the largest sum is wanted.
        sizes: [b], int64, or None. Problem p is cost[p, :sizes[p], :sizes[p]]; the entries
            beyond are padding, which never has an influence, even when it is NaN. Sizes on a
            device are not read here, which would wait for it: a solver raises for wrong ones, or
            reports them with `Status.WRONG_SIZE`. A problem of size 0 costs next to nothing.

    Raises:
        InputError: a shape, a dtype or a size is wrong.
    """

    cost: Tensor
    maximize: bool = False
    sizes: Tensor | None = None

    def __post_init__(self) -> None:
        cost = self.cost
        if cost.ndim != 3 or cost.shape[1] != cost.shape[2]:
            raise InputError(
                "cost: expected a batch of square matrices, shape [b, n, n]; "
                f"got shape {list(cost.shape)}. For a single matrix, pass cost[None]."
            )
        if cost.dtype not in _COST_DTYPES:
            raise InputError(
                f"cost: expected float32 or float64; got {cost.dtype}. Convert it with .float()."
            )
        if self.sizes is not None:
            _check_sizes(self.sizes, self.batch)
            if self.sizes.device.type == "cpu":
                check_size_values(self.sizes, self.n)

    @property
    def batch(self) -> int:
        """Number of problems, b."""
        return self.cost.shape[0]

    @property
    def n(self) -> int:
        """Number of rows of the largest problem, padding included."""
        return self.cost.shape[1]


def _check_sizes(sizes: Tensor, batch: int) -> None:
    """Raise InputError unless `sizes` is [batch], int64."""
    if sizes.shape != (batch,) or sizes.dtype != torch.int64:
        raise InputError(
            f"sizes: expected one int64 per problem, shape [{batch}]; "
            f"got {sizes.dtype} of shape {list(sizes.shape)}."
        )


def check_size_values(sizes: Tensor, n: int) -> None:
    """Raise InputError unless `sizes` are within 0..n; waits for their device."""
    wrong = ((sizes < 0) | (sizes > n)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise InputError(
            f"sizes: expected values from 0 to n = {n}; got {int(sizes[index])} for problem "
            f"{index}. Pad the cost matrices to the largest size."
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class AssignmentSolution:
    """One matching for each problem of a batch. All tensors lie on the device of the costs.

    Attributes:
        col_ind: [b, n], int64. Row i (unit i of the target) is matched with column
            col_ind[p, i] (unit of the source). Padding rows hold their own index, and so do all
            rows of a failed problem: every line is a permutation of range(n).
        objective: [b], float64. Sum of the original costs of the matching; NaN on failure.
        status: one `Status` for each problem.
        stats: how the solver worked; at least "solver" and "threads".
        row_dual: [b, n], float64, or None where no certificate was asked for. Feasible:
            row_dual[i] + col_dual[j] <= cost[i, j] (>= when maximizing) up to rounding. Zero on
            padding, NaN on failure.
        col_dual: [b, n], float64, or None; see row_dual.
        duality_gap: [b], float64, or None. Distance from the objective to the bound which the
            duals prove, never negative: no matching is better by more than this.
    """

    col_ind: Tensor
    objective: Tensor
    status: tuple[Status, ...]
    stats: Mapping[str, object]
    row_dual: Tensor | None = None
    col_dual: Tensor | None = None
    duality_gap: Tensor | None = None


class AbstractAssignmentSolver(ABC):
    """Solves every problem of a batch to optimality.

    In a batch a failure is a value: `solve` does not raise for a problem that cannot be solved,
    its status says why.
    """

    name: ClassVar[str]

    @abstractmethod
    def solve(self, problem: AssignmentProblem) -> AssignmentSolution:
        """Return one matching for each problem of the batch."""

    def queueing(self) -> "AuctionAssignment | None":
        """Return what solves on a device without waiting for it; None if this solver cannot."""
        return None
