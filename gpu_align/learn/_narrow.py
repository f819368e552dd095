"""Wide fixed axes, projected to few places and back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gpu_align._errors import InputError
from gpu_align.learn._cells import Cell, Features


class Narrow(nn.Module):
    """Project the fixed places of cells that have more than `rank`; all channels in one way.

    Attributes:
        fixed: places of each cell that are left.
        matrices: number of a cell -> [its fixed places, rank].
    """

    def __init__(self, cells: Sequence[Cell], rank: int | None) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise InputError(f"expected fixed_rank of at least 1, or None, got {rank}")
        self.fixed = [cell.fixed if rank is None else min(cell.fixed, rank) for cell in cells]
        self.matrices = nn.ParameterDict(
            {
                str(number): nn.Parameter(torch.randn(cell.fixed, left) / math.sqrt(cell.fixed))
                for number, (cell, left) in enumerate(zip(cells, self.fixed, strict=True))
                if left < cell.fixed
            }
        )

    def forward(self, features: Features) -> Features:
        """Return [b, *sizes, left * c] of [b, *sizes, fixed * c] of each cell."""
        return tuple(
            _project(x, self.matrices[str(n)]) if str(n) in self.matrices else x
            for n, x in enumerate(features)
        )

    def back(self, number: int, x: Tensor) -> Tensor:
        """Return [b, *sizes, fixed * c] of [b, *sizes, left * c] of one cell."""
        name = str(number)
        return _project(x, self.matrices[name].mT) if name in self.matrices else x


def _project(x: Tensor, matrix: Tensor) -> Tensor:
    places = x.unflatten(-1, (len(matrix), -1)).mT
    return (places @ matrix).mT.flatten(-2)
