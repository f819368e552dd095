"""What a search is, and the one loop that runs it."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gpu_align._assignment import (
    STATUS_OF_CODE,
    AbstractAssignmentSolver,
    AssignmentProblem,
    AuctionAssignment,
    AutoAssignment,
    solve,
)
from gpu_align._device import RandomStream, free_bytes
from gpu_align._errors import AssignmentError
from gpu_align._problem import AlignmentProblem, Hypotheses
from gpu_align._process import torch_threads
from gpu_align._search._clock import Clock, OutOfTime
from gpu_align._search._state import Budget, Progress, ProgressCallback, Snapshot, State
from gpu_align._search._store import SearchStore
from gpu_align._status import Status

if TYPE_CHECKING:
    from gpu_align._search._workspace import Workspace


class Search(ABC):
    """A way to look for a good permutation; it is stateless, all state is in a `State`."""

    name: ClassVar[str]

    @abstractmethod
    def init(self, run: "Run", start: Hypotheses | None) -> State:
        """Return the state before the first step; `start` are hypotheses to begin from."""

    @abstractmethod
    def step(self, run: "Run", state: State) -> State:
        """Return the state after one more step."""


_BYTES = 32
"""Free memory that a move wants for each entry of a similarity: copies in several precisions."""


@dataclass
class Run:
    """What a search needs while it runs.

    Attributes:
        problem: what is solved.
        random: the one source of random numbers.
        solver: solves the assignment problems.
        assignments: number of assignment problems given to the solver so far.
        splits: what did not fit into memory at once -> in what parts it was computed.
        clock: the time, and who is told of it.
        workspaces: what descents on a device keep at fixed places, by the size of the batch.
    """

    problem: AlignmentProblem
    random: RandomStream
    solver: AbstractAssignmentSolver = field(default_factory=AutoAssignment)
    assignments: int = 0
    splits: dict[str, str] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    workspaces: "dict[int, Workspace]" = field(default_factory=dict)
    _measured: tuple[float, int] = (-math.inf, 0)

    def __post_init__(self) -> None:
        # Of all assignments on the device: 0, or why one of them failed, [1].
        self.worst_code = torch.zeros(1, dtype=torch.int64, device=self.problem.device)

    @property
    def waits(self) -> bool:
        """Whether the host may look at values at any time; if not, only between steps."""
        return self.problem.engine.waits

    def beat(self, part: str) -> None:
        """Give a sign of life within a long step; it ends here if its time is spent.

        Args:
            part: what is being done, such as "product 3 of 8".

        Raises:
            OutOfTime: the budget of seconds is spent. The search ends with the state before the
                step.
        """
        self.clock.beat(part)
        if self.clock.late():
            raise OutOfTime

    def upload(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the host on the problem's device, without waiting for it."""
        if self.problem.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.problem.device, non_blocking=True)

    @property
    def queues(self) -> bool:
        """Whether assignments are solved on the device, without waiting for it."""
        return not self.waits and isinstance(self.solver, AutoAssignment | AuctionAssignment)

    def assign(self, similarity: Tensor, active: Tensor | None = None) -> Tensor:
        """Return the best assignment of each matrix.

        Args:
            similarity: [b, n, n], to be maximised.
            active: bool [b], which of them are wanted; the others may get any permutation.

        Returns:
            int64 [b, n].
        """
        self.assignments += len(similarity)
        if not self.queues:
            problem = AssignmentProblem(similarity, maximize=True)
            return solve(problem, self.solver).col_ind.to(similarity.device)
        sizes = None if active is None else active.long() * similarity.shape[1]
        problem = AssignmentProblem(similarity, maximize=True, sizes=sizes)
        found = self.device_solver.enqueue(problem)
        codes = torch.cat([self.worst_code, found.status_codes])
        self.worst_code.copy_(codes.amax(0, keepdim=True))
        return found.col_ind

    @property
    def device_solver(self) -> AuctionAssignment:
        """What solves assignments on the device, where they are queued."""
        return self.solver if isinstance(self.solver, AuctionAssignment) else AuctionAssignment()

    def check(self) -> None:
        """Wait for the device, and raise if an assignment problem has failed.

        Raises:
            AssignmentError: with the reason of one of them.
        """
        code = 0 if self.waits else int(self.worst_code)
        if code:
            status = STATUS_OF_CODE[code]
            raise AssignmentError(f"an assignment problem failed: {status.value}", status)

    def match(self, similarity: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the best assignments [b, n] and their values [b]; see `assign`."""
        columns = self.assign(similarity, active)
        return columns, similarity.gather(2, columns[..., None]).sum((1, 2))

    def parts(self, group: str, chosen: Tensor) -> Iterator[Tensor]:
        """Cut hypotheses into parts whose similarities fit into memory; the split is noted.

        Args:
            group: root of the family that is moved.
            chosen: int64 [c] on the host.
        """
        variables = self.problem.families[group].variables
        each = _BYTES * sum(self.problem.sizes[variable] ** 2 for variable in variables)
        most = max(self._free() // each, 1)
        if len(chosen) > most:
            self.splits[group] = f"{most} of {len(chosen)} hypotheses at a time"
        yield from chosen.split(most) if len(chosen) else ()

    def waves(self, count: int) -> Iterator[Tensor]:
        """Cut hypotheses per model into waves whose soft matrices fit into memory.

        Yields:
            int64 [k] on the device, the numbers of the hypotheses of a wave.
        """
        entries = self.problem.models * sum(size**2 for size in self.problem.sizes.values())
        most = max(self._free() // max(_BYTES * entries, 1), 1)
        if count > most:
            self.splits["soft matrices"] = f"{most} of {count} hypotheses of each model at a time"
        yield from torch.arange(count, device=self.problem.device).split(most)

    def fitting(self, share: float, entries: int) -> int:
        """Return how often so many entries fit into a share of the free memory, at least once."""
        each = entries * self.problem.dtype.itemsize
        return max(int(share * self._free()) // max(each, 1), 1)

    def _free(self) -> int:
        """Return the free memory of the device in bytes, measured at most once a second."""
        now = time.monotonic()
        if now > self._measured[0] + 1:
            self._measured = now, free_bytes(self.problem.device)
        return self._measured[1]

    def owners(self, batch: int) -> Tensor:
        """Return whose random numbers each hypothesis of a batch gets, int64 [b].

        Hypotheses of different models share them, so that no model depends on what else is in
        the batch.
        """
        models = self.problem.models
        return torch.arange(batch // models, device=self.problem.device).repeat(models)

    def normal(self, owners: Tensor, *shape: int) -> Tensor:
        """Draw standard normal numbers in the problem's dtype, [b, *shape]."""
        return self.random.normal(owners, *shape, dtype=self.problem.dtype)

    def tolerance(self, model: Tensor) -> Tensor:
        """Return the gain in distance below which a move is rounding noise, float64 [b]."""
        relative = 1e-7 if self.problem.dtype == torch.float32 else 1e-13
        return relative * self.problem.constant[model].abs()


def deviation(matrices: Tensor) -> Tensor:
    """Return the standard deviation of the entries of each matrix, [b, n, n] -> [b]; 0 if one."""
    entries = matrices.flatten(1)
    # In two passes: on the CPU torch's own std takes twice the time.
    centred = entries - entries.mean(1, keepdim=True)
    return torch.linalg.vector_norm(centred, dim=1) / max(entries.shape[1] - 1, 1) ** 0.5


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        best: the best hypothesis of each model, models in order.
        hypotheses: all hypotheses of the last state.
        history: the progress after every step.
        status: how the search ended.
        seconds: time spent.
        assignments: number of assignment problems solved.
        splits: what did not fit into memory at once -> in what parts it was computed.
    """

    best: Hypotheses
    hypotheses: Hypotheses
    history: tuple[Progress, ...]
    status: Status
    seconds: float
    assignments: int
    splits: Mapping[str, str] = field(default_factory=dict)


def run_search(
    search: Search,
    problem: AlignmentProblem,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    solver: AbstractAssignmentSolver | None = None,
    progress: ProgressCallback | None = None,
    start: Hypotheses | None = None,
    store: SearchStore | None = None,
) -> Outcome:
    """Run a search to its end or to the end of its budget.

    Ctrl-C ends it with the best found so far and the status INTERRUPTED.

    Args:
        search: what to run.
        problem: what to solve.
        seed: of all random numbers; the result is deterministic for a seed unless the budget of
            seconds ends the search.
        budget: limits, for the whole search if it is resumed.
        solver: of the assignment problems, default `AutoAssignment`.
        progress: called after every step, and now and then within long ones.
        start: hypotheses to begin from, instead of the search's own.
        store: where the search is kept while it runs, and resumed from. The caller discards it
            once the result is in safety.

    Raises:
        InputError: the search cannot be resumed.
    """
    run = Run(
        problem, RandomStream(seed), solver or AutoAssignment(), clock=Clock(budget, progress)
    )
    settings = {"the search": search, "the solver": run.solver, "the seed": seed}
    kept = None if store is None else store.begin(problem, settings, start)
    if kept is None:
        best = problem.identity() if start is None else start.best()
        state = State(search.name, best)
        run.clock.begin(state, best)
        if not problem.order or (not problem.evidence and _all_equal(problem, best)):
            return _outcome(run, state, best, Status.TRIVIAL)
    else:
        state, best = _resumed(run, kept)
    with compute_threads(problem):
        return _loop(run, search, start, state, best, kept is not None, store)


def _loop(
    run: Run,
    search: Search,
    start: Hypotheses | None,
    state: State,
    best: Hypotheses,
    begun: bool,
    store: SearchStore | None,
) -> Outcome:
    """Do step after step; `begun` says that `state` is not the one before `Search.init`."""
    clock, known, status = run.clock, None, None
    try:
        if not begun:
            state = search.init(run, start)
            _keep(run, store, state, best)
        while (status := state.finished or clock.spent(state)) is None:
            state = search.step(run, replace(state, sweep=state.sweep + 1))
            if state.hypotheses is not known:
                run.check()
                best, known = _better(run, best, state.hypotheses), state.hypotheses
            clock.note(state, best)
            _keep(run, store, state, best)
            clock.show()
    except OutOfTime:
        status = Status.TIME_BUDGET
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
        if store is not None:
            store.flush()
    return _outcome(run, state, _better(run, best, state.hypotheses), status)


def _keep(run: Run, store: SearchStore | None, state: State, best: Hypotheses) -> None:
    if store is not None:
        splits, history = dict(run.splits), tuple(run.clock.history)
        spent = (run.random.counter, run.assignments, splits, history, run.clock.seconds())
        store.note(Snapshot(state, best, *spent))


def _resumed(run: Run, kept: Snapshot) -> tuple[State, Hypotheses]:
    run.random.counter, run.assignments = kept.counter, kept.assignments
    run.splits = dict(kept.splits)
    run.clock.resume(kept.history, kept.seconds)
    run.clock.begin(kept.state, kept.best)
    return kept.state, kept.best


def _outcome(run: Run, state: State, best: Hypotheses, status: Status) -> Outcome:
    clock = run.clock
    if not clock.history:
        # Ended before its first step: by Ctrl-C, or by a budget of seconds spent on the start.
        clock.note(state, best)
        clock.show()
    return Outcome(
        best,
        state.hypotheses,
        tuple(clock.history),
        status,
        clock.seconds(),
        run.assignments,
        dict(run.splits),
    )


def _better(run: Run, best: Hypotheses, found: Hypotheses) -> Hypotheses:
    """Return the best hypothesis of each model; on a tie to rounding the earlier one stays."""
    rival = found.best()
    return best.chosen(rival, rival.objective < best.objective - run.tolerance(best.model))


def _all_equal(problem: AlignmentProblem, best: Hypotheses) -> bool:
    """Say whether the permuted sources already are the target, bit for bit."""
    if bool((best.objective > 1e-3 * problem.constant[best.model]).any()):
        return False  # far beyond rounding: no need to go through the checkpoints
    return all(
        problem.distance(problem.permutation(best, model), model) == 0
        for model in range(problem.models)
    )


@contextmanager
def compute_threads(problem: AlignmentProblem) -> Iterator[None]:
    """Use one torch thread for small problems, whose products are shorter than a thread's wake-up.

    The assignment problems of a batch are spread over threads in any case.
    """
    work = max(
        (math.prod(term.target.shape) * len(term.target) for term in problem.terms), default=0
    )
    with torch_threads.held(single=work <= 2**25):
        yield
