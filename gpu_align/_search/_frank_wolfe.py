"""Frank-Wolfe: all groups at once in the polytope of doubly stochastic matrices."""

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import to_matrix
from gpu_align._search._relaxation import RelaxedSearch
from gpu_align._search._relaxed import soft_starts
from gpu_align._search._run import Run
from gpu_align._search._state import stored


@stored
@dataclass(frozen=True)
class _Polytope:
    """Matrices inside the polytope.

    Attributes:
        soft: variable -> [b, n, n].
        model: int64 [b].
        value: float64 [b], F of each.
        moving: bool [b], which of them still gained in the last step; the others rest.
    """

    soft: dict[str, Tensor]
    model: Tensor
    value: Tensor
    moving: Tensor


_BISECTIONS = 52  # of an interval of length 1, to the last bit of float64


@dataclass(frozen=True)
class FrankWolfe(RelaxedSearch[_Polytope]):
    """Conditional gradient on F with an exact line search, then rounding and descent.

    One step solves the assignments of all groups of all hypotheses. Along a step F is a
    polynomial whose degree is the number of groups of its largest term; its maximum on [0, 1] is
    found exactly.

    Attributes:
        starts: hypotheses per model; the first starts at the barycentre, the others near it.
        steps: largest number of steps before rounding.
        noise: standard deviation of the logits of the other starts.
        rtol: a hypothesis rests once it gains no more than this fraction of F.

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

    def begin(self, run: Run, owners: Tensor) -> _Polytope:
        """See `RelaxedSearch.begin`."""
        soft = soft_starts(run, owners, self.noise, exact_first=True)
        model = run.problem.model_index(len(owners))
        value = run.problem.soft_value(soft, model)
        return _Polytope(soft, model, value, torch.ones_like(model, dtype=torch.bool))

    def is_relaxed(self, present: _Polytope, taken: int) -> bool:
        """See `RelaxedSearch.is_relaxed`."""
        return taken == self.steps or not bool(present.moving.any())

    def relax(self, run: Run, present: _Polytope, taken: int) -> _Polytope:
        """See `RelaxedSearch.relax`."""
        problem, model = run.problem, present.model
        gradient = problem.soft_similarity(present.soft, model, None, run.heartbeat)
        direction = {}
        for done, family in enumerate(problem.families.values()):
            run.heartbeat(f"assignment {done + 1} of {len(problem.families)}")
            own = {variable: gradient[variable] for variable in family.variables}
            for variable, perm in family.assign(own, run.match).items():
                direction[variable] = to_matrix(perm, problem.dtype) - present.soft[variable]

        def along(step: Tensor) -> dict[str, Tensor]:
            length = step.to(problem.dtype)[:, None, None]
            return {g: torch.addcmul(present.soft[g], length, direction[g]) for g in direction}

        degree = max((len(term.variables) for term in problem.terms), default=1)
        nodes = torch.linspace(0, 1, degree + 1, dtype=torch.float64, device="cpu")
        later = [
            problem.soft_value(along(torch.full_like(present.value, node)), model)
            for node in nodes[1:].tolist()
        ]
        step = maximize_polynomial(nodes, torch.stack([present.value, *later], dim=1))
        soft = along(torch.where(present.moving, step, 0.0))
        value = problem.soft_value(soft, model)
        increase = (value - present.value) / value.abs().clamp_min(1e-30)
        return replace(
            present, soft=soft, value=value, moving=present.moving & (increase > self.rtol)
        )


def maximize_polynomial(nodes: Tensor, values: Tensor) -> Tensor:
    """Return where on [0, 1] the interpolating polynomials are largest.

    Args:
        nodes: float64 [k + 1], distinct, on the host.
        values: float64 [b, k + 1], one polynomial of degree k per row.

    Returns:
        float64 [b].
    """
    powers = torch.arange(len(nodes), device="cpu")
    fit = torch.linalg.inv(nodes[:, None] ** powers)
    coefficients = torch.zeros_like(values)
    for power, row in enumerate(fit.tolist()):
        for node, weight in enumerate(row):
            coefficients[:, power] += weight * values[:, node]
    slope = [power * coefficients[:, power] for power in range(1, len(nodes))]
    ends = [torch.zeros_like(values[:, 0]), torch.ones_like(values[:, 0])]
    candidates = torch.stack([*ends, *_roots(slope)], dim=1)
    heights = _evaluated(list(coefficients.T[:, :, None]), candidates)
    return candidates.gather(1, heights.argmax(1, keepdim=True))[:, 0]


def _roots(coefficients: list[Tensor]) -> list[Tensor]:
    """Return points in [0, 1] among which are all roots there; lowest power first, [b] each.

    Between two neighbouring roots of the derivative there is at most one root: it is bisected.
    Where there is none, the point returned is only one more candidate.
    """
    if len(coefficients) < 2:
        return []
    slope = [power * c for power, c in enumerate(coefficients)][1:]
    zero = torch.zeros_like(coefficients[0])
    inner = _roots(slope)
    turns = torch.stack(inner, dim=1).sort(dim=1).values.unbind(1) if inner else ()
    edges = [zero, *turns, zero + 1]
    return [_bisected(coefficients, *pair) for pair in itertools.pairwise(edges)]


def _bisected(coefficients: list[Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return the root between `low` and `high` if the signs differ there, else an end."""
    rising = _evaluated(coefficients, low) < _evaluated(coefficients, high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = (_evaluated(coefficients, middle) > 0) == rising
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return (low + high) / 2


def _evaluated(coefficients: list[Tensor], at: Tensor) -> Tensor:
    """Return the polynomials with these coefficients, lowest power first, by Horner's rule."""
    total = torch.zeros_like(at)
    for coefficient in reversed(coefficients):
        total = total * at + coefficient
    return total
