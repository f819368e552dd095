"""Straight-through matching: free weights follow a task loss, their weight matching is applied."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from gpu_align._device import RandomStream
from gpu_align._network import TaskLoss
from gpu_align._problem import AlignmentProblem
from gpu_align._search._run import Run
from gpu_align._search._task_search import (
    Initial,
    Learner,
    Midpoints,
    Perms,
    Sample,
    Segment,
    TaskSearch,
    matched,
)
from gpu_align._symmetry import Weights


@dataclass(frozen=True)
class StraightThrough(TaskSearch):
    """Descend the loss of the midpoint in free weights w, in whose place is `argmax <w, pi.B>`.

    w begins at the target. In each step the source is permuted to w by a weight matching that
    starts from the last one; the gradient of the loss with respect to the permuted source is taken
    for that of w. Evidence of the problem counts in the first weight matching only.

    Attributes:
        loss, steps, rate, patience, initial, segment: see `TaskSearch`.

    Source: Ainsworth et al., Git Re-Basin (ICLR 2023), section 3.3; the step is Adam's here.
    """

    loss: TaskLoss
    steps: int = 300
    rate: float = 3e-3
    patience: int = 200
    initial: Initial = "matching"
    segment: Segment = "midpoint"
    name: ClassVar[str] = "StraightThrough"

    def __post_init__(self) -> None:
        self._check()

    def begin(self, run: Run, between: Midpoints, perms: Perms) -> dict[str, Tensor]:
        """See `TaskSearch.begin`: w is the target."""
        return {name: between.target[name].clone() for name in between.names}

    def gradients(
        self, between: Midpoints, learner: Learner, model: int, sample: Sample
    ) -> dict[str, Tensor]:
        """See `TaskSearch.gradients`."""
        source = between.permuted(learner.perms, model)
        learned = {name: source[name].detach().requires_grad_() for name in between.names}
        return between.gradients(learned, source | learned, sample)

    def project(
        self,
        run: Run,
        parameters: Mapping[str, Tensor],
        perms: Perms,
        model: int,
        sample: Sample,
    ) -> Perms:
        """See `TaskSearch.project`: by weight matching."""
        problem = _towards(run.problem, parameters, model)
        own = replace(run, problem=problem, random=RandomStream(sample.seed))
        found = matched(own, problem.hypotheses(perms))
        own.executor.check()
        run.assignments = own.assignments
        return dict(found.perms)


def _towards(
    problem: AlignmentProblem, weights: Mapping[str, Tensor], model: int
) -> AlignmentProblem:
    """Return the problem of one of the sources with other weights as the target."""
    spec = problem.spec
    target = {name: weights.get(name, problem.target[name][0]) for name in spec.tensors}
    return AlignmentProblem.of_weights(
        problem.sources.part(model, model + 1),
        Weights(spec, [target], problem.device),
        metric=problem.metric,
        dtype=problem.dtype,
        engine=problem.engine,
    )
