"""Searches by a task loss: gradient steps, each judged by its permutation on held-back data."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._network import Batch, TaskLoss
from gpu_align._problem import AlignmentProblem, Hypotheses, SoftNetworks
from gpu_align._search._adam import Adam
from gpu_align._search._descent import draw_order, start_descent, sweep
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State, stored
from gpu_align._status import Status
from gpu_align._symmetry import move, multiply

Initial = Literal["matching", "identity"]
Segment = Literal["midpoint", "random"]
Perms = dict[str, Tensor]
"""Variable -> int64 [1, n]."""

_MOST_SWEEPS = 100
"""Of one weight matching, as in the code of Git Re-Basin; it ends by itself long before."""


@stored
@dataclass(frozen=True)
class Learner:
    """One source on its way.

    Attributes:
        adam: what is moved.
        perms: what it projects to.
        best: the permutation with the least loss so far.
        loss: of that one, on the data held back.
        idle: number of steps since it was found.
    """

    adam: Adam
    perms: Perms
    best: Perms
    loss: float
    idle: int = 0


@dataclass(frozen=True)
class Sample:
    """What is drawn for a step, the same for all models.

    Attributes:
        batch: of the examples.
        share: of the source in the network between the target and it.
        seed: of what a model draws besides, so that none depends on how much another one does.
    """

    batch: Batch
    share: float
    seed: int


class Midpoints:
    """The networks between the target and the sources of a problem, and what they lose.

    Attributes:
        problem: what lies between.
        loss: on the problem's device.
        target: its tensors in the problem's dtype.
        names: of the tensors on which groups lie and that count, which are learned from.
    """

    def __init__(self, problem: AlignmentProblem, loss: TaskLoss) -> None:
        """Check that the model of the loss is that of the networks.

        Raises:
            InputError: it is another one.
        """
        loss.check_names(problem.spec.tensors)
        self.problem, self.loss = problem, loss.to(problem.device)
        tensors = problem.spec.tensors
        self.target = {name: self._wide(problem.target[name][0]) for name in tensors}
        self.names = [name for name, t in tensors.items() if t.counted and t.groups]

    def permuted(self, perms: Perms, model: int) -> dict[str, Tensor]:
        """Return one source with its units reordered, in the problem's dtype."""
        problem, groups = self.problem, self.problem.spec.groups
        one = torch.full((1,), model, device=problem.device)
        zero = torch.zeros(1, dtype=torch.float64, device=problem.device)
        vectors, signs = problem.group_vectors(Hypotheses(perms, one, zero, one))
        found = {}
        for name, axes in problem.spec.tensors.items():
            tensors = move(problem.sources.some(name, model, model + 1), axes, groups, vectors)
            found[name] = self._wide(multiply(tensors, axes, groups, signs)[0])
        return found

    def between(self, source: Mapping[str, Tensor], share: float = 0.5) -> dict[str, Tensor]:
        """Return the network between the target, at share 0, and a permuted source."""
        return {
            name: torch.lerp(a, source[name], share) if a.is_floating_point() else a
            for name, a in self.target.items()
        }

    def gradients(
        self, learned: Mapping[str, Tensor], source: Mapping[str, Tensor], sample: Sample
    ) -> dict[str, Tensor]:
        """Return the gradients of the loss of a sample.

        Args:
            learned: what they are taken with respect to.
            source: permuted, made from what is learned.
            sample: where they are taken. They are not taken through running statistics, which
                batch norms do not allow.

        Raises:
            InputError: the loss is not finite.
        """
        tensors = self.problem.spec.tensors
        source = {n: t if tensors[n].counted else t.detach() for n, t in source.items()}
        with torch.enable_grad():
            value = self.loss.of_batch(self.between(source, sample.share), sample.batch)
        if not bool(value.isfinite()):
            raise InputError(
                f"the loss of a batch is {float(value)} halfway between the networks; take another "
                "loss, or a smaller rate"
            )
        found = torch.autograd.grad(value, list(learned.values()), materialize_grads=True)
        return dict(zip(learned, found, strict=True))

    @cached_property
    def soft(self) -> SoftNetworks:
        """The sources under doubly stochastic matrices."""
        return SoftNetworks(self.problem)

    def held_loss(self, perms: Perms, model: int) -> float:
        """Return the loss of the midpoint on the data held back; waits for the device."""
        return float(self.loss.held_loss(self.between(self.permuted(perms, model))))

    def _wide(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.problem.dtype) if tensor.is_floating_point() else tensor


class TaskSearch(Search[tuple[Learner, ...]]):
    """A search that follows the gradient of a loss on data, one hypothesis of each model.

    The answer is the permutation whose midpoint with the target loses least on the data that are
    held back, of those that the steps have come to; its distance does not count. The host looks
    at the losses and at each permutation, for which it waits for the device.

    Attributes:
        loss: what is followed, and judges.
        steps: largest number of gradient steps.
        rate: step length of Adam.
        patience: a model rests after so many steps without a better permutation.
        initial: where it begins: "matching" at a weight matching from the identity, or "identity".
        segment: where between the networks the gradient is taken: "midpoint", or "random".
    """

    loss: TaskLoss
    steps: int
    rate: float
    patience: int
    initial: Initial
    segment: Segment

    @abstractmethod
    def begin(self, run: Run, between: Midpoints, perms: Perms) -> dict[str, Tensor]:
        """Return what is learned for a model that begins at a permutation, name -> tensor."""

    @abstractmethod
    def gradients(
        self, between: Midpoints, learner: Learner, model: int, sample: Sample
    ) -> dict[str, Tensor]:
        """Return the gradients of what is learned."""

    @abstractmethod
    def project(
        self,
        run: Run,
        parameters: Mapping[str, Tensor],
        perms: Perms,
        model: int,
        sample: Sample,
    ) -> Perms:
        """Return the permutation of what is learned, found from the last one."""

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        return 1

    def init(self, run: Run, start: Hypotheses | None) -> State[tuple[Learner, ...]]:
        """See `Search.init`; of hypotheses to begin from the best of each model is taken."""
        if torch.is_inference_mode_enabled():
            raise InputError(
                f"{self.name} takes gradients, which torch.inference_mode forbids; call it outside"
            )
        between = self._midpoints(run)
        first = _start(run, self.initial) if start is None else start.best()
        learners = []
        for model in range(run.problem.models):
            run.heartbeat(f"start of model {model + 1} of {run.problem.models}")
            perms = {name: perm[model, None] for name, perm in first.perms.items()}
            parameters = self.begin(run, between, perms)
            loss = between.held_loss(perms, model)
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss halfway between the networks is {loss} on the data held back; it "
                    "must be finite"
                )
            learners.append(Learner(Adam.of(parameters), perms, perms, loss))
        return self._state(first, learners)

    def step(self, run: Run, state: State[tuple[Learner, ...]]) -> State[tuple[Learner, ...]]:
        """Take a gradient step for every model that does not rest, project it and judge it."""
        between, host = self._midpoints(run), torch.zeros(1, dtype=torch.int64, device="cpu")
        share = float(run.random.uniform(host)) if self.segment == "random" else 0.5
        batch = between.loss.draw(run.random)
        sample = Sample(batch, share, int(run.random.words(host, 1)))
        learners = []
        for model, learner in enumerate(state.memory):
            run.heartbeat(f"model {model + 1} of {len(state.memory)}")
            if not self._rests(learner):
                learner = self._learned(run, between, learner, model, sample)
            learners.append(learner)
        best, pairs = state.hypotheses, zip(learners, state.memory, strict=True)
        if any(now.best is not before.best for now, before in pairs):
            joined = {n: torch.cat([one.best[n] for one in learners]) for n in best.perms}
            best = run.problem.hypotheses(joined, best.model)
        return self._state(best, learners)

    def _learned(
        self, run: Run, between: Midpoints, learner: Learner, model: int, sample: Sample
    ) -> Learner:
        gradients = self.gradients(between, learner, model, sample)
        adam = learner.adam.after(gradients, self.rate)
        perms = self.project(run, adam.parameters, learner.perms, model, sample)
        known = all(torch.equal(perm, learner.perms[name]) for name, perm in perms.items())
        loss = math.inf if known else between.held_loss(perms, model)
        if loss < learner.loss:
            return Learner(adam, perms, perms, loss)
        return replace(learner, adam=adam, perms=perms, idle=learner.idle + 1)

    def _rests(self, learner: Learner) -> bool:
        return learner.idle >= self.patience or learner.adam.steps >= self.steps

    def _state(self, best: Hypotheses, learners: Sequence[Learner]) -> State[tuple[Learner, ...]]:
        finished = None
        if all(map(self._rests, learners)):
            early = all(learner.adam.steps < self.steps for learner in learners)
            finished = Status.CONVERGED if early else Status.COMPLETED
        return State(
            self.name,
            best,
            tuple(learners),
            expected=self.steps,
            finished=finished,
            losses=tuple(learner.loss for learner in learners),
        )

    def _midpoints(self, run: Run) -> Midpoints:
        return run.prepared(self.loss, lambda: Midpoints(run.problem, self.loss))

    def _check(self) -> None:
        """Check the settings that all such searches have.

        Raises:
            InputError: one of them is out of range.
        """
        if not isinstance(self.loss, TaskLoss):
            raise InputError(
                f"expected a TaskLoss(model, data), got {type(self.loss).__name__}; a search by a "
                "task loss needs the module and data"
            )
        if self.steps < 1 or self.patience < 1 or not self.rate > 0:
            raise InputError(
                "expected at least 1 step, a patience of at least 1 and a rate above 0, got "
                f"{self.steps}, {self.patience} and {self.rate}"
            )
        if self.initial not in get_args(Initial) or self.segment not in get_args(Segment):
            raise InputError(
                f"expected initial among {get_args(Initial)}, segment among {get_args(Segment)}, "
                f"got {self.initial!r} and {self.segment!r}"
            )


def matched(run: Run, hypotheses: Hypotheses) -> Hypotheses:
    """Return what weight matching makes of hypotheses; of no more sweeps than in Git Re-Basin."""
    descent = start_descent(run, hypotheses)
    for number in range(_MOST_SWEEPS):
        run.heartbeat(f"weight matching, sweep {number + 1}")
        descent = sweep(run, descent, draw_order(run, descent.hypotheses.each, "random"))
        if descent.converged:
            break
    return descent.hypotheses


def _start(run: Run, initial: Initial) -> Hypotheses:
    hypotheses, counter = run.problem.identity(), run.random.counter
    if initial == "matching":
        hypotheses = matched(run, hypotheses)
    # Alone a model may take fewer sweeps, and must find the same numbers after them.
    run.random.counter = counter + _MOST_SWEEPS
    return hypotheses
