"""The one loop that runs every search."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from gpu_align._assignment import AbstractAssignmentSolver, AutoAssignment
from gpu_align._device import RandomStream
from gpu_align._problem import AlignmentProblem, Hypotheses
from gpu_align._process import full_precision, torch_threads
from gpu_align._search._clock import Clock, OutOfTime
from gpu_align._search._run import Run
from gpu_align._search._scale import rounding
from gpu_align._search._search import Search
from gpu_align._search._state import Budget, Progress, ProgressCallback, Snapshot, State
from gpu_align._search._store import SearchStore
from gpu_align._status import Status


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
    clock = Clock(budget, progress, unit=problem.unit)
    run = Run(problem, RandomStream(seed), solver or AutoAssignment(), clock=clock)
    return run_to_end(run, search, start, store)


def run_to_end(
    run: Run, search: Search, start: Hypotheses | None = None, store: SearchStore | None = None
) -> Outcome:
    """Do what `run_search` does with a run at its beginning."""
    problem = run.problem
    settings = {"the search": search, "the solver": run.solver, "the seed": run.random.seed}
    snapshot = None if store is None else store.begin(problem, settings, start)
    if snapshot is None:
        best = _Best(run, problem.identity() if start is None else start.best())
        state = State(search.name, best.hypotheses, None)
        run.clock.begin(state, best.distance)
        if not problem.order or (not problem.evidence and best.is_target()):
            return _outcome(run, state, best, Status.TRIVIAL)
    else:
        state, best = _resumed(run, snapshot)
    with compute_threads(problem):
        return _loop(run, search, start, state, best, store, is_new=snapshot is None)


def _loop(
    run: Run,
    search: Search,
    start: Hypotheses | None,
    state: State,
    best: "_Best",
    store: SearchStore | None,
    *,
    is_new: bool,
) -> Outcome:
    """Do step after step; `is_new` says that `state` is the one before `Search.init`."""
    clock, known, status = run.clock, None, None
    try:
        if is_new:
            state = search.init(run, start)
            _keep(run, store, state, best)
        while (status := state.finished or clock.spent(state)) is None:
            state = replace(_next(run, search, state, store), step=state.step + 1)
            if state.hypotheses is not known:
                best.take(state)
                known = state.hypotheses
            clock.note(state, best.distance)
            _keep(run, store, state, best)
            clock.show()
    except OutOfTime:
        status = Status.TIME_BUDGET
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
        if store is not None:
            store.flush()
    best.take(state)
    return _outcome(run, state, best, status)


def _next(run: Run, search: Search, state: State, store: SearchStore | None) -> State:
    """Do a step; memory from a file that nobody vouches for may be another search's."""
    if store is None or not store.is_unproved(state):
        return search.step(run, state)
    try:
        return search.step(run, state)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise store.unusable(
            f"its first step fails ({type(error).__name__}: {str(error)[:100]})"
        ) from error


def _keep(run: Run, store: SearchStore | None, state: State, best: "_Best") -> None:
    if store is not None:
        splits, history = dict(run.splits), tuple(run.clock.history)
        spent = (run.random.counter, run.assignments, splits, history, run.clock.seconds())
        store.note(Snapshot(state, best.hypotheses, *spent))


def _resumed(run: Run, snapshot: Snapshot) -> tuple[State, "_Best"]:
    run.random.counter, run.assignments = snapshot.counter, snapshot.assignments
    run.splits.update(snapshot.splits)
    run.clock.resume(snapshot.history, snapshot.seconds)
    best = _Best(run, snapshot.best)
    run.clock.begin(snapshot.state, best.distance)
    return snapshot.state, best


def _outcome(run: Run, state: State, best: "_Best", status: Status) -> Outcome:
    clock = run.clock
    if not clock.history:
        # Ended before its first step: by Ctrl-C, or by a budget of seconds spent on the start.
        clock.note(state, best.distance)
        clock.show()
    return Outcome(
        best.hypotheses,
        state.hypotheses,
        tuple(clock.history),
        status,
        clock.seconds(),
        run.assignments,
        dict(run.splits),
    )


class _Best:
    """The best hypothesis of each model so far.

    It is decided on the host, which knows the objectives after a look at the device.

    Attributes:
        hypotheses: one of each model, models in order.
        objective: theirs, float64 [m] on the host.
    """

    def __init__(self, run: Run, hypotheses: Hypotheses) -> None:
        self.run, self.hypotheses = run, hypotheses
        self.objective, magnitude = run.executor.read(hypotheses.objective, run.problem.magnitude)
        self._magnitude, self._tolerance = magnitude, rounding(run.problem) * magnitude

    @property
    def distance(self) -> float:
        """The mean over the models."""
        return float(self.objective.mean())

    def take(self, state: State) -> None:
        """Look at the hypotheses of a state; on a tie to rounding the earlier ones stay."""
        objective = self.run.executor.objective(state.hypotheses)
        if state.losses is not None:
            self.hypotheses, self.objective = state.hypotheses, objective
            return
        rival = objective.reshape(len(self.objective), -1).amin(1)
        wins = rival < self.objective - self._tolerance
        if not wins.any():
            return
        found = state.hypotheses.best()
        if not wins.all():
            found = self.hypotheses.chosen(found, self.run.executor.upload(wins))
        self.hypotheses, self.objective = found, torch.where(wins, rival, self.objective)

    def is_target(self) -> bool:
        """Say whether the permuted sources already are the target, bit for bit."""
        if bool((self.objective > 1e-3 * self._magnitude).any()):
            return False  # far beyond rounding: no need to go through the checkpoints
        problem = self.run.problem
        return all(
            problem.is_target(problem.permutation(self.hypotheses, model), model)
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
    with torch_threads.held(single=work <= 2**25), full_precision():
        yield
