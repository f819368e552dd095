"""What is read off features: numbers of a whole network, and a vector for each unit."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_align._symmetry import PermutationSpec
from gpu_align.learn._cells import Cell, CellAxis, Features, Key, check_features
from gpu_align.learn._linear import CellMap, Far
from gpu_align.learn._space import WeightSpace, space_of


class InvariantHead(nn.Module):
    """Numbers of a whole network that no symmetry changes: of its class, its accuracy.

    All invariant linear maps of the features and of their squares, then a hidden layer. Squares are
    what signs leave.
    """

    def __init__(
        self,
        spec: PermutationSpec | WeightSpace,
        c_in: int,
        c_out: int,
        *,
        hidden: int = 64,
        fixed_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.cells, self.c_in = space_of(spec).cells, c_in
        whole = (Cell("network", (), 1),)
        even = [_without_signs(cell) for cell in self.cells]
        self.means = CellMap(self.cells, whole, c_in, hidden, fixed_rank=fixed_rank)
        self.squares = CellMap(even, whole, c_in, hidden, fixed_rank=fixed_rank)
        self.out = nn.Linear(hidden, c_out)

    def forward(self, features: Features) -> Tensor:
        """Return [b, c_out] of features [b, *sizes, fixed * c_in] of each cell.

        Raises:
            InputError: the features are not those of the spec.
        """
        check_features(features, self.cells, self.c_in)
        (means,), (squares,) = self.means(features), self.squares(tuple(x * x for x in features))
        out: Tensor = self.out(F.silu(means + squares))
        return out


class UnitFeatures(nn.Module):
    """A vector for each unit of each group, by all equivariant linear maps: for matching units.

    The vectors of units that may be negated are negated with them.

    Attributes:
        groups: the names of the groups that are not fixed.
    """

    def __init__(
        self,
        spec: PermutationSpec | WeightSpace,
        c_in: int,
        c_out: int,
        *,
        far: Far = "full",
        fixed_rank: int | None = None,
    ) -> None:
        super().__init__()
        space = space_of(spec)
        self.cells = unit_cells(space)
        self.groups = tuple(dict.fromkeys(cell.name for cell in self.cells))
        self.map = CellMap(space.cells, self.cells, c_in, c_out, far, fixed_rank)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return group -> [b, units, c_out] of features [b, *sizes, fixed * c_in] of each cell.

        Units are numbered as in `Permutation`.

        Raises:
            InputError: the features are not those of the spec.
        """
        return by_group(self.cells, self.map(features))


def unit_cells(space: WeightSpace) -> tuple[Cell, ...]:
    """Return a cell for the units of each group that is not fixed, named after it.

    Units of a fixed parent have a cell in each unit of it.
    """
    groups = space.spec.groups
    cells: list[Cell] = []
    for name, group in groups.items():
        odd = group.signed and space.signs
        parent = None if group.parent is None else groups[group.parent]
        if group.fixed:
            continue
        if parent is None:
            axes: list[tuple[CellAxis, ...]] = [(CellAxis(Key(name), group.size, None, odd),)]
        elif parent.fixed:
            keys = [Key(name, unit) for unit in range(parent.size)]
            axes = [(CellAxis(key, group.size, None, odd),) for key in keys]
        else:
            above = CellAxis(Key(parent.name), parent.size)
            axes = [(above, CellAxis(Key(name), group.size, 0, odd))]
        cells += [Cell(name, own, 1) for own in axes]
    return tuple(cells)


def by_group(cells: Sequence[Cell], features: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return features of `unit_cells` as group -> [b, units, c]."""
    found: dict[str, list[Tensor]] = {}
    for cell, x in zip(cells, features, strict=True):
        found.setdefault(cell.name, []).append(x.flatten(1, -2))
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def _without_signs(cell: Cell) -> Cell:
    """Return the cell of an entry's square."""
    return Cell(cell.name, tuple(replace(axis, odd=False) for axis in cell.axes), cell.fixed)
