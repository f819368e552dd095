"""Frank-Wolfe: all groups at once in the polytope of doubly stochastic matrices."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import Hypotheses, to_matrix
from gpu_align._search._descent import Descent, descend, start_descent
from gpu_align._search._relaxed import soft_starts, to_hypotheses
from gpu_align._search._search import Run, Search, State


@dataclass(frozen=True)
class _Polytope:
    """Matrices inside the polytope: matrix -> [b, n, n], and F of each, float64 [b]."""

    soft: Mapping[str, Tensor]
    objective: Tensor


@dataclass(frozen=True)
class FrankWolfe(Search):
    """Conditional gradient on F with an exact line search, then rounding and descent.

    One step solves the assignments of all groups of all hypotheses. Along a step F is a
    polynomial whose degree is the number of groups of its largest term; its maximum on [0, 1] is
    found exactly.

    Attributes:
        starts: hypotheses per model; the first starts at the barycentre, the others near it.
        steps: largest number of steps before rounding.
        noise: standard deviation of the logits of the other starts.
        rtol: ends when no hypothesis gains more than this fraction of F.

    Source: Crisostomi et al., C2M3 (NeurIPS 2024), section 3; Frank & Wolfe (1956).
    """

    starts: int = 1
    steps: int = 200
    noise: float = 1.0
    rtol: float = 1e-6
    name: ClassVar[str] = "FrankWolfe"

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1 or self.noise < 0:
            raise InputError(
                "expected at least 1 start, 1 step and noise >= 0, got "
                f"{self.starts}, {self.steps} and {self.noise}"
            )

    def init(self, run: Run, start: Hypotheses | None) -> State:
        """See `Search.init`; hypotheses to begin from only join the result."""
        model = self._model(run)
        soft = soft_starts(run, self.starts, self.noise, exact_first=True)
        hypotheses = run.problem.identity() if start is None else start
        return State(
            self.name, hypotheses, _Polytope(soft, run.problem.soft_objective(soft, model))
        )

    def _model(self, run: Run) -> Tensor:
        return torch.arange(run.problem.models).repeat_interleave(self.starts)

    def step(self, run: Run, state: State) -> State:
        """Do one Frank-Wolfe step, or one sweep of descent after the last."""
        if isinstance(state.memory, Descent):
            return descend(run, state, "random")
        assert isinstance(state.memory, _Polytope)
        moved = self._advance(run, state.memory)
        gain = (moved.objective - state.memory.objective) / moved.objective.abs().clamp_min(1e-30)
        if state.sweep < self.steps and bool((gain > self.rtol).any()):
            return replace(state, memory=moved)
        hypotheses = to_hypotheses(run, moved.soft, self._model(run))
        return replace(state, hypotheses=hypotheses, memory=start_descent(run, hypotheses))

    def _advance(self, run: Run, point: _Polytope) -> _Polytope:
        problem, model = run.problem, self._model(run)
        gradient = problem.soft_similarity(point.soft, model)
        direction = {}
        for family in problem.families.values():
            own = {matrix: gradient[matrix] for matrix in family.matrices}
            for matrix, perm in family.assign(own, run.match).items():
                direction[matrix] = to_matrix(perm, problem.dtype) - point.soft[matrix]

        def along(step: Tensor) -> dict[str, Tensor]:
            length = step.to(problem.dtype)[:, None, None]
            return {g: torch.addcmul(point.soft[g], length, direction[g]) for g in direction}

        degree = max((len(term.matrices) for term in problem.terms), default=1)
        nodes = torch.linspace(0, 1, degree + 1, dtype=torch.float64)
        later = [
            problem.soft_objective(along(node.expand(len(model))), model) for node in nodes[1:]
        ]
        step = maximize_polynomial(nodes, torch.stack([point.objective, *later], dim=1))
        soft = along(step)
        return _Polytope(soft, problem.soft_objective(soft, model))


def maximize_polynomial(nodes: Tensor, values: Tensor) -> Tensor:
    """Return where on [0, 1] the interpolating polynomials are largest.

    Args:
        nodes: float64 [k + 1], distinct.
        values: float64 [b, k + 1], one polynomial of degree k per row.

    Returns:
        float64 [b].
    """
    degree = len(nodes) - 1
    powers = torch.arange(degree + 1)
    coefficients = torch.linalg.solve(nodes[:, None] ** powers, values.T).T
    candidates = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(len(values), 2)
    slope = (coefficients * powers)[:, 1:]
    if degree > 1:
        candidates = torch.cat([candidates, _roots(slope)], dim=1)
    heights = (candidates[..., None] ** powers * coefficients[:, None]).sum(-1)
    return candidates.gather(1, heights.argmax(1, keepdim=True))[:, 0]


def _roots(coefficients: Tensor) -> Tensor:
    """Return the real parts, clamped to [0, 1], of all roots; [b, k + 1] -> [b, k].

    A clamped or complex root is only one more candidate for the maximum, so it does no harm. A
    leading coefficient of zero is replaced by a tiny one, whose extra root lies far outside.
    """
    leading = coefficients[:, -1:]
    tiny = 1e-12 * coefficients.abs().amax(1, keepdim=True).clamp_min(1e-30)
    leading = torch.where(leading.abs() < tiny, tiny, leading)
    size = coefficients.shape[1] - 1
    companion = torch.zeros(len(coefficients), size, size, dtype=coefficients.dtype)
    companion[:, 1:, :-1] = torch.eye(size - 1, dtype=coefficients.dtype)
    companion[:, :, -1] = -coefficients[:, :-1] / leading
    return torch.linalg.eigvals(companion).real.clamp(0, 1)
