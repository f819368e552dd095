"""Grouped launches: many problems of different sizes in one grid, described by a device table."""

import contextlib
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from gpu_align._errors import InputError

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}

MAX_PROGRAMS = 2**31 - 1


class Table:
    """One grid over several problems: who owns which program, and what each problem is.

    Attributes:
        first: int64 [problems + 1], the first program of each problem, then the total.
        problems: int64 [problems, fields].
        details: int64 [any, fields], rows that the problems point to.
        programs: the total.
        steps: bisections that find a program's problem.
        arguments: what every grouped kernel takes first: first, problems, their number, steps.
    """

    def __init__(
        self,
        programs: Sequence[int],
        problems: Sequence[Sequence[int]],
        details: Sequence[Sequence[int]],
        device: torch.device,
    ) -> None:
        """Upload the table; on a GPU from pinned memory, without waiting.

        Raises:
            InputError: more programs than a grid can have.
        """
        first = [0]
        for count in programs:
            first.append(first[-1] + count)
        self.programs = first[-1]
        if self.programs > MAX_PROGRAMS:
            raise InputError(
                f"expected at most {MAX_PROGRAMS} tiles in one launch, got {self.programs}; give "
                "fewer hypotheses at once"
            )
        self.steps = len(programs).bit_length()
        parts = [first, [x for row in problems for x in row], [x for row in details for x in row]]
        flat = torch.tensor([x for part in parts for x in part], dtype=torch.int64)
        if device.type == "cuda":
            flat = flat.pin_memory().to(device, non_blocking=True)
        self.first, self.problems, self.details = flat.split([len(part) for part in parts])
        self.arguments = (self.first, self.problems, len(programs), self.steps)


def processors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU; 1 for the interpreter."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a GPU the current one, so that a launch goes to its current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@triton.jit
def locate(
    first_ptr: tl.tensor,
    problems: tl.tensor,
    steps: tl.tensor,
    program: tl.tensor,
) -> tl.tuple:
    """Return the problem that owns a program, and the program's number within it."""
    low = program * 0
    high = low + problems
    for _ in range(steps):
        middle = (low + high) // 2
        below = tl.load(first_ptr + middle) <= program
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    return low, program - tl.load(first_ptr + low)


@triton.jit
def tile_of(
    local: tl.tensor,
    size: tl.tensor,
    batch: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Return the hypothesis, rows [BLOCK_M] and columns [BLOCK_N] of a problem's program.

    Hypotheses run fastest: neighbours read the same rows of A and the same columns of B. Tiles
    run in bands of 8 rows of tiles, which serves a batch of one.
    """
    w, tile = local % batch, local // batch
    down, across = tl.cdiv(size, BLOCK_M), tl.cdiv(size, BLOCK_N)
    band = tile // (8 * across)
    height = tl.minimum(down - 8 * band, 8)
    within = tile - band * 8 * across
    i = (8 * band + within % height).to(tl.int32) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = (within // height).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    return w, i, j


@triton.jit
def read_index(
    index_ptr: tl.tensor,
    place: tl.tensor,
    inside: tl.tensor,
    SIGNED: tl.constexpr,
) -> tl.tuple:
    """Return units and signs (float32) of an index vector, or unit and 1 where unsigned."""
    unit = tl.load(index_ptr + place, mask=inside, other=0)
    sign = tl.where(unit < 0, -1.0, 1.0)
    if SIGNED:
        unit = tl.where(unit < 0, ~unit, unit)
    return unit, sign
