"""Shapes of the work of one program of the row-distance kernels, chosen without measuring."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """Shape of the work of one program, and how a float32 product is made.

    Attributes:
        rows, columns, depth: BLOCK_M, BLOCK_N, BLOCK_K.
        warps: of 32 threads.
        stages: of the software pipeline.
        precision: of float32 products: `tf32x3` (three tensor-core products) or `ieee`.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    precision: str = "ieee"

    def options(self) -> dict[str, int | str | bool]:
        """Return the constants and options of a launch with this tile."""
        return {
            "PRECISION": self.precision,
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
        }


TILES = {
    torch.float32: (
        Tile(128, 128, 16, 8, 5, "tf32x3"),
        Tile(64, 64, 32, 4, 5, "tf32x3"),
        Tile(32, 32, 32, 4, 4, "ieee"),
    ),
    torch.float16: (Tile(128, 128, 64, 8, 4), Tile(64, 64, 64, 4, 5), Tile(32, 32, 64, 4, 5)),
    torch.bfloat16: (Tile(128, 128, 64, 8, 4), Tile(64, 64, 64, 4, 5), Tile(32, 32, 64, 4, 5)),
}
"""Tiles by dtype, largest first. A guess, not yet tuned on a device.

Triton reads index vectors a step before the rows they point to and shares the stages between the
two: 3 and 4 stages compile to the same code, 5 buffer one more step of rows.
"""

UPDATE_TILES = {dtype: Tile(64, 64, 16, 4, 3, "tf32x3") for dtype in TILES}
"""Tile of the update by dtype of the weights. A guess, not yet tuned on a device."""


def choose_tile(problems: Sequence[tuple[int, int]], dtype: torch.dtype, processors: int) -> Tile:
    """Return the largest tile that the matrices fill and that keeps every processor busy.

    Args:
        problems: (n, b) of each problem of the launch.
        dtype: of the weights.
        processors: multiprocessors of the device.
    """
    largest = max((n for n, _ in problems), default=1)
    for tile in TILES[dtype]:
        programs = sum(
            b * math.ceil(n / tile.rows) * math.ceil(n / tile.columns) for n, b in problems
        )
        if largest > tile.rows // 2 and programs >= processors:
            return tile
    return TILES[dtype][-1]
