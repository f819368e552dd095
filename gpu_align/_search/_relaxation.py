"""Searches in doubly stochastic matrices: wave after wave of starts, rounding, descent."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from gpu_align._problem import Hypotheses, concatenate
from gpu_align._search._descent import Descent, draw_order, start_descent, sweep
from gpu_align._search._relaxed import to_hypotheses
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State, stored


@stored
@dataclass(frozen=True)
class Waves:
    """Hypotheses of each model, in waves that fit into memory; all draw as if they were one.

    Attributes:
        owners: int64 [k] of each wave to come, whose random numbers its hypotheses get.
        counter: of the random numbers of all waves.
        rounded: what the waves before have become.
    """

    owners: tuple[Tensor, ...]
    counter: int
    rounded: tuple[Hypotheses, ...] = ()

    @staticmethod
    def of(run: Run, count: int) -> "Waves":
        """Cut `count` hypotheses per model into waves."""
        return Waves(tuple(run.waves(count)), run.random.counter)

    def next_owners(self, run: Run) -> Tensor:
        """Return the owners of the next wave, which draws at the counter of all."""
        run.random.counter = self.counter
        return self.owners[0]

    def after(self, rounded: Hypotheses) -> "Waves":
        """Return the waves after the next one has become these hypotheses."""
        return replace(self, owners=self.owners[1:], rounded=(*self.rounded, rounded))

    def hypotheses(self) -> Hypotheses:
        """Return what all waves have become."""
        return concatenate(self.rounded)


class Soft(Protocol):
    """Doubly stochastic matrices on their way."""

    @property
    def soft(self) -> dict[str, Tensor]:
        """Variable -> [b, n, n]."""

    @property
    def model(self) -> Tensor:
        """Which source each is of, int64 [b]."""


S = TypeVar("S", bound=Soft)


@stored
@dataclass(frozen=True)
class Relaxation(Generic[S]):
    """The waves of a search; after the last one, the descent of all.

    Attributes:
        waves: the present one and those to come.
        present: matrices of the present wave; None after the last one.
        taken: number of steps that the present wave has taken.
        descent: of all that was rounded; None before.
    """

    waves: Waves
    present: S | None
    taken: int = 0
    descent: Descent | None = None


class RelaxedSearch(Search[Relaxation[S]], Generic[S]):
    """A search that moves doubly stochastic matrices, rounds them at the end and descends.

    Attributes:
        starts: hypotheses per model.
    """

    starts: int

    @abstractmethod
    def begin(self, run: Run, owners: Tensor) -> S:
        """Return the matrices of a wave before their first step; int64 [k], see `Waves`."""

    @abstractmethod
    def relax(self, run: Run, present: S, taken: int) -> S:
        """Return the matrices after one more step, or the same ones moved in place.

        Those moved in place must know their steps: if they have done more than `taken`, the step
        was interrupted after it.
        """

    @abstractmethod
    def is_relaxed(self, present: S, taken: int) -> bool:
        """Say whether a wave is to be rounded after so many steps."""

    def expected_steps(self, waves: int) -> int | None:
        """Return how many steps so many waves and the descent take; None if unknown."""
        return None

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        return self.starts

    def init(self, run: Run, start: Hypotheses | None) -> State[Relaxation[S]]:
        """See `Search.init`; hypotheses to begin from only join the result."""
        hypotheses = run.problem.identity() if start is None else start
        waves = Waves.of(run, self.starts)
        expected = self.expected_steps(len(waves.owners))
        return State(self.name, hypotheses, self._next(run, waves), expected=expected)

    def step(self, run: Run, state: State[Relaxation[S]]) -> State[Relaxation[S]]:
        """Take a step of the present wave; after the last one, descend sweep by sweep."""
        memory = state.memory
        if memory.descent is not None:
            order = draw_order(run, memory.descent.hypotheses.each, "random")
            descent = sweep(run, memory.descent, order)
            memory, finished = replace(memory, descent=descent), descent.finished
            return replace(state, hypotheses=descent.hypotheses, memory=memory, finished=finished)
        assert memory.present is not None
        present, taken = self.relax(run, memory.present, memory.taken), memory.taken + 1
        if not self.is_relaxed(present, taken):
            return replace(state, memory=replace(memory, present=present, taken=taken))
        run.release()
        waves = memory.waves.after(to_hypotheses(run, present.soft, present.model))
        if waves.owners:
            return replace(state, memory=self._next(run, waves))
        hypotheses = waves.hypotheses()
        descent = start_descent(run, hypotheses)
        memory = Relaxation(replace(waves, rounded=()), None, descent=descent)
        return replace(state, hypotheses=hypotheses, memory=memory)

    def _next(self, run: Run, waves: Waves) -> Relaxation[S]:
        return Relaxation(waves, self.begin(run, waves.next_owners(run)))
