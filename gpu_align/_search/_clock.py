"""The time, the budget and the history of one run."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from gpu_align._search._state import Budget, Progress, ProgressCallback, State
from gpu_align._status import Status

_SILENCE = 1.0
"""Seconds of silence after which a step that still runs gives a sign of life."""


class OutOfTime(Exception):
    """The budget of seconds has been spent within a step."""


class Clock:
    """Keeps the history and the budget of one run, and shows where it stands.

    Attributes:
        budget: limits.
        history: the progress after every step.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        progress: ProgressCallback | None = None,
        *,
        unit: float = 1.0,
        silence: float = _SILENCE,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start.

        Args:
            budget: limits; default none.
            progress: called after every step, and within long ones.
            unit: of the problem, by which distances are multiplied to be shown.
            silence: seconds after which a step that still runs gives a sign of life.
            now: returns the time in seconds.
        """
        self._unit, self._silence, self._now = unit, silence, now
        self.budget, self.history = budget or Budget(), list[Progress]()
        self._progress = progress
        self._started = self._shown = self._now()
        self._state: State | None = None
        self._distance = math.nan

    def resume(self, history: Sequence[Progress], seconds: float) -> None:
        """Go on from where another run has ended."""
        self.history = list(history)
        self._started -= seconds

    def seconds(self) -> float:
        """Return the time spent, also before an interruption."""
        return self._now() - self._started

    def late(self) -> bool:
        """Say whether the budget of seconds is spent."""
        return self.budget.seconds is not None and self.seconds() >= self.budget.seconds

    def spent(self, state: State) -> Status | None:
        """Say which budget is spent."""
        if self.budget.steps is not None and state.step >= self.budget.steps:
            return Status.SWEEP_BUDGET
        return Status.TIME_BUDGET if self.late() else None

    def begin(self, state: State, distance: float) -> None:
        """Take a state, and the smallest distance so far, as what signs of life are about."""
        self._state, self._distance = state, self._unit * distance

    def note(self, state: State, distance: float) -> None:
        """Add a step to the history; see `begin`."""
        self.begin(state, distance)
        self.history.append(self._entry(state))

    def show(self) -> None:
        """Tell the caller of the last step."""
        if self._progress is not None:
            self._shown = self._now()
            self._progress(self.history[-1])

    def heartbeat(self, part: str) -> None:
        """Tell the caller how far a step is, if there has been silence for long."""
        if self._progress is None or self._state is None:
            return
        if self._now() - self._shown >= self._silence:
            self._shown = self._now()
            self._progress(replace(self._entry(self._state), part=part))

    def _entry(self, state: State) -> Progress:
        return Progress(
            stage=state.stage,
            step=state.step,
            steps=state.expected,
            best_distance=self._distance,
            seconds=self.seconds(),
            seconds_left=self._left(state),
            loss=None if state.losses is None else sum(state.losses) / len(state.losses),
        )

    def _left(self, state: State) -> float | None:
        guesses = []
        if self.budget.seconds is not None:
            guesses.append(self.budget.seconds - self.seconds())
        if state.expected is not None and state.step:
            expected = min(state.expected, self.budget.steps or state.expected)
            guesses.append(self.seconds() / state.step * (expected - state.step))
        return max(min(guesses), 0.0) if guesses else None
