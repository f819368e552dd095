"""Coordinate descent: one group at a time, its best assignment with the others fixed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses
from gpu_align._search._executor import Heartbeat, no_heartbeat
from gpu_align._search._moves import best_move
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State, stored
from gpu_align._search._workspace import Workspace
from gpu_align._status import Status

Order = Literal["random", "forward", "backward"]
ORDERS = ("random", "forward", "backward")


@stored
@dataclass(frozen=True)
class Descent:
    """A batch on its way down, with a note of what still has to be looked at.

    Attributes:
        hypotheses: the batch.
        stale: bool [b, groups]; a group is stale if it, or a group it is coupled to, has moved
            since its assignment was last solved.
        alive: bool [b] on the host, which hypotheses had stale groups when it last looked.
    """

    hypotheses: Hypotheses
    stale: Tensor
    alive: Tensor

    @property
    def converged(self) -> bool:
        """Whether no group of any hypothesis can be improved with the others fixed."""
        return not bool(self.alive.any())

    @property
    def finished(self) -> Status | None:
        """How a search ends that does nothing but this descent; None before."""
        return Status.CONVERGED if self.converged else None


def start_descent(run: Run, hypotheses: Hypotheses, stale: Tensor | None = None) -> Descent:
    """Return a descent of a batch; nothing is kept of another one.

    Args:
        run: the running search.
        hypotheses: the batch.
        stale: bool [b, groups] on the host, what has to be looked at; default everything.
    """
    run.executor.forget()
    if stale is None:
        stale = torch.ones(len(hypotheses), len(run.problem.order), dtype=torch.bool, device="cpu")
    return Descent(hypotheses, run.executor.upload(stale), stale.any(1))


def draw_order(run: Run, each: int, order: Order) -> Tensor:
    """Return the order of the groups for one sweep of each hypothesis of a model.

    Returns:
        int64 [each, groups] on the host, where the sweep is planned.
    """
    count = len(run.problem.order)
    if order == "random":
        return run.random.permutation(torch.arange(each, device="cpu"), count)
    forward = (
        torch.arange(count, device="cpu")
        if order == "forward"
        else torch.arange(count, device="cpu").flip(0)
    )
    return forward.expand(each, count)


def sweep(run: Run, descent: Descent, order: Tensor) -> Descent:
    """Do one sweep, and look at what is stale after it; see `queue_sweep`."""
    descent = queue_sweep(run, descent, order)
    descent = replace(descent, alive=run.executor.look(descent.hypotheses, descent.stale))
    if descent.converged:
        run.executor.forget()
    return descent


def queue_sweep(run: Run, descent: Descent, order: Tensor) -> Descent:
    """Solve the assignment of every stale group once, in each hypothesis's own order.

    A move is kept only if it lowers the distance by more than rounding noise, so descent ends.

    The host plans the sweep from what it knows to be alive. On a device it looks at nothing:
    groups that are not stale are left out by the solver there. Once the budget of seconds is
    spent, the other groups stay as they are, and stale.

    Args:
        run: the running search.
        descent: the batch.
        order: int64 [each, groups], the same for each model.
    """
    moves = list(_plan(order, run.problem.coupling))
    if run.problem.models > 1:
        first = torch.arange(run.problem.models, device="cpu")[:, None] * len(order)
        moves = [(number, (first + owners).flatten()) for number, owners in moves]
    if workspace := run.executor.workspace(len(descent.hypotheses)):
        return _queue_prepared(run, workspace, descent, moves)
    for number, chosen in _in_time(run, moves):
        chosen = run.executor.movers(chosen, descent.stale[:, number], descent.alive)
        descent = _move(run, descent, number, chosen)
    return descent


def _in_time(run: Run, moves: Sequence[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Yield the moves for which there is time, with a sign of life."""
    for done, move in enumerate(moves):
        if run.clock.late():
            break
        run.clock.heartbeat(f"move {done + 1} of {len(moves)}")
        yield move


def _queue_prepared(
    run: Run, workspace: Workspace, descent: Descent, moves: Sequence[tuple[int, Tensor]]
) -> Descent:
    """Queue the moves of a sweep: number of the group, and who takes it, int64 [c].

    Groups whose moves are not prepared take the same way as without a workspace.
    """
    workspace.load(descent.hypotheses, descent.stale)
    if not descent.alive.all():
        moves = [(number, chosen[descent.alive[chosen]]) for number, chosen in moves]
    takers = _takers(run, workspace, len(descent.hypotheses), [chosen for _, chosen in moves])

    def now() -> Descent:
        hypotheses, stale = workspace.copy(descent.hypotheses)
        return replace(descent, hypotheses=hypotheses, stale=stale)

    for taker, (number, chosen) in zip(takers, _in_time(run, moves), strict=False):
        if workspace.can_move(number):
            run.assignments += len(chosen)
            workspace.move(number, taker)
        else:
            moved = _move(run, now(), number, chosen)
            workspace.load(moved.hypotheses, moved.stale)
    return now()


def _takers(
    run: Run, workspace: Workspace, batch: int, chosen: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return for each move who takes it, uint8 [b] or more on the device.

    Args:
        run: the running search.
        workspace: of the batch.
        batch: number of hypotheses.
        chosen: int64 [c] on the host, for each move.
    """
    if all(len(some) == batch for some in chosen):
        return [workspace.everyone] * len(chosen)
    width = -(-batch // 16) * 16  # lines are aligned
    taken = torch.zeros(len(chosen), width, dtype=torch.uint8, device="cpu")
    for line, some in zip(taken, chosen, strict=True):
        line[some] = 1
    return list(run.executor.upload(taken))


def _plan(order: Tensor, coupled: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield group after group, and the hypotheses that take it now.

    Groups that are not coupled do not see each other's moves, so a group may be taken as soon as
    no group it is coupled to is still to come before it. Of all groups that may be taken the one
    with the most hypotheses goes first: larger batches, the same result.

    Args:
        order: int64 [k, groups].
        coupled: bool [groups, groups].

    Yields:
        Number of the group, and int64 [c].
    """
    if len(order) == 1:
        only = torch.zeros(1, dtype=torch.int64, device="cpu")
        yield from ((number, only) for number in order[0].tolist())
        return
    # NumPy: on arrays as small as these its operations take a fifth of torch's time.
    rank, together = order.argsort(1).numpy(), coupled.numpy()
    waiting_for = ((rank[:, :, None] > rank[:, None, :]) & together).sum(2)
    pending = np.ones_like(rank, dtype=bool)
    while pending.any():
        ready = pending & (waiting_for == 0)
        number = int(ready.sum(0).argmax())
        chosen = ready[:, number].nonzero()[0]
        pending[chosen, number] = False
        later = rank[chosen] > rank[chosen, number, None]
        waiting_for[chosen] -= together[number] & later
        yield number, torch.from_numpy(chosen)


def _move(run: Run, descent: Descent, number: int, chosen: Tensor) -> Descent:
    """Move one group of the chosen hypotheses, int64 [c] on the host, in parts that fit."""
    for part in run.parts(run.problem.order[number], chosen):
        descent = _move_part(run, descent, number, part)
    return descent


def _move_part(run: Run, descent: Descent, number: int, chosen: Tensor) -> Descent:
    """Move one group of the chosen hypotheses, int64 [c] on the host, to its best assignment."""
    problem, group, batch = run.problem, run.problem.order[number], len(descent.hypotheses)
    index = run.executor.upload(chosen)
    part = descent.hypotheses.only(problem.seen_from(group)).select(index)
    stale = descent.stale.clone()
    wanted = stale[index, number]
    moved, decrease = _best_moves(run, group, chosen, part, wanted, batch)
    better = wanted & (decrease > run.tolerance(part.model))
    stale[:, number].index_fill_(0, index, False)  # without a copy from the host
    for neighbour in problem.neighbours(group):
        other = problem.order.index(neighbour)
        stale[index, other] = stale[index, other] | better
    hypotheses = descent.hypotheses.put(
        index,
        {m: torch.where(better[:, None], perm, part.perms[m]) for m, perm in moved.items()},
        part.objective - torch.where(better, decrease, 0.0),
    )
    return replace(descent, hypotheses=hypotheses, stale=stale)


def _best_moves(
    run: Run, group: str, chosen: Tensor, part: Hypotheses, wanted: Tensor, batch: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what `best_move` does for the chosen hypotheses of a batch, which are `part`."""

    def of(rows: slice, heartbeat: Heartbeat) -> tuple[dict[str, Tensor], Tensor]:
        some = part.part(rows)
        similarity = run.executor.similarities(group, chosen[rows], some, batch)
        return best_move(run, group, some, similarity, wanted=wanted[rows])

    if run.executor.keeps(group, batch):
        return of(slice(None), no_heartbeat)
    found = run.executor.in_parts(len(chosen), of, no_heartbeat)
    if len(found) == 1:
        return found[0]
    moved = {m: torch.cat([perms[m] for perms, _ in found]) for m in found[0][0]}
    return moved, torch.cat([decrease for _, decrease in found])


@dataclass(frozen=True)
class CoordinateDescent(Search[Descent]):
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

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        return self.starts

    def init(self, run: Run, start: Hypotheses | None) -> State[Descent]:
        """See `Search.init`."""
        hypotheses = self._starts(run) if start is None else start
        return State(self.name, hypotheses, start_descent(run, hypotheses))

    def _starts(self, run: Run) -> Hypotheses:
        hypotheses = run.problem.identity(self.starts)
        if self.initial == "identity":
            return hypotheses
        perms = run.problem.random(self.starts, run.random).perms
        first = hypotheses.owners == 0
        mixed = {g: torch.where(first[:, None], hypotheses.perms[g], p) for g, p in perms.items()}
        return run.problem.hypotheses(mixed, hypotheses.model)

    def step(self, run: Run, state: State[Descent]) -> State[Descent]:
        """Do one sweep."""
        order = draw_order(run, state.memory.hypotheses.each, self.order)
        descent = sweep(run, state.memory, order)
        return replace(
            state, hypotheses=descent.hypotheses, memory=descent, finished=descent.finished
        )
