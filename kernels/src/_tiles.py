"""Shapes of the work of one program of the row-distance kernel, chosen without a look at data."""

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Tile:
    """Shape of the work of one program.

    Attributes:
        rows, columns, depth: BLOCK_M, BLOCK_N, BLOCK_K.
        warps: of 32 threads.
        stages: of the software pipeline, which are buffers of BLOCK_K positions; 2 hide nothing.
        rate: of products of large matrices, in TFLOP/s.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    rate: float = 1.0

    def constants(self) -> dict[str, int]:
        """Return the constants of a compilation with this tile, in the kernel's order."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_K": self.depth}

    def options(self) -> dict[str, int | bool]:
        """Return the options of a compilation with this tile."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


class Work(NamedTuple):
    """What a launch asks for.

    Attributes:
        units: n.
        batch: hypotheses.
        lengths: of the rows of each term.
    """

    units: int
    batch: int
    lengths: tuple[int, ...]

    def tiles(self, tile: Tile) -> int:
        """Return how many tiles its matrices have."""
        down, across = math.ceil(self.units / tile.rows), math.ceil(self.units / tile.columns)
        return self.batch * down * across

    def steps(self, tile: Tile) -> int:
        """Return how many steps of BLOCK_K each of them takes."""
        return sum(math.ceil(length / tile.depth) for length in self.lengths)


TILES = (
    Tile(128, 128, 32, 8, 3, rate=84),
    Tile(64, 64, 32, 4, 3, rate=71),
    Tile(32, 32, 32, 1, 3, rate=44),
)
"""Tiles, largest first; rates of an H200."""

LARGE = 128
"""Rows from which a tile is taken only where there is one for every processor, and only from sm_90
on: before, its sums and what is multiplied do not fit the registers."""

WARPS = 8
"""Warps that are to be at work on each multiprocessor."""

SHORTEST = 8
"""Steps of the shortest chunk: less does not pay for adding the chunks."""


def choose_tile(work: Work, processors: int, architecture: int) -> Tile:
    """Return the tile with which the work is done first, by its rate and by what it pads.

    Args:
        work: of the launch.
        processors: multiprocessors of the device.
        architecture: 90 for sm_90.
    """

    def enough(tile: Tile) -> bool:
        return tile.rows < LARGE or (work.tiles(tile) >= processors and architecture >= 90)

    def seconds(tile: Tile) -> float:
        return work.tiles(tile) * sum(work.lengths) * tile.rows * tile.columns / tile.rate

    return min(filter(enough, TILES), key=seconds)


def split(work: Work, tile: Tile, processors: int) -> tuple[int, int]:
    """Return into how many chunks of how many steps the tiles of a launch are split.

    A chunk is as long as it is with one program for each place on the device: a launch with many
    tiles is not split.
    """
    places = processors * max(WARPS // tile.warps, 1)
    steps = work.steps(tile)
    length = max(math.ceil(work.tiles(tile) * steps / places), SHORTEST)
    count = max(math.ceil(steps / length), 1)
    return count, math.ceil(steps / count)
