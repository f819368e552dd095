"""Dual ascent for the level-1 relaxation: inner and outer assignments pass their duals on."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._interrupt import uninterrupted
from gpu_align._proof._duals import Duals, for_signs, over_signs
from gpu_align._proof._reduced import Couple, Reduced, impossible, supposed
from gpu_align._proof._stage import Stage

_ON_HOST, _ON_DEVICE = 2**18, 2**25
"""Gains that are in the works at once; on the host they stay in the cache."""

_KEPT = 0.3
"""Share of its reduced costs that a pair keeps; the rest goes back to what couples it."""


@dataclass(frozen=True)
class Side:
    """One of the two groups of a couple, and the duals of the assignments that its pairs see.

    With n units of this group and m of the other one, and p and q columns (see `Reduced`):

    Attributes:
        group: this group.
        target: [n, m, d].
        source: [p, q, d].
        row: [m, n, p], what a pair of this group pays for each unit of the other's target.
        column: [m, n, p], the same for each unit of its source.
    """

    group: str
    target: Tensor
    source: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def of(cls, couple: Couple, number: int) -> "Side":
        """Return a side whose duals are 0."""
        target, source = (t.transpose(0, number) for t in (couple.target, couple.source))
        row, column = (target.new_zeros(target.shape[1], len(target), len(source)) for _ in "uv")
        group = couple.groups[number]
        return cls(group, target.contiguous(), source.contiguous(), row, column)

    @property
    def paid(self) -> Tensor:
        """What each pair of this group pays in all, [n, p]."""
        return self.row.sum(0) + self.column.sum(0)

    def left(self, other: "Side", i: Tensor, j: Tensor) -> Tensor:
        """Return what both sides have left of the gains of pairs (i, j), [b, m, q]."""
        gain = self.target[i] @ self.source[j].transpose(1, 2)
        gain -= other.row[i]
        gain -= other.column[j % len(self.target)]
        gain -= self.row[:, i, j].T[:, :, None]
        return gain.sub_(for_signs(self.column[:, i, j].T, gain.shape[2])[:, None])


class Ascent:
    """The duals of a problem, which steps improve; whatever they are, they give a bound.

    Attributes:
        alive: group -> bool [n, p], pairs that are not excluded yet.

    Source: Hahn & Grant, "Lower bounds for the quadratic assignment problem based upon a dual
    formulation", Operations Research 46 (1998), section 2; Adams, Guignard, Hahn & Hightower, "A
    level-2 reformulation-linearization technique bound for the quadratic assignment problem",
    European Journal of Operational Research 180 (2007), section 2.
    """

    def __init__(self, form: Reduced, best: Duals) -> None:
        """Begin with all duals 0, which proves nothing; `best` solves assignments."""
        self._form, self._best = form, best
        self._given: tuple[str, int, int] | None = None
        self._couples = [(Side.of(couple, 0), Side.of(couple, 1)) for couple in form.couples]
        self._row = {group: gains.new_zeros(len(gains)) for group, gains in form.gains.items()}
        self._column = {group: gains.new_zeros(len(gains)) for group, gains in form.gains.items()}
        self.alive: Mapping[str, Tensor] = {
            g: torch.ones_like(w, dtype=torch.bool) for g, w in form.gains.items()
        }

    def sweep(self, duals: Duals, heartbeat: Callable[[], None]) -> None:
        """Take every group once.

        Args:
            duals: of the inner assignments.
            heartbeat: called now and then; what it raises ends the sweep, whose duals so far hold.
        """
        for group in self._form.gains:
            sides = list(self._sides(group))
            for side, other in sides:
                self._take(side, other, duals, heartbeat)
            left = self._left(group)
            row, column = self._best(over_signs(left)[None])
            with uninterrupted():
                self._row[group] += row[0]
                self._column[group] += column[0]
                self._give_back(group, [side for side, _ in sides])

    def supposing(self, group: str, i: int, j: int) -> "Ascent":
        """Return an ascent from these duals over the permutations that have a pair."""
        branch = Ascent(self._form, self._best)
        for mine, theirs in zip(self._couples, branch._couples, strict=True):
            for side, copy in zip(mine, theirs, strict=True):
                copy.row.copy_(side.row)
                copy.column.copy_(side.column)
        for name in self.alive:
            branch._row[name].copy_(self._row[name])
            branch._column[name].copy_(self._column[name])
        branch.alive = supposed(self.alive, group, i, j)
        branch._given = group, i, j
        return branch

    def stage(self) -> Stage:
        """Return the duals as they are, with those of every group's assignment."""
        columns = {}
        for group, column in self._column.items():
            columns[group] = column + self._best(over_signs(self._left(group))[None])[1][0]
        inner = tuple(
            (first.row.clone(), first.column.clone(), second.row.clone(), second.column.clone())
            for first, second in self._couples
        )
        return Stage(columns, inner, self._given)

    def _sides(self, group: str) -> Iterator[tuple[Side, Side]]:
        for first, second in self._couples:
            if first.group == group:
                yield first, second
            if second.group == group:
                yield second, first

    def _take(self, side: Side, other: Side, duals: Duals, heartbeat: Callable[[], None]) -> None:
        """Let the pairs of a side take what their inner assignments are worth."""
        excluded = ~self.alive[other.group]
        units, columns = excluded.shape
        most = _ON_HOST if excluded.device.type == "cpu" else _ON_DEVICE
        for part in self.alive[side.group].nonzero().split(max(most // (units * columns), 1)):
            heartbeat()
            i, j = part.T
            barred = excluded
            if side.group == other.group:
                barred = excluded | impossible(i, j, units, columns)
            row, column = duals(over_signs(_without(side.left(other, i, j), barred)))
            with uninterrupted():
                side.row[:, i, j] += row.T
                side.column[:, i, j] += column.T

    def _left(self, group: str) -> Tensor:
        """Return the gains of a group's pairs that its own duals have not taken, [n, p]."""
        gains = self._form.gains[group] - self._row[group][:, None]
        for side, _ in self._sides(group):
            gains += side.paid
        gains -= for_signs(self._column[group], gains.shape[1])
        return _without(gains[None], ~self.alive[group])[0]

    def _give_back(self, group: str, sides: list[Side]) -> None:
        """Give most of the reduced costs back, so that the other sides see them."""
        if sides:
            reduced = self._left(group).masked_fill_(~self.alive[group], 0)
            for side in sides:
                side.row.sub_(reduced * ((1 - _KEPT) / len(sides) / len(side.row)))


def _without(gain: Tensor, excluded: Tensor) -> Tensor:
    """Make gains [b, n, p] so low where a pair is excluded that no other one is given up for it.

    Args:
        gain: overwritten.
        excluded: bool [n, p], or [b, n, p].
    """
    if not bool(excluded.any()):
        return gain
    lowest = -4 * (gain.shape[1] + 1) * (1 + gain.abs().amax())
    return gain.masked_fill_(excluded, lowest)
