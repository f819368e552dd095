"""The last stage of a proof: all permutations that are left are gone through."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._errors import GpuAlignError
from gpu_align._problem import (
    AlignmentProblem,
    Family,
    Member,
    exact_match,
    picked,
    signed_matrix,
    unsigned,
    with_sign,
)
from gpu_align._proof._reduced import Reduced
from gpu_align._proof._stage import EPS, Verdict

_MOST, _MOST_WORK = 2**15, 2**32
"""Permutations that are gone through at most, and cubes of units that are assigned beside them:
seconds on one core, for which no budget is asked."""

_AT_ONCE = 2**20
"""Pairs of units whose gains are computed at once."""

_ROUNDING = 2**12 * EPS
"""Of the squared norms of both networks: more than the sums of an objective are off by."""


@dataclass(frozen=True)
class Leftover:
    """A stage without duals, which says that all permutations that are left be gone through."""

    @classmethod
    def empty(cls, _: Reduced) -> "Leftover":
        """Return the stage."""
        return cls()

    def to(self, _: torch.device) -> "Leftover":
        """Return the stage, which has nothing that lies on a device."""
        return self

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield nothing."""
        yield from ()


class Listing:
    """Goes through the permutations of a problem that have none of the excluded pairs.

    One family, of which no term has two matrices, is not gone through: the best assignment of its
    units, given all others, is found exactly. Of two groups only the smaller one is listed.
    """

    def __init__(self, problem: AlignmentProblem, model: int = 0) -> None:
        """Take a problem in float64, and which of its sources is meant."""
        self._problem, self._model = problem, model
        self._scale = float(problem.constant[model].abs())
        families = sorted(dict.fromkeys(problem.families.values()), key=_orders)
        linear = [family for family in families if self._is_linear(family)]
        self._assigned = linear[-1] if linear else None
        self._listed = [family for family in families if family is not self._assigned]
        widest = max(problem.sizes.values(), default=1)
        self._most = min(_MOST, _MOST_WORK // widest**3)
        self._step = max(1, _AT_ONCE // widest**2)

    def _is_linear(self, family: Family) -> bool:
        own = {member.group for member in family.members}
        return all(
            sum(unsigned(variable) in own for variable in term.variables) <= 1
            for term in self._problem.terms
        )

    def vectors(self, alive: Mapping[str, Tensor]) -> list[dict[str, Tensor]] | None:
        """Return what is listed, for each family variable -> int64 [c, n]; None if it is too much.

        Args:
            alive: group -> bool [n, p], the pairs of a root that are not excluded.
        """
        found, total = [], 1
        for family in self._listed:
            vectors = _vectors_of(family, alive, self._most // max(1, total))
            if vectors is None:
                return None
            found.append(vectors)
            total *= len(next(iter(vectors.values())))
        return found

    def judge(self, alive: Mapping[str, Tensor]) -> Verdict:
        """Return the least distance of all permutations that are left.

        Raises:
            GpuAlignError: there are too many of them.
        """
        listed = self.vectors(alive)
        if listed is None:
            raise GpuAlignError(
                f"the proof rests on going through all permutations that its duals leave, which "
                f"are more than {self._most} here; it was changed, or belongs to another problem"
            )
        allowance = _ROUNDING * self._scale
        least = min((float(self._least(v)) for v in self._batches(listed)), default=math.inf)
        costs = {
            group: torch.zeros(mask.shape, device=mask.device) for group, mask in alive.items()
        }
        return Verdict(least - allowance, costs, allowance)

    def _batches(self, listed: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Yield every choice of one of each family's vectors, many at once."""
        counts = [len(next(iter(vectors.values()))) for vectors in listed]
        total = math.prod(counts)
        for start in range(0, total, self._step):
            number = torch.arange(start, min(start + self._step, total), device="cpu")
            chosen: dict[str, Tensor] = {}
            for vectors, count in zip(listed, counts, strict=True):
                chosen |= {
                    name: perm[number % count].to(self._problem.device)
                    for name, perm in vectors.items()
                }
                number = number // count
            yield chosen

    def _least(self, perms: Mapping[str, Tensor]) -> Tensor:
        """Return the least distance with these vectors and any of the assigned family."""
        problem, family = self._problem, self._assigned
        count = max((len(perm) for perm in perms.values()), default=1)
        model = torch.full((count,), self._model, device=problem.device)
        if family is not None:
            for variable in family.variables:
                still = torch.arange(problem.sizes[variable], device=problem.device)
                perms = {**perms, variable: still.expand(count, -1)}
        distance = problem.objective(perms, model)
        if family is not None:
            gains = {v: problem.similarity(v, perms, model) for v in family.variables}
            now = torch.stack([picked(gain, perms[v]) for v, gain in gains.items()]).sum(0)
            distance -= 2 * (family.bound(gains, exact_match(problem.engine)) - now)
        return distance.min()


def _orders(family: Family) -> float:
    """Return the logarithm of how many vectors a family has."""
    found = 0.0 if family.fixed else math.lgamma(family.root.size + 1)
    for child in family.children:
        found += family.root.size * math.lgamma(child.size + 1)
    return found + sum(math.log(2) * family.units(m) for m in family.members if m.signed)


def _vectors_of(family: Family, alive: Mapping[str, Tensor], most: int) -> dict[str, Tensor] | None:
    """Return all vectors of a family, variable -> int64 [c, n]; None if they are more than `most`.

    Args:
        family: with a root that may be fixed, and children.
        alive: group -> bool [n, p], the pairs of a root that are not excluded.
        most: c at most.
    """
    found: dict[str, Tensor] = {}
    units = torch.arange(family.root.size, device="cpu")[None]
    if not family.fixed:
        columns = _assignments(alive[family.root.group].cpu(), most)
        if columns is None:
            return None
        units = columns % family.root.size
        found = _with_signs(family.root, units, columns >= family.root.size)
    for child in family.children:
        inner = _orders_inside(child, family.root.size, most // max(1, len(units)))
        if inner is None:
            return None
        columns, rows = inner, len(units)
        units = units.repeat_interleave(len(columns), 0)
        found = {name: perm.repeat_interleave(len(columns), 0) for name, perm in found.items()}
        columns = columns.repeat(rows, 1, 1)
        flat = (units[..., None] * child.size + columns % child.size).flatten(1)
        found |= _with_signs(child, flat, (columns >= child.size).flatten(1))
    return found


def _with_signs(member: Member, perm: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """Return the vectors of both matrices of a group, or that of its only one."""
    found = {member.group: perm}
    if member.signed:
        found[signed_matrix(member.group)] = with_sign(perm, negative)
    return found


def _orders_inside(child: Member, roots: int, most: int) -> Tensor | None:
    """Return all columns that a child can have in each unit of the root, int64 [c, R, s]."""
    mask = torch.ones(child.size, (1 + child.signed) * child.size, dtype=torch.bool, device="cpu")
    one = _assignments(mask, most)
    if one is None or len(one) ** roots > most:
        return None
    numbers = torch.arange(len(one), device="cpu")
    return one[torch.cartesian_prod(*[numbers] * roots).reshape(-1, roots)]


def _assignments(mask: Tensor, most: int) -> Tensor | None:
    """Return all columns that n units can have, int64 [c, n]; None if they are more than `most`.

    Args:
        mask: bool [n, p], the columns of each unit; column j and j + n are of the same unit.
        most: c at most, and of those of fewer units too.
    """
    units = len(mask)
    chosen = torch.zeros(1, 0, dtype=torch.int64, device="cpu")
    taken = torch.zeros(1, units, dtype=torch.bool, device="cpu")
    for row in mask:
        before, column = (row & ~taken.repeat(1, len(row) // units)).nonzero(as_tuple=True)
        if len(before) > most:
            return None
        chosen = torch.cat([chosen[before], column[:, None]], 1)
        taken = taken[before].scatter(1, column[:, None] % units, True)
    return chosen
