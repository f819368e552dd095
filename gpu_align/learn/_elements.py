"""Many group elements at once: drawn, undone, and applied to cells."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._symmetry import Permutation, PermutationSpec
from gpu_align.learn._cells import BlockCell, Cell, CellAxis, Features, check_features


@dataclass(frozen=True, eq=False)
class Elements:
    """A batch of symmetries of a spec, one for each network of a batch.

    Attributes:
        spec: whose symmetries.
        perms: group -> int64 [b, units], as those of `Permutation`.
        signs: signed group -> int64 [b, units] of 1 and -1, the sign that a unit gets at its new
            place; groups left out keep theirs.
        phases: group with a phase -> int64 [b, units], by how many half periods its biases are
            shifted, as those of `Permutation`. They act on weights as they are, one channel.
    """

    spec: PermutationSpec
    perms: Mapping[str, Tensor]
    signs: Mapping[str, Tensor]
    phases: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def random(
        cls,
        spec: PermutationSpec,
        count: int,
        *,
        signs: bool = True,
        phases: int = 0,
        generator: torch.Generator | None = None,
    ) -> "Elements":
        """Draw uniformly and independently from all symmetries of a spec.

        Args:
            spec: whose symmetries.
            count: how many.
            signs: whether to draw signs too.
            phases: most half periods by which biases are shifted to either side.
            generator: what to draw from; by default torch's own. The draws are made on its device.
        """
        device = torch.device("cpu") if generator is None else generator.device
        perms, drawn, shifts = {}, {}, {}
        for name, group in spec.groups.items():
            units, inside = spec.units(name), torch.arange(group.size, device=device)
            perms[name] = inside.expand(count, units // group.size, group.size)
            if not group.fixed:
                keys = torch.rand(perms[name].shape, generator=generator, device=device)
                perms[name] = keys.argsort(-1)
            if group.signed and signs:
                bits = torch.randint(2, (count, units), generator=generator, device=device)
                drawn[name] = 2 * bits - 1
        for name, group in spec.groups.items():
            if group.parent is not None:
                perms[name] = perms[name] + group.size * perms[group.parent].reshape(count, -1, 1)
        for name in spec.phases if phases else ():
            shape, bounds = (count, spec.units(name)), (-phases, phases + 1)
            shifts[name] = torch.randint(*bounds, shape, generator=generator, device=device)
        flat = {name: perm.reshape(count, -1) for name, perm in perms.items()}
        return cls(spec, flat, drawn, shifts)

    @classmethod
    def of(cls, permutations: Sequence[Permutation]) -> "Elements":
        """Return permutations of one spec, at least one, as a batch."""
        spec = permutations[0].spec
        signed = {name for each in permutations for name in each.signs}
        ones = {g: torch.ones_like(permutations[0].perms[g]) for g in signed}
        shifted = {name for each in permutations for name in each.phases}
        zeros = {g: torch.zeros_like(permutations[0].perms[g]) for g in shifted}
        return cls(
            spec,
            {g: torch.stack([each.perms[g] for each in permutations]) for g in spec.groups},
            {g: torch.stack([each.signs.get(g, ones[g]) for each in permutations]) for g in signed},
            {g: torch.stack([p.phases.get(g, zeros[g]) for p in permutations]) for g in shifted},
        )

    def permutations(self) -> list[Permutation]:
        """Return each element as a Permutation on the CPU."""
        perms = {name: perm.cpu() for name, perm in self.perms.items()}
        signs = {name: sign.cpu() for name, sign in self.signs.items()}
        phases = {name: phase.cpu() for name, phase in self.phases.items()}
        return Permutation.each(self.spec, perms, signs, len(self), phases)

    def __len__(self) -> int:
        """Return the number of elements; 1 of a spec without groups."""
        return next((len(perm) for perm in self.perms.values()), 1)

    def inverse(self) -> "Elements":
        """Return what undoes each element."""
        perms = {name: perm.argsort(1) for name, perm in self.perms.items()}
        signs = {name: sign.gather(1, perms[name]) for name, sign in self.signs.items()}
        phases = {
            name: -(self.signs[name] * k if name in self.signs else k).gather(1, perms[name])
            for name, k in self.phases.items()
        }
        return Elements(self.spec, perms, signs, phases)

    def act(self, features: Features, cells: Sequence[Cell], channels: int) -> Features:
        """Return features [b, ...] of cells, each network's reordered by its own element.

        Raises:
            InputError: the features are not those of the cells, there is another number of networks
                than of elements, or phases are to act on something else than weights.
        """
        check_features(features, cells, channels)
        if self.phases and (channels != 1 or not all(isinstance(c, BlockCell) for c in cells)):
            raise InputError(
                "phases act on weights only, and these are other features; leave the phases out of "
                "what acts on features, and shift those of the weights before"
            )
        counts = {len(x) for x in features}
        if len(self) != 1 and counts != {len(self)}:
            raise InputError(
                f"expected {len(self)} networks, one for each symmetry, got {sorted(counts)}; draw "
                "as many symmetries as there are networks, or one for all"
            )
        return tuple(self._moved(x, cell) for x, cell in zip(features, cells, strict=True))

    def _moved(self, x: Tensor, cell: Cell) -> Tensor:
        """Return one cell reordered, [b, *sizes, k]."""
        if not cell.axes:
            return x
        count, entries = len(x), math.prod(cell.sizes)
        index = torch.zeros((), dtype=torch.int64, device=x.device)
        for number, axis in enumerate(cell.axes):
            stride = math.prod(cell.sizes[number + 1 :])
            inside = self.perms[axis.key.group].to(x.device) % axis.size
            index = index + stride * _beside(inside, axis, number, cell)
        first = torch.arange(count, device=x.device)[:, None] * entries
        rows = (index.reshape(len(index), -1) + first).flatten()
        moved = x.reshape(count * entries, -1).index_select(0, rows).reshape(x.shape)
        for number, axis in enumerate(cell.axes):
            if axis.odd and axis.key.group in self.signs:
                sign = self.signs[axis.key.group].to(x)
                moved = moved * _beside(sign, axis, number, cell)[..., None]
        return self._shifted(moved, cell) if isinstance(cell, BlockCell) else moved

    def _shifted(self, x: Tensor, cell: BlockCell) -> Tensor:
        """Return one cell of weights with its biases shifted, or negated where units are read."""
        for number, axis in enumerate(cell.axes):
            group = axis.key.group
            if group not in self.phases:
                continue
            k, phase = self.phases[group], self.spec.phases[group]
            if phase.bias == cell.name:
                shift = phase.shift * k.to(x.device, torch.float64)[..., None]
                x = (x.to(torch.float64) + shift).to(x.dtype)
            elif cell.block.units[cell.order[number]].power < 0:
                x = x * _beside((1 - 2 * (k & 1)).to(x), axis, number, cell)[..., None]
        return x


def _beside(units: Tensor, axis: CellAxis, number: int, cell: Cell) -> Tensor:
    """Return what units have, [b, units], in the shape in which it meets the cell's entries."""
    shape = [len(units)] + [1] * len(cell.axes)
    shape[number + 1] = axis.size
    if axis.key.inside is not None:
        start = axis.key.inside * axis.size
        units = units[:, start : start + axis.size]
    if axis.parent is not None:
        shape[axis.parent + 1] = cell.axes[axis.parent].size
        if axis.parent > number:
            units = units.reshape(len(units), -1, axis.size).transpose(1, 2)
    return units.reshape(shape)
