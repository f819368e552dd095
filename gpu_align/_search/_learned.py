"""Learned: the assignment of learned scores, and what another search makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import AlignmentProblem, Hypotheses, concatenate
from gpu_align._search._relaxed import soften
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State
from gpu_align._status import Status

_TEMPERATURE = 0.2
"""Of a look, in standard deviations of each group's similarities: nearly sure of most units."""

_ITERATIONS = 20


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
    """Assign every family of units by learned scores; another search may go on from there.

    The scores look at each network alone. A look at the pair sharpens them: as doubly stochastic
    matrices they say where all units are about, and the similarities of the weights there are
    assigned, all groups at once. The better of both answers is kept.

    Attributes:
        aligner: makes the scores; see `gpu_align.learn.Aligner`.
        then: a search that begins from what was found; None ends there.
        looks: at the pair, each from the similarities of the last one. Each takes as many products
            as a sweep of descent, at once. Evidence counts in them, not in the scores.

    Source: Navon et al., Equivariant deep weight space alignment (ICML 2024), section 4, for the
    scores; a look is a step of mean-field annealing (Gold & Rangarajan 1996).
    """

    aligner: Scorer
    then: Search | None = None
    looks: int = 1
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
        if self.looks < 0:
            raise InputError(f"expected looks of at least 0, got {self.looks}")

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        own = 1 + self.looks
        return own if self.then is None else max(own, self.then.hypotheses_per_model)

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
            found = found.best()
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
        """Return the best assignments of each model's scores and of each look's similarities."""
        problem, parts = run.problem, []
        similarity: Mapping[str, Tensor] = self.aligner.scores(problem)
        model = problem.model_index(1)
        for look in range(self.looks + 1):
            if look:
                run.heartbeat(f"look {look} of {self.looks}")
                similarity = problem.soft_similarity(_softened(run, similarity), model)
            perms: dict[str, Tensor] = {}
            for family in problem.families.values():
                perms |= family.assign({v: similarity[v] for v in family.variables}, run.match)
            parts.append(problem.hypotheses(perms, model))
        return concatenate(parts)


def _softened(run: Run, similarity: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return doubly stochastic matrices of similarities, variable -> [m, n, n]."""
    temperature = torch.full((), _TEMPERATURE, dtype=run.problem.dtype, device=run.problem.device)
    soft: dict[str, Tensor] = {}
    for family in run.problem.families.values():
        own = {variable: similarity[variable] for variable in family.variables}
        soft |= soften(family, own, temperature, _ITERATIONS)
    return soft
