"""The default: several searches one after another, then refinements of all they found."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import AlignmentProblem, Family, Hypotheses, concatenate
from gpu_align._search._annealing import Annealing
from gpu_align._search._beam import BeamDescent
from gpu_align._search._descent import CoordinateDescent
from gpu_align._search._layerwise import LayerwiseBeam
from gpu_align._search._recombination import Recombination
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State, stored

_SCOUTS = 4  # annealed starts that may already agree
_SOFT_ELEMENTS = 2**27  # doubly stochastic matrices kept at once: 512 MiB in float32
_ANNEALING_WORK = 6e10  # multiply-adds of the annealed starts: seconds on two cores
_REFINEMENT_WORK = 4e10  # sum of n^3 over the assignments of the refinement: seconds to minutes


@stored
@dataclass(frozen=True)
class _Stage:
    """The stage that runs, its state, and what the stages before it have found.

    Attributes:
        number: of the stage.
        inner: its state.
        pool: what was found before it.
        settled: bool [m], models whose search has ended by consensus; they keep the best of the
            pool, whatever the stages that run for the others find.
        models: int64 [k] on the host, those that the stage is about; None for all.
    """

    number: int
    inner: State
    pool: Hypotheses
    settled: Tensor
    models: Tensor | None = None


@dataclass(frozen=True)
class Portfolio(Search[_Stage]):
    """Run `searches` one after another, then each refinement from the best of all found so far.

    It ends early on a consensus: all hypotheses of a search that draws several are one and the
    same, and it is the best of another search too.

    A hypothesis carries the number of the search it descends from in `lineage`; `describe` puts it
    into words.

    Attributes:
        searches: each begins anew.
        refinements: each begins from the pool of all that was found before it.
        width: hypotheses per model that the pool keeps.
        drops_settled: whether models whose search has ended are left out of the stages that run for
            others, which then draw other random numbers.
    """

    searches: tuple[Search, ...] = (
        LayerwiseBeam(lookahead=True),
        CoordinateDescent(),
        Annealing(starts=_SCOUTS),
        Annealing(starts=16 - _SCOUTS),
    )
    refinements: tuple[Search, ...] = (Recombination(), BeamDescent())
    width: int = 16
    drops_settled: bool = False
    name: ClassVar[str] = "Portfolio"

    def __post_init__(self) -> None:
        if not self.searches or self.width < 1:
            raise InputError("a portfolio needs at least one search and a width of at least 1")

    @classmethod
    def for_problem(
        cls, problem: AlignmentProblem, *, patient: bool = False, drops_settled: bool = False
    ) -> "Portfolio":
        """Return the default portfolio, with fewer starts and rounds where units are many.

        Args:
            problem: what is to be solved.
            patient: leave the end of the refinement to the caller's budget.
            drops_settled: see there.
        """
        starts = _annealed_starts(problem)
        population = min(starts, 32)
        generations = 6 if starts > 8 else 3
        breeding = Recombination(population, population, generations)
        beam = BeamDescent()
        work = sum(_assignment_work(family) for family in problem.families.values())
        work *= beam.width * beam.expansions
        rounds = int(_REFINEMENT_WORK / max(work, 1))
        beam = replace(beam, rounds=min(max(rounds, 2), beam.rounds))
        if patient:
            beam = BeamDescent(patience=10**6, rounds=10**6)
        annealings = [Annealing(min(starts, _SCOUTS))]
        if starts > _SCOUTS:
            annealings.append(Annealing(starts - _SCOUTS))
        searches: tuple[Search, ...]
        searches = (LayerwiseBeam(lookahead=True), CoordinateDescent(), *annealings)
        refinements = (breeding, beam)
        return cls(searches, refinements, breeding.population, drops_settled)

    def describe(self, lineage: int) -> str:
        """Say which search a hypothesis with this mark comes from."""
        if lineage == 0:
            return "Identity"
        return self.searches[lineage - 1].name

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        stages = (*self.searches, *self.refinements)
        return self.width + max(stage.hypotheses_per_model for stage in stages)

    def init(self, run: Run, start: Hypotheses | None) -> State[_Stage]:
        """See `Search.init`; hypotheses to begin from join the pool."""
        first = (run.problem.identity() if start is None else start).marked(0)
        inner = self.searches[0].init(run, None)
        settled = torch.zeros(run.problem.models, dtype=torch.bool, device=run.problem.device)
        return State(inner.stage, first, _Stage(0, inner, first, settled))

    def step(self, run: Run, state: State[_Stage]) -> State[_Stage]:
        """Do one step of the present stage, and begin the next one where it ends."""
        stage = state.memory
        stages = (*self.searches, *self.refinements)
        with run.about(stage.models) as inside:
            inner = stages[stage.number].step(inside, stage.inner)
        hypotheses = inner.hypotheses
        if stage.number < len(self.searches):
            hypotheses = hypotheses.marked(stage.number + 1)
        if stage.models is not None:
            others = stage.pool.best().first(hypotheses.each)
            hypotheses = others.with_models(stage.models, hypotheses)
        elif run.problem.models > 1:
            best = stage.pool.best().first(hypotheses.each)
            hypotheses = best.chosen(hypotheses, ~stage.settled[hypotheses.model])
        state = replace(state, stage=inner.stage, hypotheses=hypotheses)
        if inner.finished is None:
            return replace(state, memory=replace(stage, inner=inner))
        settled = stage.settled | _agree(run, stage.pool, hypotheses)
        if stage.number + 1 == len(stages) or bool(settled.all()):
            return replace(state, finished=inner.finished)
        models = stage.models
        if self.drops_settled and bool(settled.any()):
            models = (~settled).nonzero()[:, 0].cpu()
        stage = replace(stage, settled=settled, models=models)
        return replace(state, memory=self._next_stage(run, stage, hypotheses))

    def _next_stage(self, run: Run, stage: _Stage, hypotheses: Hypotheses) -> _Stage:
        joined = concatenate([stage.pool, hypotheses])
        pool = joined.best(min(self.width, joined.each))
        number = stage.number + 1
        with run.about(stage.models) as inside:
            if number < len(self.searches):
                inner = self.searches[number].init(inside, None)
            else:
                refinement = self.refinements[number - len(self.searches)]
                start = pool if stage.models is None else pool.of_models(stage.models)
                inner = refinement.init(inside, start)
        return replace(stage, number=number, inner=inner, pool=pool)


def _assignment_work(family: Family) -> int:
    """Return n^3 of the root's assignment, and of each child's inside every pair of root units."""
    pairs = family.root.size**2
    return family.root.size**3 + sum(pairs * child.size**3 for child in family.children)


def _agree(run: Run, pool: Hypotheses, hypotheses: Hypotheses) -> Tensor:
    """Say of which models there are several hypotheses, all equal to the pool's best; bool [m]."""
    best = pool.best()
    beaten = hypotheses.objective < (best.objective - run.tolerance(best.model))[hypotheses.model]
    same = hypotheses.fingerprint() == best.fingerprint()[hypotheses.model]
    agreed = (same & ~beaten).reshape(hypotheses.models, -1).all(1)
    return agreed if hypotheses.each > 1 else torch.zeros_like(agreed)


def _annealed_starts(problem: AlignmentProblem) -> int:
    """Return how many annealed starts of a model fit into work and memory: 48 for small nets."""
    entries = sum(n**2 for n in problem.sizes.values())
    products = sum(
        2 * term.target.numel() * sum(problem.sizes[m] for m in term.variables)
        for term in problem.terms
    )
    work = Annealing.steps * (products + 40 * entries)
    by_work, by_memory = _ANNEALING_WORK / max(work, 1), _SOFT_ELEMENTS / max(entries, 1)
    return int(min(48, max(4, by_work), max(1, by_memory)))
