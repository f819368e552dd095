"""Certificates: what is proved about a permutation that a search has found."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_align._problem import (
    AlignmentProblem,
    Family,
    Hypotheses,
    Member,
    add_bound,
    exact_match,
    known_match,
    lower_bound,
    optimistic,
    picked,
)
from gpu_align._symmetry import Permutation

ROUNDING = 1e-6
"""Relative gap up to which an assignment found in float32 counts as optimal."""

SHOWN = 96


@dataclass(frozen=True)
class Inside:
    """A group inside each unit of another one.

    Attributes:
        name: the group.
        units: number of units inside each unit of the other group.
        moved: how many of all its units change place or sign.
    """

    name: str
    units: int
    moved: int


@dataclass(frozen=True)
class GroupReport:
    """One group before and after alignment, and the certificate of its assignment.

    Distances are over the tensors that the group lies on, so those of coupled groups overlap. The
    certificate is over orders and signs, with phases as they are.

    Attributes:
        name, units: the group.
        inside: the groups inside each of its units, which are assigned and certified with it.
        moved: how many units change place or sign.
        distance_before, distance_after: squared distance over the group's tensors.
        primal: what the group contributes to F as it is assigned, the others fixed; float64.
        dual: no assignment of this group contributes more, the others fixed; from potentials.
        gap: `dual - primal`; 0 to rounding proves that no other assignment of this group is
            better. A group on two axes of one tensor has a bound in place of its similarity
            there, so its gap may stay open at an optimum.
    """

    name: str
    units: int
    inside: tuple["Inside", ...]
    moved: int
    distance_before: float
    distance_after: float
    primal: float
    dual: float
    gap: float

    @property
    def relative_gap(self) -> float | None:
        """The gap as a share of |dual|; None where the dual is zero and the gap is not."""
        if self.gap == 0:
            return 0.0
        return None if self.dual == 0 else self.gap / abs(self.dual)

    @property
    def is_optimal(self) -> bool:
        """Whether the gap proves that no other order of this group is better, to rounding."""
        gap = self.relative_gap
        return gap is not None and gap <= ROUNDING


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


@dataclass(frozen=True)
class Certificate:
    """What is known about one hypothesis, all in float64.

    Attributes:
        distance_before, distance: squared distance of its source as given, and permuted.
        lower_bound: no permutation has a smaller distance.
        groups: one report per group.
    """

    distance_before: float
    distance: float
    lower_bound: float
    groups: tuple[GroupReport, ...]


@dataclass(frozen=True, eq=False)
class FamilyTable:
    """What certificates say about one family, for many hypotheses.

    Attributes:
        family: which.
        moved: units of the root, then of each child, that change place or sign, int64 [b, members].
        numbers: distances before and after, primal, dual and gap of `GroupReport`, float64 [b, 5].
    """

    family: Family
    moved: Tensor
    numbers: Tensor

    def reports(self) -> Iterator[GroupReport]:
        """Yield the report of each hypothesis."""
        name, family = self.family.root.group, self.family
        rows = self.numbers.tolist()
        for (root, *children), row in zip(self.moved.tolist(), rows, strict=True):
            inside = tuple(
                Inside(child.group, child.size, count)
                for child, count in zip(family.children, children, strict=True)
            )
            yield GroupReport(name, family.units(family.root), inside, root, *row)


@dataclass(frozen=True, eq=False)
class CertificateTable:
    """What certificates say about many hypotheses, on the CPU; `Certificate` has one of them.

    Attributes:
        distance_before, distance, lower_bound: float64 [b].
        families: one table per family.
    """

    distance_before: Tensor
    distance: Tensor
    lower_bound: Tensor
    families: tuple[FamilyTable, ...]

    @property
    def moved(self) -> Tensor:
        """How many units change place or sign, over all groups, int64 [b]."""
        zero = torch.zeros(len(self.distance), dtype=torch.int64, device="cpu")
        return sum((table.moved.sum(1) for table in self.families), zero)

    @property
    def relative_gap(self) -> Tensor:
        """The largest gap of a group as a share of its |dual|, float64 [b]; inf of nothing."""
        worst = torch.zeros_like(self.distance)
        for table in self.families:
            dual, gap = table.numbers[:, 3].abs(), table.numbers[:, 4]
            share = torch.where(gap == 0, 0.0, gap / dual)  # inf where the dual is zero
            worst = torch.maximum(worst, share)
        return worst

    def select(self, rows: Tensor) -> "CertificateTable":
        """Return the certificates of some hypotheses, int64 [k]."""
        tables = (replace(t, moved=t.moved[rows], numbers=t.numbers[rows]) for t in self.families)
        before, after = self.distance_before[rows], self.distance[rows]
        return CertificateTable(before, after, self.lower_bound[rows], tuple(tables))

    @staticmethod
    def joined(tables: "Sequence[CertificateTable]") -> "CertificateTable":
        """Join the certificates of parts of a batch."""
        families = tuple(
            replace(
                parts[0],
                moved=torch.cat([part.moved for part in parts]),
                numbers=torch.cat([part.numbers for part in parts]),
            )
            for parts in zip(*(table.families for table in tables), strict=True)
        )
        return CertificateTable(
            torch.cat([table.distance_before for table in tables]),
            torch.cat([table.distance for table in tables]),
            torch.cat([table.lower_bound for table in tables]),
            families,
        )


def certificates(
    problem: AlignmentProblem,
    hypotheses: Hypotheses,
    *,
    work: float = math.inf,
    given: Mapping[str, Tensor] | None = None,
    bounds: Tensor | None = None,
) -> list[Certificate]:
    """Certify a batch of hypotheses: the assignment of every group, the others fixed.

    Args:
        problem: built in float64, so that the certificates are.
        hypotheses: b of them, of any of the problem's models.
        work: most multiply-adds for the lower bound of a model; see `lower_bound`.
        given: distances of the sources as given, tensor -> [m], where the problem's are others.
        bounds: float64 [m], lower bounds of the sources, where those of the problem do not hold.

    Returns:
        One certificate per hypothesis.
    """
    table = certificate_table(problem, hypotheses, work=work, given=given, bounds=bounds)
    reports = [of_family.reports() for of_family in table.families]
    numbers = (table.distance_before, table.distance, table.lower_bound)
    groups = zip(*reports, strict=True) if reports else [()] * len(hypotheses)
    rows = zip(*(column.tolist() for column in numbers), groups, strict=True)
    return [Certificate(b, a, bound, tuple(of_groups)) for b, a, bound, of_groups in rows]


def certificate_table(
    problem: AlignmentProblem,
    hypotheses: Hypotheses,
    *,
    work: float = math.inf,
    found: bool = False,
    given: Mapping[str, Tensor] | None = None,
    bounds: Tensor | None = None,
) -> CertificateTable:
    """Certify a batch of hypotheses, see `certificates`, without an object for each.

    Args:
        problem, hypotheses, work, given, bounds: as there.
        found: whether the hypotheses are what a search has ended with: then the assignments of most
            groups are optimal, so they are not solved again, which changes duals by rounding.
    """
    model = hypotheses.model
    given = problem.each_tensor_distance() if given is None else given
    before = {name: d[model] for name, d in given.items()}
    after = problem.each_tensor_distance(hypotheses)
    bounds = (lower_bound(problem, work=work) if bounds is None else bounds)[model]
    families = tuple(
        _family_table(problem, hypotheses, family, before, after, found=found)
        for family in problem.families.values()
    )
    first, last = ((problem.unit * _total(part.values(), bounds)).cpu() for part in (before, after))
    return CertificateTable(first, last, bounds.cpu(), families)


def _family_table(
    problem: AlignmentProblem,
    hypotheses: Hypotheses,
    family: Family,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    found: bool,
) -> FamilyTable:
    """Return what is said about one family for each hypothesis."""
    name, perms, model = family.root.group, hypotheses.perms, hypotheses.model
    similarity = _bounding_similarity(problem, family, perms, model)
    match = exact_match(problem.engine)
    if problem.is_quadratic(name):
        primal = problem.family_value(name, perms, model)
    else:
        primal = torch.stack([picked(s, perms[m]) for m, s in similarity.items()]).sum(0)
        if found and not family.children and problem.engine.waits:
            match = known_match(perms[name])
    dual = family.bound(similarity, match)
    groups = {member.group for member in family.members}
    tensors = [t for t in before if not groups.isdisjoint(problem.spec.tensors[t].groups)]
    members = (family.root, *family.children)
    moved = torch.stack([_moved(member, perms, like=primal) for member in members], dim=1)
    numbers = (
        *(_total((parts[t] for t in tensors), primal) for parts in (before, after)),
        *(primal, dual, (dual - primal).clamp_min(0)),
    )
    # One transfer for all.
    table = torch.stack([column.to(primal) for column in numbers], dim=1)
    return FamilyTable(family, moved.cpu(), (problem.unit * table).cpu())


def _total(parts: Iterable[Tensor], like: Tensor) -> Tensor:
    return sum(parts, torch.zeros_like(like, dtype=torch.float64))


def _moved(member: Member, perms: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Return how many units of a member change place or sign, int64 [b]; none of a fixed root."""
    if member.group not in perms:
        return torch.zeros_like(like, dtype=torch.int64)
    # The signed matrix has the places too: a negated unit is ~j, which is nobody's place.
    perm = perms[member.variables[-1]]
    return (perm != torch.arange(perm.shape[1], device=perm.device)).sum(1)


def _bounding_similarity(
    problem: AlignmentProblem, family: Family, perms: Mapping[str, Tensor], index: Tensor
) -> dict[str, Tensor]:
    """Return the similarities of a family, with bounds for the terms it is quadratic in."""
    similarity = {variable: problem.unary[variable][index] for variable in family.variables}
    for term in problem.family_terms(family.root.group):
        own = [mode for mode, v in enumerate(term.variables) if v in family.variables]
        for mode in own:
            variable = term.variables[mode]
            if len(own) == 1:
                similarity[variable] += term.similarity(mode, perms, index)
            else:
                add_bound(similarity, variable, optimistic(term, mode)[index] / len(own))
    return similarity


def cost_matrix(
    problem: AlignmentProblem,
    permutation: Permutation,
    reports: Sequence[GroupReport],
    model: int = 0,
) -> CostMatrix | None:
    """Return the cost matrix of the group that gained most, before and after; None without groups.

    Of a group with others inside it, the larger of these is shown, and pairs of units with the
    better of their signs.
    All other groups are in their final order in both pictures, so that only this one differs.
    """
    if not reports:
        return None
    best = max(reports, key=lambda report: report.distance_before - report.distance_after)
    member = problem.families[best.name].root
    if problem.families[best.name].children:
        member = max(problem.families[best.name].children, key=lambda child: child.size)
    perms = problem.vectors(permutation)
    index = torch.full((1,), model, device=problem.device)
    similarity = {m: problem.similarity(m, perms, index) for m in member.variables}
    norms = torch.zeros_like(problem.unary[member.group][model])
    for variable in member.variables:
        norms += problem.unary_norms(variable)[model]
        for term, mode in problem.modes_of(variable):
            norms += term.squared_norms(mode)[model]
    cost = problem.unit * (norms - 2 * member.unit_gains(similarity)[0]).clamp_min(0).cpu()
    units = len(cost)
    shown = torch.linspace(0, units - 1, min(units, SHOWN), device="cpu").round().long()
    return CostMatrix(
        group=member.group,
        units=units,
        before=_thin(cost, shown, shown),
        after=_thin(cost, shown, permutation.perms[member.group][shown]),
    )


def _thin(cost: Tensor, rows: Tensor, columns: Tensor) -> list[list[float]]:
    return [[float(f"{v:.6g}") for v in row] for row in cost[rows][:, columns].tolist()]
