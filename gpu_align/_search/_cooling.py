"""One annealing step of all groups at once, in place."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gpu_align._problem import Family
from gpu_align._replay import Replay
from gpu_align._search._relaxed import soften
from gpu_align._search._search import Run


class Cooling:
    """Doubly stochastic matrices that harden step by step.

    With kernels, families without children and signs take one fused step each; all other work is
    torch's. The tensors stay where they are, so that on a device a step can be replayed.

    Attributes:
        soft: matrix -> [b, n, n].
        model: int64 [b].
    """

    def __init__(
        self, soft: dict[str, Tensor], model: Tensor, damping: float, iterations: int
    ) -> None:
        """See `Annealing` for damping and iterations."""
        self.soft, self.model = soft, model
        self._damping, self._iterations = damping, iterations
        self._replay: tuple[Tensor, Replay] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_replay": None}

    def step(self, run: Run, temperature: float) -> None:
        """Move all groups one step towards the assignments of this temperature.

        Args:
            run: the running search.
            temperature: in units of the standard deviation of each similarity.
        """
        if self._replay is None:
            self._replay = self._prepared(run)
        device_temperature, replay = self._replay
        device_temperature.fill_(temperature)
        replay()

    def _prepared(self, run: Run) -> tuple[Tensor, Replay]:
        problem = run.problem
        temperature = torch.zeros((), dtype=problem.dtype, device=problem.device)
        similarity = {matrix: torch.empty_like(s) for matrix, s in self.soft.items()}
        families = list(problem.families.values())
        fused = None
        if problem.engine.kernels and problem.dtype == torch.float32:
            plain = [f.root.group for f in families if len(f.matrices) == 1]
            families = [family for family in families if len(family.matrices) > 1]
            fused = self._fused(plain, similarity, temperature)

        def advance() -> None:
            problem.soft_similarity(self.soft, self.model, out=similarity)
            if fused is not None:
                fused()
            for family in families:
                self._soften(family, similarity, temperature)

        return temperature, Replay(advance, problem.device)

    def _fused(
        self, groups: list[str], similarity: Mapping[str, Tensor], temperature: Tensor
    ) -> Callable[[], None]:
        """Return the launch of the kernels for families of one plain matrix."""
        from gpu_align.kernels.sinkhorn import AnnealingStep

        step = AnnealingStep([similarity[g] for g in groups], [self.soft[g] for g in groups])
        return lambda: step.launch(temperature, self._damping, self._iterations)

    def _soften(
        self, family: Family, similarity: Mapping[str, Tensor], temperature: Tensor
    ) -> None:
        own = {matrix: similarity[matrix] for matrix in family.matrices}
        for matrix, goal in soften(family, own, temperature, self._iterations).items():
            self.soft[matrix].lerp_(goal, self._damping)
