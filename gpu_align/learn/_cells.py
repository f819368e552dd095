"""Cells: the tensors of a spec as arrays with one axis per group and the rest as channels."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._symmetry import Block, PermutationSpec

Features = tuple[Tensor, ...]
"""One tensor for each cell, [b, *sizes of its axes, fixed * channels]; the channels of a fixed
place lie side by side."""


@dataclass(frozen=True)
class Key:
    """Units that are reordered among themselves wherever they appear.

    Attributes:
        group: name of a group of the spec.
        inside: the unit of the parent, where the parent is fixed; None elsewhere.
    """

    group: str
    inside: int | None = None


@dataclass(frozen=True)
class CellAxis:
    """An axis of a cell.

    Attributes:
        key: the units along it.
        size: how many, in one unit of the parent.
        parent: the axis of the cell that has the parent, or None.
        odd: whether an entry changes its sign with its unit.
    """

    key: Key
    size: int
    parent: int | None = None
    odd: bool = False


@dataclass(frozen=True)
class Cell:
    """An array of features of one network: one axis per group, the rest as channels.

    Attributes:
        name: of the tensor, or of what the features are of.
        axes: those along which units are reordered.
        fixed: number of places at each entry that stay.
    """

    name: str
    axes: tuple[CellAxis, ...]
    fixed: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def is_odd(self) -> bool:
        """Whether entries change their signs with those of units."""
        return any(axis.odd for axis in self.axes)


@dataclass(frozen=True)
class BlockCell(Cell):
    """A block of a tensor; of a block inside a fixed group, the part at one unit of it.

    Attributes:
        block: of the tensor.
        order: numbers of the factors of the block, those of `axes` first, then the fixed ones.
        chosen: factor of a fixed parent -> the unit of it at which the cell is.
    """

    block: Block
    order: tuple[int, ...]
    chosen: tuple[tuple[int, int], ...] = ()

    def view(self, tensor: Tensor) -> Tensor:
        """Return the cell of tensors [b, *shape] as a view, [b, *sizes, *fixed factors]."""
        part = self.block.unfold(tensor)
        for number, unit in sorted(self.chosen, reverse=True):
            part = part.select(number + 1, unit)
        gone = [number for number, _ in self.chosen]
        left = [n for n in range(len(self.block.factors)) if n not in gone]
        return part.permute(0, *(1 + left.index(n) for n in self.order))


def cells_of(spec: PermutationSpec, *, buffers: bool, signs: bool) -> tuple[BlockCell, ...]:
    """Return the cells of all parameters of a spec, in the order of its tensors.

    Args:
        spec: of the networks.
        buffers: whether buffers have cells too.
        signs: whether units may also be negated where the spec says so.
    """
    return tuple(
        cell
        for name, tensor in spec.tensors.items()
        if (tensor.counted or buffers) and 0 not in tensor.shape
        for block in tensor.blocks
        for cell in _cells_of_block(name, block, spec, signs=signs)
    )


def _cells_of_block(
    name: str, block: Block, spec: PermutationSpec, *, signs: bool
) -> list[BlockCell]:
    """Return a block's cell, or one for each choice of units of the fixed groups with children."""
    groups = {n: spec.groups[f.group] for n, f in block.units.items()}
    places = {group.name: n for n, group in groups.items()}
    parents = {n: places[g.parent] for n, g in groups.items() if g.parent is not None}
    cut = sorted(n for n in set(parents.values()) if groups[n].fixed)
    moved = [n for n, group in groups.items() if not group.fixed]
    still = [n for n in range(len(block.factors)) if n not in moved and n not in cut]
    fixed = math.prod(block.factors[n].size for n in still)
    cells = []
    for units in itertools.product(*(range(groups[n].size) for n in cut)):
        chosen = dict(zip(cut, units, strict=True))
        axes = []
        for n in moved:
            key = Key(groups[n].name, chosen.get(parents[n]) if n in parents else None)
            parent = moved.index(parents[n]) if parents.get(n) in moved else None
            odd = signs and groups[n].signed and block.units[n].power % 2 == 1
            axes.append(CellAxis(key, groups[n].size, parent, odd))
        order = (*moved, *still)
        cells.append(BlockCell(name, tuple(axes), fixed, block, order, tuple(chosen.items())))
    return cells


def check_features(features: Sequence[Tensor], cells: Sequence[Cell], channels: int) -> None:
    """Check that there is a tensor of the right shape for every cell.

    Raises:
        InputError: there are others.
    """
    expected = [(*cell.sizes, cell.fixed * channels) for cell in cells]
    got = [tuple(tensor.shape[1:]) for tensor in features]
    if got != expected:
        wrong = next(
            (n for n, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]),
            None,
        )
        which = (
            f"{len(got)} tensors for {len(cells)} cells"
            if wrong is None
            else f"[b, {', '.join(map(str, got[wrong]))}] for the cell {wrong} of "
            f"{cells[wrong].name!r}, expected [b, {', '.join(map(str, expected[wrong]))}]"
        )
        raise InputError(
            f"features do not fit the spec with {channels} channels: got {which}; make them by "
            "WeightSpace.from_state_dicts or a layer of this spec"
        )
