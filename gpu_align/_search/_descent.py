"""Coordinate descent: one group at a time, its best assignment with the others fixed."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses
from gpu_align._search._moves import best_move
from gpu_align._search._search import Run, Search, State
from gpu_align._status import Status

Order = Literal["random", "forward", "backward"]
ORDERS = ("random", "forward", "backward")


@dataclass(frozen=True)
class Descent:
    """A batch on its way down, with a note of what still has to be looked at.

    Attributes:
        hypotheses: the batch.
        stale: bool [b, groups]; a group is stale if it, or a group it is coupled to, has moved
            since its assignment was last solved.
    """

    hypotheses: Hypotheses
    stale: Tensor

    @property
    def converged(self) -> bool:
        """Whether no group of any hypothesis can be improved with the others fixed."""
        return not bool(self.stale.any())


def start_descent(run: Run, hypotheses: Hypotheses) -> Descent:
    """Return a descent in which every group of every hypothesis is to be looked at."""
    stale = torch.ones(len(hypotheses), len(run.problem.groups), dtype=torch.bool)
    return Descent(hypotheses, stale)


def draw_order(run: Run, batch: int, order: Order) -> Tensor:
    """Return the order of the groups for one sweep of each hypothesis, int64 [b, groups]."""
    count = len(run.problem.groups)
    if order == "random":
        return torch.rand(batch, count, generator=run.generator).argsort(1)
    forward = torch.arange(count) if order == "forward" else torch.arange(count).flip(0)
    return forward.expand(batch, count)


def sweep(run: Run, descent: Descent, order: Tensor) -> Descent:
    """Solve the assignment of every stale group once, in each hypothesis's own order.

    Groups that are not coupled do not see each other's moves, so a group may be taken as soon as
    no group it is coupled to is still to come before it. Of all groups that may be taken the one
    with the most hypotheses goes first: larger batches, the same result.

    A move is kept only if it lowers the distance by more than rounding noise, so descent ends.

    Args:
        run: the running search.
        descent: the batch.
        order: int64 [b, groups].
    """
    coupled = _coupling(run)
    rank = order.argsort(1)
    waiting_for = ((rank[:, :, None] > rank[:, None, :]) & coupled).sum(2)
    pending = torch.ones_like(rank, dtype=torch.bool)
    while bool(pending.any()):
        ready = pending & (waiting_for == 0)
        number = int(ready.sum(0).argmax())
        chosen = ready[:, number].nonzero().flatten()
        pending[chosen, number] = False
        later = rank[chosen] > rank[chosen, number, None]
        waiting_for[chosen] -= (coupled[number] & later).long()
        chosen = chosen[descent.stale[chosen, number]]
        if len(chosen):
            descent = _move(run, descent, number, chosen)
    return descent


def _coupling(run: Run) -> Tensor:
    """Return which groups share a term, bool [groups, groups]."""
    groups = run.problem.groups
    coupled = torch.zeros(len(groups), len(groups), dtype=torch.bool)
    for number, group in enumerate(groups):
        for neighbour in run.problem.neighbours(group):
            coupled[number, groups.index(neighbour)] = True
    return coupled


def _move(run: Run, descent: Descent, number: int, chosen: Tensor) -> Descent:
    """Move one group of the chosen hypotheses to its best assignment."""
    problem, group = run.problem, run.problem.groups[number]
    part = descent.hypotheses.select(chosen)
    moved, gain = best_move(run, group, part)
    better = gain > run.tolerance(part.model)
    stale = descent.stale.clone()
    stale[chosen, number] = False
    for neighbour in problem.neighbours(group):
        stale[chosen[better], problem.groups.index(neighbour)] = True
    hypotheses = descent.hypotheses.put(
        chosen[better],
        {matrix: perm[better] for matrix, perm in moved.items()},
        (part.objective - gain)[better],
    )
    return Descent(hypotheses, stale)


def descend(run: Run, state: State, order: Order) -> State:
    """Do one sweep of a state whose memory is a Descent; it is finished once that has converged."""
    assert isinstance(state.memory, Descent)
    descent = sweep(run, state.memory, draw_order(run, len(state.memory.hypotheses), order))
    return replace(
        state,
        hypotheses=descent.hypotheses,
        memory=descent,
        finished=Status.CONVERGED if descent.converged else None,
    )


@dataclass(frozen=True)
class CoordinateDescent(Search):
    """Weight matching: sweeps over the groups until none can be improved.

    A whole batch of starts descends at once, each with its own order of the groups.

    Attributes:
        starts: hypotheses per model.
        order: order of the groups within a sweep: "random" (drawn anew for each sweep and
            start), "forward" or "backward".
        initial: "identity", or "random" permutations for all starts but the first.

    Source: Ainsworth et al., Git Re-Basin (ICLR 2023), algorithm 1.
    """

    starts: int = 1
    order: Order = "random"
    initial: Literal["identity", "random"] = "identity"
    name: ClassVar[str] = "CoordinateDescent"

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise InputError(f"expected at least 1 start, got {self.starts}")
        if self.order not in ORDERS:
            raise InputError(f"expected an order among {ORDERS}, got {self.order!r}")
        if self.initial not in ("identity", "random"):
            raise InputError(f"expected 'identity' or 'random', got {self.initial!r}")

    def init(self, run: Run, start: Hypotheses | None) -> State:
        """See `Search.init`."""
        hypotheses = self._starts(run) if start is None else start
        return State(self.name, hypotheses, start_descent(run, hypotheses))

    def _starts(self, run: Run) -> Hypotheses:
        hypotheses = run.problem.identity(self.starts)
        if self.initial == "identity":
            return hypotheses
        perms = run.problem.random(self.starts, run.generator).perms
        first = torch.arange(len(hypotheses)) % self.starts == 0
        mixed = {g: torch.where(first[:, None], hypotheses.perms[g], p) for g, p in perms.items()}
        return run.problem.hypotheses(mixed, hypotheses.model)

    def step(self, run: Run, state: State) -> State:
        """Do one sweep."""
        return descend(run, state, self.order)
