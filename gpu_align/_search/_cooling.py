"""One annealing step of all groups at once, in place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._device import Replay
from gpu_align._interrupt import uninterrupted
from gpu_align._problem import Family
from gpu_align._search._relaxed import soften
from gpu_align._search._search import Run
from gpu_align._search._state import stored


@stored
class Cooling:
    """Doubly stochastic matrices that harden step by step.

    With kernels, small families without children and signs take one fused step each; all other
    work is torch's. The tensors stay where they are, so that on a device a step can be replayed. A
    step that is interrupted has been done as a whole, or not at all.

    Attributes:
        soft: variable -> [b, n, n].
        model: int64 [b].
        done: number of steps done.
    """

    def __init__(
        self, soft: dict[str, Tensor], model: Tensor, damping: float, iterations: int
    ) -> None:
        """See `Annealing` for damping and iterations."""
        self.soft, self.model = soft, model
        self._damping, self._iterations = damping, iterations
        self.done = 0
        self._advance: _Advance | None = None
        self._beat: Callable[[str], None] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_advance": None, "_beat": None}

    def step(self, run: Run, temperature: float, part: str = "") -> None:
        """Move all groups one step towards the assignments of this temperature.

        Args:
            run: the running search.
            temperature: in units of the standard deviation of each similarity.
            part: what signs of life begin with.
        """
        # On a device the host only queues, and what it queues may be a capture.
        self._beat = (lambda text: run.beat(part + text)) if run.waits else None
        if self._advance is None:
            self._advance = self._prepared(run)
        advance = self._advance
        advance.temperature.fill_(temperature)
        if run.waits:
            advance.look()
            with uninterrupted():
                advance.move()
                self.done += 1
        else:
            with uninterrupted():
                advance.replay()
                self.done += 1

    def _prepared(self, run: Run) -> "_Advance":
        problem = run.problem
        temperature = torch.zeros((), dtype=problem.dtype, device=problem.device)
        goal = {variable: torch.empty_like(s) for variable, s in self.soft.items()}
        families = list(problem.families.values())
        fused = None
        if small := self._small(run, families):
            families = [family for family in families if family not in small]
            fused = self._fused([family.root.group for family in small], goal, temperature)

        def look() -> None:
            problem.soft_similarity(self.soft, self.model, out=goal, beat=self._beat)
            for number, family in enumerate(families):
                if self._beat is not None:
                    self._beat(f"group {number + 1} of {len(families)}")
                own = {variable: goal[variable] for variable in family.variables}
                softened = soften(family, own, temperature, self._iterations)
                for variable, found in softened.items():
                    goal[variable].copy_(found)

        def move() -> None:
            if fused is not None:
                fused()
            for family in families:
                for variable in family.variables:
                    self.soft[variable].lerp_(goal[variable], self._damping)

        def both() -> None:
            look()
            move()

        return _Advance(temperature, look, move, Replay(both, problem.device))

    def _small(self, run: Run, families: Sequence[Family]) -> list[Family]:
        """Return the families of one plain matrix that the kernels take a step of."""
        if not run.problem.engine.kernels or run.problem.dtype != torch.float32:
            return []
        from gpu_align.kernels.sinkhorn import LARGEST

        sizes = run.problem.sizes
        return [f for f in families if len(f.variables) == 1 and sizes[f.root.group] <= LARGEST]

    def _fused(
        self, groups: list[str], similarity: Mapping[str, Tensor], temperature: Tensor
    ) -> Callable[[], None]:
        """Return the launch of the kernels for families of one plain matrix."""
        from gpu_align.kernels.sinkhorn import AnnealingStep

        step = AnnealingStep([similarity[g] for g in groups], [self.soft[g] for g in groups])
        return lambda: step.launch(temperature, self._damping, self._iterations)


@dataclass(frozen=True)
class _Advance:
    """What one step does: look at all matrices, then move them; both at once on a device."""

    temperature: Tensor
    look: Callable[[], None]
    move: Callable[[], None]
    replay: Replay
