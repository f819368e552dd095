"""One annealing step of all groups at once, in place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpu_align._interrupt import uninterrupted
from gpu_align._problem import AlignmentProblem, Family
from gpu_align._search._executor import Heartbeat
from gpu_align._search._relaxed import soften
from gpu_align._search._run import Run
from gpu_align._search._state import stored


@stored
@dataclass(eq=False)
class AnnealingState:
    """Doubly stochastic matrices that harden step by step, in place.

    Attributes:
        soft: variable -> [b, n, n].
        model: int64 [b].
        steps: number of steps done.
    """

    soft: dict[str, Tensor]
    model: Tensor
    steps: int = 0


class AnnealingStep:
    """The step of some matrices, prepared once: they stay where they are.

    With kernels, small families without children and signs take one fused step each; all other
    work is torch's. A step that is interrupted has been done as a whole, or not at all.
    """

    def __init__(self, run: Run, state: AnnealingState, damping: float, iterations: int) -> None:
        """See `Annealing` for damping and iterations."""
        goal = _Goal(run, state, damping, iterations)
        self._state, self._temperature = state, goal.temperature
        self._look, self._move = run.executor.in_place(goal.look, goal.move)

    def take(self, temperature: float, heartbeat: Heartbeat) -> None:
        """Move all groups one step towards the assignments of this temperature.

        Args:
            temperature: in units of the standard deviation of each similarity.
            heartbeat: takes signs of life.
        """
        self._temperature.fill_(temperature)
        self._look(heartbeat)
        with uninterrupted():
            self._move()
            self._state.steps += 1


class _Goal:
    """Where a step moves to.

    Attributes:
        temperature: [], in units of the standard deviation of each similarity.
    """

    def __init__(self, run: Run, state: AnnealingState, damping: float, iterations: int) -> None:
        problem = run.problem
        self._problem, self._state = problem, state
        self._in_parts, self._exchange = run.executor.in_parts, run.executor.exchange
        self._damping, self._iterations = damping, iterations
        self.temperature = torch.zeros((), dtype=problem.dtype, device=problem.device)
        self._soft = {variable: torch.empty_like(s) for variable, s in state.soft.items()}
        small = _small(problem)
        self._families = [f for f in problem.families.values() if f not in small]
        self._fused = self._launch([family.root.group for family in small]) if small else None

    def look(self, heartbeat: Heartbeat) -> None:
        """Compute where all families move to; of the small ones only their similarities."""
        self._in_parts(len(self._state.model), self._look_at, heartbeat)

    def _look_at(self, part: slice, heartbeat: Heartbeat) -> None:
        present, soft = (
            {v: s[part] for v, s in of.items()} for of in (self._state.soft, self._soft)
        )
        self._problem.soft_similarity(present, self._state.model[part], soft, heartbeat)
        for done, family in enumerate(self._families):
            heartbeat(f"group {done + 1} of {len(self._families)}")
            own = {variable: soft[variable] for variable in family.variables}
            softened = soften(family, own, self.temperature, self._iterations)
            for variable, matrix in softened.items():
                torch.lerp(present[variable], matrix, self._damping, out=soft[variable])

    def move(self) -> None:
        """Move there; the small families in one with what is computed."""
        if self._fused is not None:
            self._fused()
        for family in self._families:
            for variable in family.variables:
                self._exchange(self._state.soft, self._soft, variable)

    def _launch(self, groups: Sequence[str]) -> Callable[[], None]:
        """Return the launch of the kernels, which soften and move in one."""
        from gpu_align.kernels import sinkhorn

        similarity, soft = ([of[g] for g in groups] for of in (self._soft, self._state.soft))
        step = sinkhorn.AnnealingStep(similarity, soft)
        return partial(step.launch, self.temperature, self._damping, self._iterations)


def _small(problem: AlignmentProblem) -> list[Family]:
    """Return the families of one plain matrix that the kernels take a step of."""
    if not problem.engine.kernels or problem.dtype != torch.float32:
        return []
    from gpu_align.kernels.sinkhorn import LARGEST

    plain = (f for f in problem.families.values() if f.variables == (f.root.group,))
    return [family for family in plain if family.root.size <= LARGEST]
