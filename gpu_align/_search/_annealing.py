"""Deterministic annealing: all groups at once as doubly stochastic matrices that harden slowly."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._search._annealing_step import AnnealingState, AnnealingStep
from gpu_align._search._relaxation import RelaxedSearch
from gpu_align._search._relaxed import soft_starts
from gpu_align._search._run import Run


@dataclass(frozen=True)
class Annealing(RelaxedSearch[AnnealingState]):
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

    def expected_steps(self, waves: int) -> int:
        """See `RelaxedSearch.expected_steps`."""
        return self.steps * waves + 6

    def begin(self, run: Run, owners: Tensor) -> AnnealingState:
        """See `RelaxedSearch.begin`."""
        soft = soft_starts(run, owners, self.noise, exact_first=False)
        return AnnealingState(soft, run.problem.model_index(len(owners)))

    def relax(self, run: Run, present: AnnealingState, taken: int) -> AnnealingState:
        """See `RelaxedSearch.relax`."""
        step = run.prepared(
            present, lambda: AnnealingStep(run, present, self.damping, self.iterations)
        )
        if present.steps == taken:
            temperature = self.hot * (self.cold / self.hot) ** (taken / (self.steps - 1))
            step.take(temperature, run.heartbeat)
        return present

    def is_relaxed(self, present: AnnealingState, taken: int) -> bool:
        """See `RelaxedSearch.is_relaxed`."""
        return taken == self.steps
