"""Sinkhorn re-basin: a task loss descended in doubly stochastic matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._network import TaskLoss
from gpu_align._problem import AlignmentProblem, to_matrix
from gpu_align._search._relaxed import soft_of_logits
from gpu_align._search._run import Run
from gpu_align._search._task_search import (
    Initial,
    Learner,
    Midpoints,
    Perms,
    Sample,
    Segment,
    TaskSearch,
)


@dataclass(frozen=True)
class Sinkhorn(TaskSearch):
    """Descend the loss of the midpoint in the logits of doubly stochastic matrices.

    The gradient is taken through the unrolled Sinkhorn scaling. Every step is judged by the
    nearest permutation: a matrix between permutations may lose less than any of them, by averaging
    the source away.

    Attributes:
        loss, steps, rate, patience, initial, segment: see `TaskSearch`.
        certainty: logit of the first permutation's entries, the others being 0.
        iterations: Sinkhorn iterations.

    Source: Pena et al., "Re-basin via implicit Sinkhorn differentiation" (CVPR 2023), section 3.3.
    """

    loss: TaskLoss
    steps: int = 200
    rate: float = 0.1
    patience: int = 100
    initial: Initial = "matching"
    segment: Segment = "midpoint"
    certainty: float = 2.0
    iterations: int = 10
    name: ClassVar[str] = "Sinkhorn"

    def __post_init__(self) -> None:
        self._check()
        if self.iterations < 1 or not self.certainty >= 0:
            raise InputError(
                "expected at least 1 iteration and a certainty of at least 0, got "
                f"{self.iterations} and {self.certainty}"
            )

    def begin(self, run: Run, between: Midpoints, perms: Perms) -> dict[str, Tensor]:
        """See `TaskSearch.begin`: logits of each matrix; `tanh` of a signed one's are signs."""
        return {
            variable: self.certainty * to_matrix(perm, run.problem.dtype)
            for variable, perm in perms.items()
        }

    def gradients(
        self, between: Midpoints, learner: Learner, model: int, sample: Sample
    ) -> dict[str, Tensor]:
        """See `TaskSearch.gradients`."""
        logits = {n: x.detach().requires_grad_() for n, x in learner.adam.parameters.items()}
        with torch.enable_grad():
            source = between.soft.of(self._soft(between.problem, logits), model)
        return between.gradients(logits, source, sample)

    def project(
        self,
        run: Run,
        parameters: Mapping[str, Tensor],
        perms: Perms,
        model: int,
        sample: Sample,
    ) -> Perms:
        """See `TaskSearch.project`: the nearest permutation."""
        soft, found = self._soft(run.problem, parameters), Perms()
        for family in run.problem.families.values():
            found |= family.assign({m: soft[m] for m in family.variables}, run.match)
        return found

    def _soft(self, problem: AlignmentProblem, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        soft: dict[str, Tensor] = {}
        for family in problem.families.values():
            soft |= soft_of_logits(family, logits, self.iterations)
        return soft
