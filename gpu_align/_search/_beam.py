"""Beam descent: a beam of hypotheses that are perturbed, descend, and compete."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses, concatenate
from gpu_align._search._descent import ORDERS, Descent, Order, draw_order, start_descent, sweep
from gpu_align._search._moves import best_move
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State, stored
from gpu_align._status import Status


@stored
@dataclass(frozen=True)
class _Beam:
    """The beam between two sweeps.

    Attributes:
        pruned: the beam at the last pruning.
        descent: the children on their way down, the beam before them.
        last: int64 [each] on the host, the group that was perturbed; it is looked at last in the
            first sweep, so that its neighbours can answer the perturbation before it is undone.
            None later.
        round: how many rounds of perturbation have begun.
        idle: int64 [m], rounds since the best distance of each model fell.
        best: float64 [m], best distance of each model at the last pruning.
    """

    pruned: Hypotheses
    descent: Descent
    last: Tensor | None
    round: int
    idle: Tensor
    best: Tensor


@dataclass(frozen=True)
class BeamDescent(Search[_Beam]):
    """Descent with a beam: expand by exact and perturbed assignments, descend, keep the best.

    A round expands every hypothesis of the beam into `expansions` children: itself, and copies of
    which one random group is assigned with noise on its costs. All children descend together
    until none can be improved; the best `width` distinct ones of each model stay. With one
    expansion it is CoordinateDescent.

    Attributes:
        width: hypotheses per model that are kept.
        expansions: children of each hypothesis per round, the unperturbed one included.
        noise: noise on the costs in units of their standard deviation, one value per round,
            over and over.
        patience: ends after this many rounds without a better hypothesis.
        rounds: ends after this many rounds in any case.
        order: order of the groups within a sweep.
    """

    width: int = 4
    expansions: int = 4
    noise: tuple[float, ...] = (0.2, 0.1, 0.4)
    patience: int = 6
    rounds: int = 1000
    order: Order = "random"
    name: ClassVar[str] = "BeamDescent"

    def __post_init__(self) -> None:
        for name in ("width", "expansions", "patience", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not self.noise or min(self.noise) <= 0:
            raise InputError(f"expected noise levels above 0, got {self.noise}")
        if self.order not in ORDERS:
            raise InputError(f"expected an order among {ORDERS}, got {self.order!r}")

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        return self.width * (1 + self.expansions)

    def init(self, run: Run, start: Hypotheses | None) -> State[_Beam]:
        """See `Search.init`."""
        hypotheses = run.problem.identity() if start is None else start
        best = torch.full_like(run.problem.constant, torch.inf)
        idle = torch.zeros_like(best, dtype=torch.int64)
        descent = start_descent(run, hypotheses)
        return State(self.name, hypotheses, _Beam(hypotheses, descent, None, 0, idle, best))

    def step(self, run: Run, state: State[_Beam]) -> State[_Beam]:
        """Do one sweep of all children; prune and expand once all have converged."""
        beam = state.memory
        order = draw_order(run, beam.descent.hypotheses.each, self.order)
        if beam.last is not None:
            is_last = order == beam.last[:, None]
            order = order.gather(1, is_last.to(torch.int8).argsort(dim=1, stable=True))
        descent = sweep(run, beam.descent, order)
        if not descent.converged:
            memory = replace(beam, descent=descent, last=None)
            return replace(state, hypotheses=descent.hypotheses, memory=memory)
        return self._next_round(run, replace(state, hypotheses=descent.hypotheses), beam)

    def _next_round(self, run: Run, state: State[_Beam], beam: _Beam) -> State[_Beam]:
        pruned = state.hypotheses.best(min(self.width, state.hypotheses.each))
        if beam.round:
            # What a model has found does not depend on how long the others take.
            pruned = beam.pruned.first(pruned.each).chosen(
                pruned, (beam.idle < self.patience)[pruned.model]
            )
        best = pruned.best().objective
        improved = best < beam.best - run.tolerance(run.problem.model_index(1))
        idle = torch.where(improved, 0, beam.idle + 1)
        state = replace(state, hypotheses=pruned)
        busy = (idle < self.patience).cpu()
        if self.expansions == 1 or not bool(busy.any()):
            return replace(state, finished=Status.CONVERGED)
        if beam.round >= self.rounds:
            return replace(state, finished=Status.COMPLETED)
        noise = self.noise[beam.round % len(self.noise)]
        descent, last = self._expand(run, pruned, noise, busy)
        return replace(state, memory=_Beam(pruned, descent, last, beam.round + 1, idle, best))

    def _expand(
        self, run: Run, pruned: Hypotheses, noise: float, busy: Tensor
    ) -> tuple[Descent, Tensor]:
        """Return the beam and its perturbed children, and which group each had perturbed.

        Args:
            run: the running search.
            pruned: the beam.
            noise: see `perturb`.
            busy: bool [m] on the host, the models that are still to be improved.
        """
        groups, models, each = run.problem.order, run.problem.models, pruned.each
        children = pruned.spread(self.expansions - 1)
        born = torch.arange(children.each, device="cpu")
        moved = run.random.below(len(groups), born)
        stale = torch.zeros(
            models, each + children.each, len(groups), dtype=torch.bool, device="cpu"
        )
        for number, group in enumerate(groups):
            run.heartbeat(f"perturbing group {number + 1} of {len(groups)}")
            perturbed = (moved == number).nonzero().flatten()
            chosen = (busy.nonzero() * children.each + perturbed).flatten()
            for part in run.parts(group, chosen):
                children = perturb(run, children, group, part, noise)
            for neighbour in (group, *run.problem.neighbours(group)):
                stale[:, each + perturbed, groups.index(neighbour)] = busy[:, None]
        joined = concatenate([pruned, children])
        last = torch.cat([torch.zeros(each, dtype=torch.int64, device="cpu"), moved])
        return start_descent(run, joined, stale.flatten(0, 1)), last


def perturb(
    run: Run, hypotheses: Hypotheses, group: str, chosen: Tensor, noise: float
) -> Hypotheses:
    """Assign one group of the chosen hypotheses with noise on its costs.

    Args:
        run: the running search.
        hypotheses: the batch.
        group: the group that is assigned.
        chosen: int64 [c] on the host, which hypotheses.
        noise: standard deviation of the noise, in units of that of the costs.
    """
    index = run.executor.upload(chosen)
    part, owners = hypotheses.select(index), index % hypotheses.each
    moved, decrease = best_move(run, group, part, noise=noise, owners=owners)
    return hypotheses.put(index, moved, part.objective - decrease)
