"""A search between two steps: what is shown of it, what it may spend, what is stored."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any, Generic, TypeVar

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses
from gpu_align._status import Status

T = TypeVar("T", bound=type)
M = TypeVar("M")
"""Memory of a search."""

STORED: list[type] = [Hypotheses, Status]
"""Classes whose objects a file of a search may hold; no other code is loaded from it."""


def stored(kind: T) -> T:
    """Mark a class as one that `State.memory` may hold, so that its search can be resumed.

    Its objects are made from their attributes: tensors, numbers, strings, None, containers of
    these, and objects of marked classes.
    """
    STORED.append(kind)
    return kind


@dataclass(frozen=True, init=False)
class Budget:
    """What a search may spend; None is no limit beyond the search's own end.

    A budget of steps is deterministic for a seed, one of seconds is not. What was spent before a
    search was interrupted and resumed counts.

    Attributes:
        steps: number of steps of the search.
        seconds: wall-clock time, looked at after every step and within long ones.
    """

    steps: int | None = None
    seconds: float | None = None

    def __init__(
        self, steps: int | None = None, seconds: float | None = None, *, sweeps: int | None = None
    ) -> None:
        """Take the limits; `sweeps` is the deprecated name of `steps`."""
        if sweeps is not None:
            _warn_of_sweeps("Budget(sweeps=...)", "Budget(steps=...)")
            steps = sweeps
        for name, value in (("steps", steps), ("seconds", seconds)):
            is_number = isinstance(value, Real) and 0 < value < math.inf
            if value is not None and not is_number:
                raise InputError(f"expected a finite budget of {name} above 0, got {value!r}")
            object.__setattr__(self, name, value)

    @property
    def sweeps(self) -> int | None:
        """Deprecated name of `steps`."""
        _warn_of_sweeps("Budget.sweeps", "Budget.steps")
        return self.steps


@stored
@dataclass(frozen=True)
class Progress:
    """Where a search stands after a step, or within a long one.

    Attributes:
        stage: name of the search or of its present stage.
        step: number of steps done.
        steps: number of steps expected in all, None if unknown.
        best_distance: smallest distance found so far (the mean over models if there are several),
            less twice the evidence where there is some.
        seconds: time spent.
        seconds_left: estimate of the time left, None if unknown.
        part: what has been done of the next step, such as "move 3 of 8"; empty after a step.
        loss: of a search that judges by a task loss: that of the answer so far (the mean over
            models), whose distance `best_distance` then is.
    """

    stage: str
    step: int
    steps: int | None
    best_distance: float
    seconds: float
    seconds_left: float | None
    part: str = ""
    loss: float | None = None

    @property
    def sweep(self) -> int:
        """Deprecated name of `step`."""
        _warn_of_sweeps("Progress.sweep", "Progress.step")
        return self.step

    @property
    def sweeps(self) -> int | None:
        """Deprecated name of `steps`."""
        _warn_of_sweeps("Progress.sweeps", "Progress.steps")
        return self.steps

    def to_json(self) -> dict[str, Any]:
        """Return plain values by the names that files have, where a step is called a sweep."""
        known = {name: v for name, v in asdict(self).items() if name != "loss" or v is not None}
        return {_IN_FILES.get(name, name): value for name, value in known.items()}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Progress":
        """Make a Progress of what `to_json` returns; TypeError for other names."""
        names = {name: own for own, name in _IN_FILES.items()}
        return cls(**{names.get(name, name): value for name, value in entry.items()})


_IN_FILES = {"step": "sweep", "steps": "sweeps"}

ProgressCallback = Callable[[Progress], None]


def _warn_of_sweeps(old: str, new: str) -> None:
    message = f"{old} is deprecated: use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


@stored
@dataclass(frozen=True)
class State(Generic[M]):
    """A search between two steps.

    Attributes:
        stage: what is being done, for the progress display.
        hypotheses: complete hypotheses that exist by now; the best one is the answer so far.
        memory: what the search keeps for its own use.
        step: number of steps done; the loop counts them.
        expected: number of steps expected in all, None if unknown.
        finished: set when the search has ended by itself.
        losses: of a search that judges by something else than the distance: the loss of each of
            its hypotheses, one for each model, which are then its answer as they are.
    """

    stage: str
    hypotheses: Hypotheses
    memory: M
    step: int = 0
    expected: int | None = None
    finished: Status | None = None
    losses: tuple[float, ...] | None = None


@stored
@dataclass(frozen=True)
class Snapshot:
    """All that a run has between two steps: from it, the run goes on as if never interrupted.

    Attributes:
        state: of the search.
        best: the best hypothesis of each model so far.
        counter: of the random numbers; with the seed it is their whole state.
        assignments: number of assignment problems given to the solver so far.
        splits: what did not fit into memory at once -> in what parts it was computed.
        history: the progress after every step.
        seconds: time spent.
    """

    state: State
    best: Hypotheses
    counter: int
    assignments: int
    splits: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Progress, ...] = ()
    seconds: float = 0.0
