"""Ways to propose several assignments for one cost matrix."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._assignment import AssignmentProblem, k_best
from gpu_align._errors import InputError
from gpu_align._problem import in_chunks
from gpu_align._search._run import Run
from gpu_align._search._scale import deviation

_CHUNK = {"cpu": 2**22}
_DEVICE_CHUNK = 2**26
"""Entries of shuffled costs that are made at once: few copies in fresh memory, many problems."""


class Candidates(ABC):
    """Proposes `count` assignments of each cost matrix; equal ones may come more than once."""

    count: int

    @abstractmethod
    def propose(self, run: Run, cost: Tensor) -> Tensor:
        """Return candidates to minimise the cost: [b, n, n] -> int64 [b, count, n]."""


def _check(name: str, count: int, positive: float | None = None) -> None:
    if count < 1:
        raise InputError(f"{name}: expected at least 1 candidate, got {count}")
    if positive is not None and not positive > 0:
        raise InputError(f"{name}: expected a value above 0, got {positive}")


@dataclass(frozen=True)
class KBest(Candidates):
    """The `count` best assignments, exactly (Murty 1968); one is the exact optimum."""

    count: int = 1

    def __post_init__(self) -> None:
        _check("KBest", self.count)

    def propose(self, run: Run, cost: Tensor) -> Tensor:
        """See `Candidates.propose`."""
        if self.count == 1:
            return run.assign(-cost)[:, None]
        run.assignments += len(cost)
        return k_best(AssignmentProblem(cost), self.count, run.solver)[0]


@dataclass(frozen=True)
class Noise(Candidates):
    """The optimum, and optima of costs with normal noise.

    Attributes:
        count: candidates of each matrix.
        scale: standard deviation of the noise in units of that of the costs.
    """

    count: int = 10
    scale: float = 0.1

    def __post_init__(self) -> None:
        _check("Noise", self.count, self.scale)

    def propose(self, run: Run, cost: Tensor) -> Tensor:
        """See `Candidates.propose`."""
        batch, size, _ = cost.shape
        noise = self.scale * run.normal(run.owners(batch), self.count, size, size)
        noise[:, 0] = 0
        noisy = cost[:, None] + deviation(cost)[:, None, None, None] * noise
        return run.assign(-noisy.flatten(0, 1)).reshape(batch, self.count, size)


@dataclass(frozen=True)
class Rounding(Candidates):
    """Optima of costs rounded to integers: ties let each order of the rows give another one.

    The rows are shuffled, the rounded costs solved, and the shuffle undone. Which optimum an
    order gives is the solver's choice, so it may differ between devices.

    Attributes:
        count: orders of the rows tried for each matrix.
        unit: the cost that is rounded to 1; None takes 1/50 of the range of the costs.

    Source: the beam-search coursework whose report describes it (MTDoven/Machine-Learning,
    algorithm_design/permutation); its code does not undo the shuffle, ours does.
    """

    count: int = 10
    unit: float | None = None

    def __post_init__(self) -> None:
        _check("Rounding", self.count, self.unit)

    def propose(self, run: Run, cost: Tensor) -> Tensor:
        """See `Candidates.propose`."""
        batch, size, _ = cost.shape
        similarity = -self._rounded(cost)
        order = run.random.permutation(run.owners(batch), self.count, size).flatten(0, 1)
        problem = torch.arange(batch, device=cost.device).repeat_interleave(self.count)

        def assigned(part: slice) -> Tensor:
            return run.assign(similarity[problem[part, None], order[part]])

        chunk = _CHUNK.get(cost.device.type, _DEVICE_CHUNK) // max(size**2, 1)
        columns = in_chunks(assigned, len(order), chunk)
        return torch.empty_like(columns).scatter_(1, order, columns).unflatten(0, (batch, -1))

    def _rounded(self, cost: Tensor) -> Tensor:
        if self.unit is not None:
            return (cost / self.unit).round()
        lowest = cost.amin((1, 2), keepdim=True)
        spread = cost.amax((1, 2), keepdim=True) - lowest
        # Equal costs stay equal: any order of the rows is an optimum.
        return (
            50 * (cost - lowest) / torch.where(spread > 0, spread, torch.ones_like(spread))
        ).round()
