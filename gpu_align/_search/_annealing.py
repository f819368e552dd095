"""Deterministic annealing: all groups at once as doubly stochastic matrices that harden slowly."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses
from gpu_align._search._descent import Descent, descend, start_descent
from gpu_align._search._relaxed import soft_starts, soften, to_hypotheses
from gpu_align._search._search import Run, Search, State


@dataclass(frozen=True)
class Annealing(Search):
    """Graduated assignment: `P <- (1 - d) P + d Sinkhorn(S / (T std S))` while T falls.

    No assignment problem is solved on the way; at the end the matrices are rounded and descend.

    Attributes:
        starts: hypotheses per model; they differ by the noise on the barycentre.
        steps: number of temperatures, from `hot` to `cold` in geometric steps.
        hot, cold: temperatures in units of the standard deviation of each similarity.
        damping: d, the share of the new matrix in each step.
        noise: standard deviation of the logits of the start.
        iterations: Sinkhorn iterations per step.

    Source: Gold & Rangarajan, "A graduated assignment algorithm for graph matching" (1996).
    """

    starts: int = 4
    steps: int = 60
    hot: float = 0.5
    cold: float = 0.1
    damping: float = 0.5
    noise: float = 1.0
    iterations: int = 10
    name: ClassVar[str] = "Annealing"

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 2 or self.iterations < 1:
            raise InputError(
                "expected at least 1 start, 2 steps and 1 iteration, got "
                f"{self.starts}, {self.steps} and {self.iterations}"
            )
        if not self.hot >= self.cold > 0 or not 0 < self.damping <= 1 or self.noise < 0:
            raise InputError(
                "expected hot >= cold > 0, 0 < damping <= 1 and noise >= 0, got "
                f"{self.hot}, {self.cold}, {self.damping} and {self.noise}"
            )

    def init(self, run: Run, start: Hypotheses | None) -> State:
        """See `Search.init`; hypotheses to begin from only join the result."""
        soft = soft_starts(run, self.starts, self.noise, exact_first=False)
        hypotheses = run.problem.identity() if start is None else start
        return State(self.name, hypotheses, soft, expected=self.steps + 6)

    def step(self, run: Run, state: State) -> State:
        """Cool by one step; after the last one, round and descend sweep by sweep."""
        if isinstance(state.memory, Descent):
            return descend(run, state, "random")
        soft = state.memory
        assert isinstance(soft, dict)
        model = torch.arange(run.problem.models).repeat_interleave(self.starts)
        fraction = (state.sweep - 1) / (self.steps - 1)
        temperature = self.hot * (self.cold / self.hot) ** fraction
        cool(run, soft, model, temperature, self.damping, self.iterations)
        if state.sweep < self.steps:
            return replace(state, memory=soft)
        hypotheses = to_hypotheses(run, soft, model)
        return replace(state, hypotheses=hypotheses, memory=start_descent(run, hypotheses))


def cool(
    run: Run,
    soft: dict[str, Tensor],
    model: Tensor,
    temperature: float,
    damping: float,
    iterations: int,
) -> None:
    """Move all groups one step towards the assignments of this temperature, in place.

    Args:
        run: the running search.
        soft: matrix -> [b, n, n], changed.
        model: int64 [b].
        temperature: in units of the standard deviation of each similarity.
        damping: share of the new matrix.
        iterations: Sinkhorn iterations.
    """
    similarity = run.problem.soft_similarity(soft, model)
    for family in run.problem.families.values():
        own = {matrix: similarity[matrix] for matrix in family.matrices}
        for matrix, goal in soften(family, own, temperature, iterations).items():
            soft[matrix].lerp_(goal, damping)
