"""A search between two steps: what is shown of it, what it may spend, what is stored."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses
from gpu_align._status import Status

T = TypeVar("T", bound=type)

STORED: list[type] = [Hypotheses, Status]
"""Classes whose objects a file of a search may hold; no other code is loaded from it."""


def stored(kind: T) -> T:
    """Mark a class as one that `State.memory` may hold, so that its search can be resumed.

    Its objects are made from their attributes (`__getstate__` may leave out what can be made
    anew): tensors, numbers, strings, None, containers of these, and objects of marked classes.
    """
    STORED.append(kind)
    return kind


@dataclass(frozen=True)
class Budget:
    """What a search may spend; None is no limit beyond the search's own end.

    A budget of sweeps is deterministic for a seed, one of seconds is not. What was spent before a
    search was interrupted and resumed counts.

    Attributes:
        sweeps: number of steps of the search.
        seconds: wall-clock time, looked at after every step and within long ones.
    """

    sweeps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("sweeps", self.sweeps), ("seconds", self.seconds)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"expected a finite budget of {name} above 0, got {value}")


@stored
@dataclass(frozen=True)
class Progress:
    """Where a search stands after a step, or within a long one.

    Attributes:
        stage: name of the search or of its present stage.
        sweep: number of steps done.
        sweeps: number of steps expected in all, None if unknown.
        best_distance: smallest distance found so far (the mean over models if there are several).
        seconds: time spent.
        seconds_left: estimate of the time left, None if unknown.
        part: what has been done of the next step, such as "move 3 of 8"; empty after a step.
    """

    stage: str
    sweep: int
    sweeps: int | None
    best_distance: float
    seconds: float
    seconds_left: float | None
    part: str = ""


ProgressCallback = Callable[[Progress], None]


@stored
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
