"""Deterministic annealing: all groups at once as doubly stochastic matrices that harden slowly."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses, concatenate
from gpu_align._search._cooling import Cooling
from gpu_align._search._descent import Descent, descend, start_descent
from gpu_align._search._relaxed import soft_starts, to_hypotheses
from gpu_align._search._search import Run, Search, State
from gpu_align._search._state import stored


@stored
@dataclass(frozen=True)
class _Wave:
    """The starts that cool at present; all of them, where they fit into memory.

    Attributes:
        slots: int64 [k] of each wave, the numbers of its starts.
        cooling: the present wave.
        rounded: what the waves before it have become.
        counter: of the random numbers of all starts.
    """

    slots: list[Tensor]
    cooling: Cooling
    rounded: tuple[Hypotheses, ...]
    counter: int


@dataclass(frozen=True)
class Annealing(Search):
    """Graduated assignment: `P <- (1 - d) P + d Sinkhorn(S / (T std S))` while T falls.

    No assignment problem is solved on the way; at the end the matrices are rounded and descend.

    Attributes:
        starts: hypotheses per model; they differ by the noise on the barycentre.
        steps: number of temperatures, from `hot` to `cold` in geometric steps.
        hot, cold: temperatures in units of the standard deviation of each similarity.
        damping: d, the share of the new matrix in each step.
        noise: standard deviation of the logits of the start.
        iterations: Sinkhorn iterations per step.

    Source: Gold & Rangarajan, "A graduated assignment algorithm for graph matching" (1996).
    """

    starts: int = 4
    steps: int = 60
    hot: float = 0.5
    cold: float = 0.1
    damping: float = 0.5
    noise: float = 1.0
    iterations: int = 10
    name: ClassVar[str] = "Annealing"

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 2 or self.iterations < 1:
            raise InputError(
                "expected at least 1 start, 2 steps and 1 iteration, got "
                f"{self.starts}, {self.steps} and {self.iterations}"
            )
        if not self.hot >= self.cold > 0 or not 0 < self.damping <= 1 or self.noise < 0:
            raise InputError(
                "expected hot >= cold > 0, 0 < damping <= 1 and noise >= 0, got "
                f"{self.hot}, {self.cold}, {self.damping} and {self.noise}"
            )

    def init(self, run: Run, start: Hypotheses | None) -> State:
        """See `Search.init`; hypotheses to begin from only join the result."""
        hypotheses = run.problem.identity() if start is None else start
        waves, counter = list(run.waves(self.starts)), run.random.counter
        wave = _Wave(waves, self._heated(run, waves[0], counter), (), counter)
        return State(self.name, hypotheses, wave, expected=self.steps * len(waves) + 6)

    def _heated(self, run: Run, slots: Tensor, counter: int) -> Cooling:
        """Return some of the starts; all waves draw as if they were one, at the same counter."""
        run.random.counter = counter
        soft = soft_starts(run, slots, self.noise, exact_first=False)
        return Cooling(soft, run.problem.model_index(len(slots)), self.damping, self.iterations)

    def step(self, run: Run, state: State) -> State:
        """Cool by one step; after the last one, round and descend sweep by sweep."""
        if isinstance(state.memory, Descent):
            return descend(run, state, "random")
        wave = state.memory
        assert isinstance(wave, _Wave)
        number = (state.sweep - 1) % self.steps
        temperature = self.hot * (self.cold / self.hot) ** (number / (self.steps - 1))
        # It moves in place: where a step was interrupted after it, it has been done.
        if wave.cooling.done == number:
            wave.cooling.step(run, temperature)
        if number < self.steps - 1:
            return state
        rounded = (*wave.rounded, to_hypotheses(run, wave.cooling.soft, wave.cooling.model))
        if len(rounded) < len(wave.slots):
            cooling = self._heated(run, wave.slots[len(rounded)], wave.counter)
            return replace(state, memory=replace(wave, cooling=cooling, rounded=rounded))
        hypotheses = concatenate(rounded)
        return replace(state, hypotheses=hypotheses, memory=start_descent(run, hypotheses))
