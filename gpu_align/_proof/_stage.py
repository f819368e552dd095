"""What duals prove: a bound over all permutations, and pairs of units that no better one has.

Nothing here knows how the duals were found; the check of a proof is made of it alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._proof._duals import for_signs
from gpu_align._proof._reduced import Couple, Reduced, impossible

EPS = torch.finfo(torch.float64).eps
_ON_HOST, _ON_DEVICE = 2**20, 2**26
"""Gains that are looked at at once."""

Inner = tuple[Tensor, Tensor, Tensor, Tensor]
"""Duals by row and column, for the pairs of a couple's first group and for those of its second."""


@dataclass(frozen=True)
class Stage:
    """Duals of the level-1 relaxation.

    Attributes:
        columns: group -> float64 [n], duals of the units of the source.
        inner: for each couple of the reduced problem, with n and m units and p and q columns:
            [m, n, p] and [m, n, p], what a pair of the first group pays for each unit of the
            second one's target and source; [n, m, q] and [n, m, q] the other way round.
        given: (group, i, j), a pair that a permutation is supposed to have: all that the stage can
            exclude. None of a stage that holds for all permutations.
    """

    columns: Mapping[str, Tensor]
    inner: tuple[Inner, ...]
    given: tuple[str, int, int] | None = None

    @classmethod
    def empty(cls, form: Reduced) -> "Stage":
        """Return duals that are 0."""
        inner = []
        for couple in form.couples:
            (n, m, _), (p, q, _) = couple.target.shape, couple.source.shape
            first, second = (m, n, p), (n, m, q)
            a, b, c, d = (couple.target.new_zeros(s) for s in (first, first, second, second))
            inner.append((a, b, c, d))
        return cls({g: w.new_zeros(len(w)) for g, w in form.gains.items()}, tuple(inner))

    def to(self, device: torch.device) -> "Stage":
        """Return the duals on a device."""
        inner = tuple(
            (a.to(device), b.to(device), c.to(device), d.to(device)) for a, b, c, d in self.inner
        )
        columns = {group: dual.to(device) for group, dual in self.columns.items()}
        return Stage(columns, inner, self.given)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all duals with a name each."""
        for group, column in self.columns.items():
            yield f"column^{group}", column
        for number, duals in enumerate(self.inner):
            for kind, dual in zip(KINDS, duals, strict=True):
                yield f"{kind}^{number}", dual


KINDS = ("row 0", "column 0", "row 1", "column 1")


@dataclass(frozen=True)
class Verdict:
    """What a stage proves.

    Attributes:
        bound: D of every permutation of pairs that are not excluded is at least this.
        costs: group -> [n, p], what D is at least with this pair; inf for excluded ones.
        allowance: what was taken off the bound for rounding.
    """

    bound: float
    costs: Mapping[str, Tensor]
    allowance: float


def judge(form: Reduced, stage: Stage, alive: Mapping[str, Tensor]) -> Verdict:
    """Return what duals prove, whatever they are: what is not feasible is paid for.

    With `R = gains of a couple - its duals`, `F = sum_g <W_g, P_g> + sum <R, P x Q>` holds for all
    permutations if W_g has the gains of the group and all that its pairs pay. What R is above 0 is
    added to the pairs of the first group, so that R counts as at most 0; `W_g <= u + v` then bounds
    the rest. With a pair, F is lower by what the pair lacks under its duals, and by what its
    row of R lacks in all.

    Args:
        form: the problem.
        stage: its duals.
        alive: group -> bool [n, p], pairs that count; the others are excluded already.
    """
    gains = {group: found.clone() for group, found in form.gains.items()}
    lacking = {group: torch.zeros_like(found) for group, found in form.gains.items()}
    scale = abs(form.constant)
    for couple, duals in zip(form.couples, stage.inner, strict=True):
        first, second = couple.groups
        gains[first] += duals[0].sum(0) + duals[1].sum(0)
        gains[second] += duals[2].sum(0) + duals[3].sum(0)
        excess, of_first, of_second = _left(couple, duals, alive[first], alive[second])
        gains[first] += excess
        lacking[first] += of_first
        lacking[second] += of_second
        scale += _scale(couple, duals, alive)
    value, lacks = 0.0, {}
    for group, column in stage.columns.items():
        found = gains[group] - for_signs(column, gains[group].shape[1])
        found = found.masked_fill(~alive[group], -torch.inf)
        row = found.amax(1)
        value += float(row.sum() + column.sum())
        scale += float(row[row.isfinite()].abs().sum() + column.abs().sum())
        lacks[group] = found - row[:, None] + lacking[group]
    allowance = EPS * _terms(form) * scale
    bound = form.constant - 2 * value - allowance
    return Verdict(bound, costs(bound, lacks, alive), allowance)


def costs(
    bound: float, lacking: Mapping[str, Tensor], alive: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what D is at least with each pair, from what F lacks with it, at most 0."""
    return {g: (bound - 2 * f).masked_fill(~alive[g], torch.inf) for g, f in lacking.items()}


def _left(
    couple: Couple, duals: Inner, alive: Tensor, others: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what R is above 0 by pair of the first group, and what it lacks by pair of each.

    All of them for the best unit beside each of the other group's target, [n, p] and [m, q].
    """
    units, columns = others.shape
    excess, of_first = torch.zeros_like(duals[0][0]), torch.zeros_like(duals[0][0])
    of_second = torch.zeros_like(duals[2][0])
    most = _ON_HOST if alive.device.type == "cpu" else _ON_DEVICE
    for part in torch.arange(len(alive), device=alive.device).split(
        max(most // (alive.shape[1] * units * columns), 1)
    ):
        left = _residual(couple, duals, part)
        if couple.groups[0] == couple.groups[1]:
            i = part.repeat_interleave(columns)
            j = torch.arange(columns, device=part.device).repeat(len(part))
            barred = impossible(i, j, units, columns)
            left.masked_fill_(barred.reshape(left.shape), -torch.inf)
        best = left.masked_fill(~others, -torch.inf).amax(3)
        excess[part] = best.clamp_min(0).sum(2)
        of_first[part] = best.clamp_max(0).sum(2)
        best = left.masked_fill_(~alive[part][:, :, None, None], -torch.inf).amax(1)
        of_second += best.clamp_max(0).sum(0)
    return excess, of_first, of_second


def _residual(couple: Couple, duals: Inner, part: Tensor) -> Tensor:
    """Return R[i, j, k, l] of some i, [b, p, m, q]."""
    a, b = couple.target[part], couple.source
    row, column, other_row, other_column = duals
    left = torch.einsum("ikd,jld->ijkl", a, b)
    left -= row[:, part].permute(1, 2, 0)[..., None]
    left -= for_signs(column[:, part].permute(1, 2, 0), b.shape[1])[:, :, None]
    left -= other_row[part][:, None]
    return left.sub_(for_signs(other_column.permute(1, 2, 0), b.shape[0]).permute(2, 0, 1))


def _scale(couple: Couple, duals: Inner, alive: Mapping[str, Tensor]) -> float:
    """Return a sum that the magnitudes of all numbers of a permutation in a couple stay below."""
    total = float(couple.target.norm() * couple.source.norm())
    for group, row, column in zip(couple.groups, duals[::2], duals[1::2], strict=True):
        paid = row.abs().sum(0) + column.abs().sum(0)
        total += float(paid.masked_fill(~alive[group], 0).amax(1).sum())
    return total


def _terms(form: Reduced) -> int:
    """Return how many roundings a number of the bound has gone through, at most."""
    depths = [couple.target.shape[2] for couple in form.couples]
    return 16 + max(depths, default=0) + 4 * sum(len(gains) for gains in form.gains.values())
