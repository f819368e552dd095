"""What a search is, and the one loop that runs it."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from gpu_align._assignment import AbstractAssignmentSolver, AssignmentProblem, AutoAssignment, solve
from gpu_align._errors import InputError
from gpu_align._problem import AlignmentProblem, Hypotheses, concatenate
from gpu_align._status import Status


@dataclass(frozen=True)
class Budget:
    """What a search may spend; None is no limit beyond the search's own end.

    A budget of sweeps is deterministic for a seed, one of seconds is not.

    Attributes:
        sweeps: number of steps of the search.
        seconds: wall-clock time, looked at after every step.
    """

    sweeps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("sweeps", self.sweeps), ("seconds", self.seconds)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"expected a finite budget of {name} above 0, got {value}")


@dataclass(frozen=True)
class Progress:
    """Where a search stands after a step.

    Attributes:
        stage: name of the search or of its present stage.
        sweep: number of steps done.
        sweeps: number of steps expected in all, None if unknown.
        best_distance: smallest distance found so far (the mean over models if there are several).
        seconds: time spent.
        seconds_left: estimate of the time left, None if unknown.
    """

    stage: str
    sweep: int
    sweeps: int | None
    best_distance: float
    seconds: float
    seconds_left: float | None


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class State:
    """A search between two steps.

    Attributes:
        stage: what is being done, for the progress display.
        hypotheses: complete hypotheses that exist by now; the best one is the answer so far.
        sweep: number of steps done.
        expected: number of steps expected in all, None if unknown.
        finished: set when the search has ended by itself.
        memory: what the search keeps for its own use.
    """

    stage: str
    hypotheses: Hypotheses
    memory: object = None
    sweep: int = 0
    expected: int | None = None
    finished: Status | None = None


class Search(ABC):
    """A way to look for a good permutation; it is stateless, all state is in a `State`."""

    name: ClassVar[str]

    @abstractmethod
    def init(self, run: "Run", start: Hypotheses | None) -> State:
        """Return the state before the first step; `start` are hypotheses to begin from."""

    @abstractmethod
    def step(self, run: "Run", state: State) -> State:
        """Return the state after one more step."""


@dataclass
class Run:
    """What a search needs while it runs.

    Attributes:
        problem: what is solved.
        generator: the one source of random numbers, seeded.
        solver: solves the assignment problems.
        assignments: number of assignment problems solved so far.
    """

    problem: AlignmentProblem
    generator: torch.Generator
    solver: AbstractAssignmentSolver = field(default_factory=AutoAssignment)
    assignments: int = 0

    def assign(self, similarity: Tensor) -> Tensor:
        """Return the best assignment of each matrix: [b, n, n] -> int64 [b, n], to be maximised."""
        self.assignments += len(similarity)
        problem = AssignmentProblem(similarity, maximize=True)
        return solve(problem, self.solver).col_ind.to(similarity.device)

    def match(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best assignments [b, n] and their values [b]."""
        columns = self.assign(similarity)
        return columns, similarity.gather(2, columns[..., None]).sum((1, 2))

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers in the problem's dtype."""
        return torch.randn(shape, generator=self.generator, dtype=self.problem.dtype)

    def tolerance(self, model: Tensor) -> Tensor:
        """Return the gain in distance below which a move is rounding noise, float64 [b]."""
        relative = 1e-7 if self.problem.dtype == torch.float32 else 1e-13
        return relative * self.problem.constant[model].abs()


def deviation(matrices: Tensor) -> Tensor:
    """Return the standard deviation of the entries of each matrix, [b, n, n] -> [b]; 0 if one."""
    entries = matrices.flatten(1)
    return entries.std(dim=1, correction=min(1, entries.shape[1] - 1))


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
    """

    best: Hypotheses
    hypotheses: Hypotheses
    history: tuple[Progress, ...]
    status: Status
    seconds: float
    assignments: int


def run_search(
    search: Search,
    problem: AlignmentProblem,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    solver: AbstractAssignmentSolver | None = None,
    progress: ProgressCallback | None = None,
    start: Hypotheses | None = None,
) -> Outcome:
    """Run a search to its end or to the end of its budget.

    Ctrl-C ends it with the best found so far and the status INTERRUPTED.

    Args:
        search: what to run.
        problem: what to solve.
        seed: of all random numbers; the result is deterministic for a seed unless the budget of
            seconds ends the search.
        budget: limits.
        solver: of the assignment problems, default `AutoAssignment`.
        progress: called after every step.
        start: hypotheses to begin from, instead of the search's own.
    """
    run = Run(problem, torch.Generator().manual_seed(seed), solver or AutoAssignment())
    clock = _Clock(budget or Budget(), progress)
    best = problem.identity() if start is None else start.best()
    if not problem.groups or (not problem.evidence and _all_equal(problem, best)):
        clock.note(State(search.name, best), best)
        return clock.outcome(run, best, best, Status.TRIVIAL)
    state = State(search.name, best)
    status: Status | None = None
    try:
        with compute_threads(problem):
            state = search.init(run, start)
            while (status := state.finished or clock.spent(state)) is None:
                state = search.step(run, replace(state, sweep=state.sweep + 1))
                best = _better(run, best, state.hypotheses)
                clock.note(state, best)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    best = _better(run, best, state.hypotheses)
    if not clock.history:
        # Ended before its first step: by Ctrl-C, or by a budget of seconds spent on the start.
        clock.note(state, best)
    return clock.outcome(run, best, state.hypotheses, status)


def _better(run: Run, best: Hypotheses, found: Hypotheses) -> Hypotheses:
    """Return the best hypothesis of each model; on a tie to rounding the earlier one stays."""
    rival = found.best()
    wins = rival.objective < best.objective - run.tolerance(best.model)
    index = torch.arange(len(best)) + len(best) * wins
    return concatenate([best, rival]).select(index)


def _all_equal(problem: AlignmentProblem, best: Hypotheses) -> bool:
    """Say whether the permuted sources already are the target, bit for bit."""
    return all(
        problem.distance(problem.permutation(best, index), int(model)) == 0
        for index, model in enumerate(best.model)
    )


@contextmanager
def compute_threads(problem: AlignmentProblem) -> Iterator[None]:
    """Use one torch thread for small problems, whose products are shorter than a thread's wake-up.

    The assignment problems of a batch are spread over threads in any case.
    """
    threads = torch.get_num_threads()
    work = max(
        (math.prod(term.target.shape) * len(term.target) for term in problem.terms), default=0
    )
    torch.set_num_threads(threads if work > 2**25 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Clock:
    """Keeps the history and the budget of one run."""

    def __init__(self, budget: Budget, progress: ProgressCallback | None) -> None:
        self.budget, self.progress = budget, progress
        self.started = time.perf_counter()
        self.history: list[Progress] = []

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def spent(self, state: State) -> Status | None:
        if self.budget.sweeps is not None and state.sweep >= self.budget.sweeps:
            return Status.SWEEP_BUDGET
        if self.budget.seconds is not None and self.seconds() >= self.budget.seconds:
            return Status.TIME_BUDGET
        return None

    def note(self, state: State, best: Hypotheses) -> None:
        entry = Progress(
            stage=state.stage,
            sweep=state.sweep,
            sweeps=state.expected,
            best_distance=float(best.objective.mean()),
            seconds=self.seconds(),
            seconds_left=self._left(state),
        )
        self.history.append(entry)
        if self.progress is not None:
            self.progress(entry)

    def _left(self, state: State) -> float | None:
        guesses = []
        if self.budget.seconds is not None:
            guesses.append(self.budget.seconds - self.seconds())
        if state.expected is not None and state.sweep:
            expected = min(state.expected, self.budget.sweeps or state.expected)
            guesses.append(self.seconds() / state.sweep * (expected - state.sweep))
        return max(min(guesses), 0.0) if guesses else None

    def outcome(
        self, run: Run, best: Hypotheses, hypotheses: Hypotheses, status: Status
    ) -> Outcome:
        return Outcome(
            best, hypotheses, tuple(self.history), status, self.seconds(), run.assignments
        )
