"""Certificates: what is proved about a permutation that a search has found."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._assignment import AssignmentProblem, solve
from gpu_align._permutation import Permutation
from gpu_align._problem import AlignmentProblem, optimistic


@dataclass(frozen=True)
class GroupReport:
    """One group before and after alignment, and the certificate of its assignment.

    Distances are over the tensors that the group lies on, so those of coupled groups overlap.

    Attributes:
        name, units: the group.
        moved: how many units change place.
        distance_before, distance_after: squared distance over the group's tensors.
        primal: what the group contributes to F as it is assigned, the others fixed; float64.
        dual: no assignment of this group contributes more, the others fixed; from potentials.
        gap: `dual - primal`; 0 to rounding proves that no other assignment of this group is
            better. A group on two axes of one tensor has a bound in place of its similarity
            there, so its gap may stay open at an optimum.
    """

    name: str
    units: int
    moved: int
    distance_before: float
    distance_after: float
    primal: float
    dual: float
    gap: float


@dataclass(frozen=True)
class CostMatrix:
    """Squared row distances of one group, thinned to at most `SHOWN` units for a picture.

    Attributes:
        group: name of the group.
        units: its number of units, of which evenly spaced ones are shown.
        before, after: nested lists, unit i of the target against unit j of the source; `after`
            has the source's units in their new order.
    """

    group: str
    units: int
    before: list[list[float]]
    after: list[list[float]]


SHOWN = 96


def group_reports(
    problem: AlignmentProblem, permutation: Permutation, model: int = 0
) -> tuple[GroupReport, ...]:
    """Certify the assignment of every group, the others fixed.

    Args:
        problem: built in float64, so that the certificates are.
        permutation: what is certified.
        model: which source it belongs to.
    """
    before = problem.tensor_distances(Permutation.identity(permutation.spec), model)
    after = problem.tensor_distances(permutation, model)
    perms = {name: permutation.perms[name][None] for name in problem.groups}
    index = torch.tensor([model])
    reports = []
    for name in problem.groups:
        primal = float(problem.touched(name, perms, index))
        similarity = _bounding_similarity(problem, name, perms, index)
        solution = solve(AssignmentProblem(similarity, maximize=True), certify=True)
        assert solution.row_dual is not None
        assert solution.col_dual is not None
        dual = float(solution.row_dual.sum() + solution.col_dual.sum())
        tensors = [t for t in before if name in problem.spec.tensors[t].groups]
        reports.append(
            GroupReport(
                name=name,
                units=problem.sizes[name],
                moved=permutation.moved()[name],
                distance_before=sum(before[t] for t in tensors),
                distance_after=sum(after[t] for t in tensors),
                primal=primal,
                dual=dual,
                gap=max(dual - primal, 0.0),
            )
        )
    return tuple(reports)


def _bounding_similarity(
    problem: AlignmentProblem, group: str, perms: dict[str, Tensor], index: Tensor
) -> Tensor:
    """Return the similarity of a group, with bounds for the terms it is quadratic in."""
    total = problem.unary[group][index]
    for term in problem.touching(group):
        repeated = term.groups.count(group)
        for place in (n for n, name in enumerate(term.groups) if name == group):
            if repeated == 1:
                total = total + term.similarity(place, perms, index)
            else:
                total = total + optimistic(term, place)[index] / repeated
    return total


def cost_matrix(
    problem: AlignmentProblem,
    permutation: Permutation,
    reports: Sequence[GroupReport],
    model: int = 0,
) -> CostMatrix | None:
    """Return the cost matrix of the group that gained most, before and after; None without groups.

    All other groups are in their final order in both pictures, so that only this one differs.
    """
    if not reports:
        return None
    best = max(reports, key=lambda report: report.distance_before - report.distance_after)
    perms = {name: permutation.perms[name][None] for name in problem.groups}
    similarity = problem.similarity(best.name, perms, torch.tensor([model]))[0]
    norms = problem.unary_norms(best.name)[model].clone()
    for term in problem.touching(best.name):
        for place, name in enumerate(term.groups):
            if name == best.name:
                norms += term.squared_norms(place)[model]
    cost = (norms - 2 * similarity).clamp_min(0)
    shown = torch.linspace(0, best.units - 1, min(best.units, SHOWN)).round().long()
    return CostMatrix(
        group=best.name,
        units=best.units,
        before=_thin(cost, shown, shown),
        after=_thin(cost, shown, permutation.perms[best.name][shown]),
    )


def _thin(cost: Tensor, rows: Tensor, columns: Tensor) -> list[list[float]]:
    return [[float(f"{v:.6g}") for v in row] for row in cost[rows][:, columns].tolist()]
