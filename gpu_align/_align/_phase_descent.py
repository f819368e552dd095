"""Weight matching with phases: the signs of a unit going in and coming out are chosen apart.

With a phase a unit may be negated where it is made and where it is read, each on its own; the shift
of its bias follows. So with the other groups fixed, the best order, signs and phases of a group are
one assignment, whose pairs of units gain what the best of the four choices gains them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gpu_align._problem import Matcher, Metric
from gpu_align._symmetry import PermutationSpec, Weights, permuted

Vectors = Mapping[str, Tensor]

_SWEEPS = 100
_NO_GAIN = 1e-12


@dataclass(frozen=True)
class Answers:
    """Symmetries, each of one source.

    Attributes:
        perms, signs, phases: group -> int64 [b, units], as in `Permutation`: signs of the signed
            groups whose signs are free, phases of the groups that have one.
        model: int64 [b], which source each is of.
    """

    perms: Vectors
    signs: Vectors
    phases: Vectors
    model: Tensor

    def without(self, group: str) -> "Answers":
        """Return the same with one group as it is in the source."""
        still = torch.arange(self.perms[group].shape[1], device=self.model.device)
        return replace(
            self,
            perms={**self.perms, group: still.expand_as(self.perms[group])},
            signs={name: sign for name, sign in self.signs.items() if name != group},
            phases={name: k for name, k in self.phases.items() if name != group},
        )

    def select(self, index: Tensor) -> "Answers":
        """Return the answers at `index`, int64 [k]."""
        perms, signs, phases = (
            {name: vector[index] for name, vector in kind.items()}
            for kind in (self.perms, self.signs, self.phases)
        )
        return Answers(perms, signs, phases, self.model[index])

    def where(self, other: "Answers", wins: Tensor) -> "Answers":
        """Return the other's answers where `wins`, bool [b]."""
        pairs = ((self.perms, other.perms), (self.signs, other.signs), (self.phases, other.phases))
        perms, signs, phases = (
            {name: torch.where(wins[:, None], new[name], old) for name, old in own.items()}
            for own, new in pairs
        )
        return Answers(perms, signs, phases, self.model)


def joined(parts: Sequence[Answers]) -> Answers:
    """Return several batches one after another."""
    perms, signs, phases = (
        {name: torch.cat([kind[name] for kind in each]) for name in each[0]}
        for each in (
            [part.perms for part in parts],
            [part.signs for part in parts],
            [part.phases for part in parts],
        )
    )
    return Answers(perms, signs, phases, torch.cat([part.model for part in parts]))


@dataclass(frozen=True)
class PhaseDescent:
    """Sweeps over the groups until no answer comes closer.

    Groups inside others, and those on two axes of one tensor, stay as they are.

    Attributes:
        sources, target: on the device that computes.
        metric: of the distance.
        match: solves the assignments.
    """

    sources: Weights
    target: Weights
    metric: Metric
    match: Matcher

    @property
    def spec(self) -> PermutationSpec:
        """The symmetries."""
        return self.sources.spec

    @cached_property
    def movable(self) -> list[str]:
        """The groups that are assigned."""
        parents = {group.parent for group in self.spec.groups.values()}
        blocks = [block for tensor in self.spec.tensors.values() for block in tensor.blocks]
        return [
            name
            for name, group in self.spec.groups.items()
            if group.parent is None and name not in parents and not group.fixed
            if all(len(block.numbers_of(name)) < 2 for block in blocks)
        ]

    def run(self, answers: Answers) -> tuple[Answers, Tensor]:
        """Descend from answers; return where they end, and their distances, float64 [b]."""
        distance = self.distance(answers)
        for _ in range(_SWEEPS):
            moved = answers
            for group in self.movable:
                moved = self._assigned(group, moved)
            now = self.distance(moved)
            gains = now < distance * (1 - _NO_GAIN)
            if not bool(gains.any()):
                break
            answers, distance = answers.where(moved, gains), torch.where(gains, now, distance)
        return answers, distance

    def distance(self, answers: Answers) -> Tensor:
        """Return squared distances to the target, float64 [b]."""
        total = torch.zeros(len(answers.model), dtype=torch.float64, device=answers.model.device)
        for name, tensor in self.spec.tensors.items():
            if tensor.counted:
                apart = self.moved(name, answers) - self.target_of(name)
                total += apart.square().flatten(1).sum(1)
        return total

    def settled(self, answers: Answers) -> Answers:
        """Return the best phases for these orders and signs.

        Exact, but where one entry is read from units of two groups with phases: their turns come
        one after the other.
        """
        for group in answers.phases:
            still = torch.zeros_like(answers.phases[group])
            alone = replace(answers, phases={**answers.phases, group: still})
            read = torch.zeros_like(still, dtype=torch.float64)
            for power, target, source in self._rows(group, alone):
                if power < 0:
                    read += (target * source).sum(2)
            bias = self.spec.phases[group].bias
            apart = self.target_of(bias) - self.moved(bias, alone)
            even, odd = (self._nearest(group, apart, parity) for parity in (0, 1))
            is_odd = even[1] - odd[1] > 4 * read
            best = {**answers.phases, group: torch.where(is_odd, odd[0], even[0])}
            answers = replace(answers, phases=best)
        return answers

    def _assigned(self, group: str, answers: Answers) -> Answers:
        """Return answers with one group assigned, the others fixed."""
        alone = answers.without(group)
        choices = self._choices(group)
        gains = torch.stack(self._gains(group, alone, choices))
        best, before = gains.amax(0), answers.perms[group]
        perm, value = self.match(best)
        more = value - best.gather(2, before[..., None]).sum((1, 2))
        perm = torch.where((more > _NO_GAIN * value.abs())[:, None], perm, before)
        chosen = gains.gather(3, perm[None, ..., None].expand(len(choices), -1, -1, 1))[..., 0]
        going_in, coming_out = torch.tensor(choices, device=perm.device)[chosen.argmax(0)].unbind(2)
        found = replace(answers, perms={**answers.perms, group: perm})
        if group in answers.signs:
            found = replace(found, signs={**answers.signs, group: going_in})
        if group in answers.phases:
            bias = self.spec.phases[group].bias
            apart = self.target_of(bias) - going_in * self.moved(bias, alone).gather(1, perm)
            even, odd = (self._nearest(group, apart, parity)[0] for parity in (0, 1))
            phase = torch.where(going_in == coming_out, even, odd)
            found = replace(found, phases={**answers.phases, group: phase})
        return found

    def _choices(self, group: str) -> list[tuple[int, int]]:
        """Return the signs that a unit of a group may have going in and coming out."""
        if group in self.spec.phases:
            return [(1, 1), (-1, -1), (1, -1), (-1, 1)]
        return [(1, 1), (-1, -1)] if self.spec.groups[group].signed else [(1, 1)]

    def _gains(
        self, group: str, alone: Answers, choices: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Return what pairs of units gain with each choice of signs, float64 [b, n, n] each.

        Args:
            group: whose units.
            alone: the answers without that group.
            choices: signs going in and coming out.
        """
        size = self.spec.units(group)
        shape = (3, len(alone.model), size, size)
        parts = torch.zeros(shape, dtype=torch.float64, device=alone.model.device)
        for power, target, source in self._rows(group, alone):
            parts[power] += target @ source.transpose(1, 2)  # -1 is the last one
        plain, made, read = parts
        gains = [plain + s * made + t * read for s, t in choices]
        if group in self.spec.phases:
            bias = self.spec.phases[group].bias
            a, b = self.target_of(bias)[..., None], self.moved(bias, alone)[:, None]
            for number, (s, t) in enumerate(choices):
                gains[number] -= self._nearest(group, a - s * b, int(s != t))[1] / 2
        return gains

    def _rows(self, group: str, answers: Answers) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the power of a group's units in each block, and its rows [n, d], [b, n, d]."""
        phase = self.spec.phases.get(group)
        for name, tensor in self.spec.tensors.items():
            if not tensor.counted or group not in tensor.groups or (phase and phase.bias == name):
                continue
            parts = self.target_of(name), self.moved(name, answers)
            for block in tensor.blocks:
                for number in block.numbers_of(group):
                    target, source = (
                        rows.reshape(*rows.shape[:2], -1)
                        for rows in (block.unfold(part).movedim(number + 1, 1) for part in parts)
                    )
                    yield block.units[number].power, target[0], source

    def _nearest(self, group: str, apart: Tensor, parity: int) -> tuple[Tensor, Tensor]:
        """Return the even or odd half periods nearest to differences, and what is left squared."""
        shift = self.spec.phases[group].shift
        halves = apart / shift
        nearest = 2 * ((halves - parity) / 2).round() + parity
        return nearest.to(torch.int64), ((halves - nearest) * shift).square()

    def moved(self, name: str, answers: Answers) -> Tensor:
        """Return one tensor of the source of each answer, moved and scaled, float64."""
        wide = self.sources[name].index_select(0, answers.model).to(torch.float64)
        vectors = (answers.perms, answers.signs, answers.phases)
        return self.metric.scaled_each(permuted(wide, name, self.spec, *vectors))

    def target_of(self, name: str) -> Tensor:
        """Return one tensor of the target scaled, float64 [1, *shape]."""
        return self.metric.scaled_each(self.target[name].to(torch.float64))
