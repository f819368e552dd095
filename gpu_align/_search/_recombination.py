"""Recombination: anneal from the mean of two good permutations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses, concatenate, joined, to_matrix
from gpu_align._search._annealing_step import AnnealingState, AnnealingStep
from gpu_align._search._descent import Descent, draw_order, start_descent, sweep
from gpu_align._search._executor import Heartbeat
from gpu_align._search._relaxation import Waves
from gpu_align._search._relaxed import random_soft, to_hypotheses
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State, stored
from gpu_align._status import Status


@stored
@dataclass(frozen=True)
class _Population:
    """The population, and its children on their way down; None before they are born.

    Generation 0 is the descent of random adults, which are then their own children.
    """

    adults: Hypotheses
    children: Descent | None
    generation: int


@dataclass(frozen=True)
class Recombination(Search[_Population]):
    """Breed a population: a child is annealed from the mean of the matrices of two parents.

    Where both parents agree the mean is already a permutation matrix, so a short annealing at a
    low temperature decides only what they disagree on. The best distinct of adults and children
    of each model make the next population.

    Attributes:
        population: hypotheses per model that are kept.
        children: born per model and generation.
        generations: number of generations.
        steps, hot, cold, damping, iterations: the short annealing, see `Annealing`.
        noise: share of a random doubly stochastic matrix in a child's start.

    Source: path relinking and memetic search for quadratic assignment (Merz & Freisleben 2000),
    with deterministic annealing in the place of the local search between the parents.
    """

    population: int = 16
    children: int = 16
    generations: int = 6
    steps: int = 15
    hot: float = 0.15
    cold: float = 0.1
    damping: float = 0.5
    noise: float = 0.1
    iterations: int = 10
    name: ClassVar[str] = "Recombination"

    def __post_init__(self) -> None:
        for name in ("population", "children", "generations", "iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.steps < 2 or not self.hot >= self.cold > 0 or not 0 <= self.noise < 1:
            raise InputError(
                "expected at least 2 steps, hot >= cold > 0 and 0 <= noise < 1, got "
                f"{self.steps}, {self.hot}, {self.cold} and {self.noise}"
            )

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        return self.population + self.children

    def init(self, run: Run, start: Hypotheses | None) -> State[_Population]:
        """See `Search.init`; without hypotheses to begin from, random ones descend first."""
        if start is None:
            start = run.problem.random(self.population, run.random)
            population = _Population(start, start_descent(run, start), 0)
        else:
            population = _Population(start, None, 1)
        return State(self.name, start, population)

    def step(self, run: Run, state: State[_Population]) -> State[_Population]:
        """Breed the children of one generation, or do one sweep of their descent."""
        population = state.memory
        if population.children is None:
            children = start_descent(run, self._breed(run, population.adults))
            return replace(state, memory=replace(population, children=children))
        descent = population.children
        descent = sweep(run, descent, draw_order(run, descent.hypotheses.each, "random"))
        if not descent.converged:
            return replace(state, memory=replace(population, children=descent))
        everyone = concatenate([population.adults, descent.hypotheses])
        adults = everyone.best(min(self.population, everyone.each))
        generation = population.generation + 1
        return replace(
            state,
            hypotheses=adults,
            memory=_Population(adults, None, generation),
            finished=Status.COMPLETED if generation > self.generations else None,
        )

    def _breed(self, run: Run, adults: Hypotheses) -> Hypotheses:
        parents = self._draw_parents(run, adults)
        waves = Waves.of(run, self.children)
        models = torch.arange(run.problem.models, device=run.problem.device)[:, None]
        while waves.owners:
            owners = waves.next_owners(run)
            index = (models * self.children + owners).flatten()
            waves = waves.after(self._annealed(run, adults, [p[index] for p in parents], owners))
        return waves.hypotheses()

    def _annealed(
        self, run: Run, adults: Hypotheses, parents: Sequence[Tensor], owners: Tensor
    ) -> Hypotheses:
        """Return the children of these parents, int64 [m * k] each; owners are int64 [k]."""
        model = run.problem.model_index(len(owners))
        spread = torch.ones(len(owners), dtype=run.problem.dtype, device=owners.device)
        noise: dict[str, Tensor] = {}
        for done, family in enumerate(run.problem.families.values()):
            run.heartbeat(f"pairing group {done + 1} of {len(run.problem.families)}")
            for variable, drawn in random_soft(run, family, spread, owners).items():
                noise[variable] = self.noise * drawn
        number = torch.arange(len(owners), device=owners.device).repeat(run.problem.models)

        def born(part: slice, heartbeat: Heartbeat) -> Hypotheses:
            soft = {m: drawn.index_select(0, number[part]) for m, drawn in noise.items()}
            for variable, matrix in soft.items():
                for parent in parents:
                    perm = adults.perms[variable][parent[part]]
                    matrix += (1 - self.noise) / 2 * to_matrix(perm, matrix.dtype)
            self._anneal(run, AnnealingState(soft, model[part]), heartbeat)
            return to_hypotheses(run, soft, model[part])

        children = joined(run.executor.in_parts(len(model), born, run.heartbeat))
        return replace(children, lineage=adults.lineage[parents[0]])

    def _anneal(self, run: Run, state: AnnealingState, heartbeat: Heartbeat) -> None:
        """Harden matrices in place."""
        annealing = AnnealingStep(run, state, self.damping, self.iterations)
        for step in range(self.steps):
            temperature = self.hot * (self.cold / self.hot) ** (step / (self.steps - 1))
            text = f"breeding, step {step + 1} of {self.steps}, "
            annealing.take(temperature, partial(_tell, heartbeat, text))

    def _draw_parents(self, run: Run, adults: Hypotheses) -> tuple[Tensor, Tensor]:
        """Draw two different adults of the same model for each child, int64 [m * children]."""
        born = torch.arange(self.children, device=run.problem.device)
        draw = run.random.permutation(born, adults.each)
        first = torch.arange(run.problem.models, device=born.device)[:, None] * adults.each
        mother, father = draw[:, 0], draw[:, min(1, adults.each - 1)]
        return (first + mother).flatten(), (first + father).flatten()


def _tell(heartbeat: Heartbeat, of: str, part: str) -> None:
    heartbeat(of + part)
