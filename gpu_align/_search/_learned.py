"""Learned: the assignment of learned scores, and what another search makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import AlignmentProblem, Hypotheses
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State
from gpu_align._status import Status


class Scorer(Protocol):
    """What knows which units are alike, such as an `Aligner`; its `repr` tells it from others."""

    def scores(self, problem: AlignmentProblem) -> Mapping[str, Tensor]:
        """Return variable -> [m, n, n], how much units of each source are like the target's.

        Args:
            problem: whose weights are looked at, on its device. No values are looked at.

        Raises:
            InputError: it knows nothing of such networks.
        """


@dataclass(frozen=True)
class Learned(Search[State | None]):
    """Assign every family of units once, by learned scores; another search may go on from there.

    One look at the weights and one assignment of each group, whatever the order in which the units
    come. Evidence counts for the search that goes on only.

    Attributes:
        aligner: makes the scores; see `gpu_align.learn.Aligner`.
        then: a search that begins from what was found; None ends there.

    Source: Navon et al., Equivariant deep weight space alignment (ICML 2024), section 4.
    """

    aligner: Scorer
    then: Search | None = None
    name: ClassVar[str] = "Learned"

    def __post_init__(self) -> None:
        if not callable(getattr(self.aligner, "scores", None)):
            raise InputError(
                f"expected an aligner, got {type(self.aligner).__name__}; read one by "
                "gpu_align.learn.Aligner.load(path)"
            )
        if not (self.then is None or isinstance(self.then, Search)):
            raise InputError(
                f"expected a search or None, got then={self.then!r}; pass an object such as "
                "CoordinateDescent()"
            )

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        return 1 if self.then is None else self.then.hypotheses_per_model

    def init(self, run: Run, start: Hypotheses | None) -> State[State | None]:
        """See `Search.init`; hypotheses to begin from only join the result."""
        hypotheses = run.problem.identity() if start is None else start
        return State(self.name, hypotheses, None, expected=None if self.then else 1)

    def step(self, run: Run, state: State[State | None]) -> State[State | None]:
        """Assign the scores, or do a step of the search that goes on."""
        if state.memory is None:
            found = self._assigned(run)
            if self.then is None:
                return replace(state, hypotheses=found, finished=Status.COMPLETED)
            return replace(state, hypotheses=found, memory=self.then.init(run, found))
        assert self.then is not None
        inner = self.then.step(run, state.memory)
        return replace(
            state,
            stage=inner.stage,
            hypotheses=inner.hypotheses,
            memory=inner,
            finished=inner.finished,
            losses=inner.losses,
        )

    def _assigned(self, run: Run) -> Hypotheses:
        """Return the best assignment of each model's scores."""
        scores, perms = self.aligner.scores(run.problem), dict[str, Tensor]()
        for family in run.problem.families.values():
            perms |= family.assign({v: scores[v] for v in family.variables}, run.match)
        return run.problem.hypotheses(perms, run.problem.model_index(1))
