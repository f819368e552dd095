"""An annealing step of matrices too large for one program, in a few launches (Triton).

Row maxima and statistics of S; the scale; column maxima; each half of each iteration; the blend
into P. Every launch reads S once and makes its exponentials anew: no second matrix is stored.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Table, locate, on_device

OUTER, INNER, WARPS = 16, 128, 4
"""Tile of the streamed kernels: rows (or columns) of a program, and what it reads at a time."""

TINY = tl.constexpr(1e-30)


class MatrixRow(NamedTuple):
    """One group of the table; tensors are addresses. The work vectors are float32 [b, n]."""

    size: int
    batch: int
    similarity: int
    soft: int
    row_max: int
    column_max: int
    row: int
    column: int
    statistics: int
    scale: int


M_FIELDS = tl.constexpr(len(MatrixRow._fields))
(
    M_SIZE,
    M_BATCH,
    M_SIMILARITY,
    M_SOFT,
    M_ROW_MAX,
    M_COLUMN_MAX,
    M_ROW,
    M_COLUMN,
    M_STATISTICS,
    M_SCALE,
) = map(tl.constexpr, range(len(MatrixRow._fields)))


@triton.jit
def floats(field_ptr: tl.tensor) -> tl.tensor:
    """Return the float32 pointer that a field of the table holds."""
    return tl.load(field_ptr).to(tl.pointer_type(tl.float32))


@triton.jit
def block_of(
    first_ptr: tl.tensor,
    group_ptr: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    OUTER: tl.constexpr,
) -> tl.tuple:
    """Return a program's group, its size, matrix, number of blocks and block of rows or columns."""
    number, local = locate(first_ptr, groups, steps, tl.program_id(0).to(tl.int64))
    group = group_ptr + number * M_FIELDS
    size = tl.load(group + M_SIZE)
    blocks = tl.cdiv(size, OUTER)
    return group, size, local // blocks, blocks, (local % blocks).to(tl.int32)


@triton.jit
def statistics_kernel(
    first_ptr: tl.tensor,
    group_ptr: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """Row maxima of S, and sum, centred sum of squares and largest entry of a block of rows."""
    group, size, w, blocks, block = block_of(first_ptr, group_ptr, groups, steps, OUTER)
    units = size.to(tl.int32)
    i = block * OUTER + tl.arange(0, OUTER)
    rows = floats(group + M_SIMILARITY) + w * size * size + i[:, None] * size
    count = tl.minimum(units - block * OUTER, OUTER).to(tl.float32) * size.to(tl.float32)
    total, largest = tl.zeros((OUTER,), tl.float32), tl.zeros((OUTER,), tl.float32)
    row_max = tl.full((OUTER,), float("-inf"), tl.float32)
    for start in range(0, units, INNER):
        j = start + tl.arange(0, INNER)
        inside = (i[:, None] < units) & (j[None, :] < units)
        tile = tl.load(rows + j[None, :], mask=inside, other=0.0)
        total += tl.sum(tile, 1)
        largest = tl.maximum(largest, tl.max(tl.abs(tile), 1))
        row_max = tl.maximum(row_max, tl.max(tl.where(inside, tile, float("-inf")), 1))
    mean = tl.sum(total, 0) / count
    squares = tl.zeros((OUTER,), tl.float32)
    for start in range(0, units, INNER):
        j = start + tl.arange(0, INNER)
        inside = (i[:, None] < units) & (j[None, :] < units)
        tile = tl.where(inside, tl.load(rows + j[None, :], mask=inside, other=0.0) - mean, 0.0)
        squares += tl.sum(tile * tile, 1)
    tl.store(floats(group + M_ROW_MAX) + w * size + i, row_max, mask=i < units)
    out = floats(group + M_STATISTICS) + (w * blocks + block) * 4
    tl.store(out, count)
    tl.store(out + 1, mean)
    tl.store(out + 2, tl.sum(squares, 0))
    tl.store(out + 3, tl.max(largest, 0))


@triton.jit
def scale_kernel(
    first_ptr: tl.tensor,
    group_ptr: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    temperature_ptr: tl.tensor,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """`1 / (T max(std S, floor))` of one matrix, its blocks' statistics merged (Chan et al.)."""
    number, w = locate(first_ptr, groups, steps, tl.program_id(0).to(tl.int64))
    group = group_ptr + number * M_FIELDS
    size = tl.load(group + M_SIZE)
    blocks, entries = tl.cdiv(size, OUTER), (size * size).to(tl.float32)
    statistics = floats(group + M_STATISTICS) + w * blocks * 4
    total, largest = tl.zeros((INNER,), tl.float32), tl.zeros((INNER,), tl.float32)
    for start in range(0, blocks.to(tl.int32), INNER):
        block = start + tl.arange(0, INNER)
        count = tl.load(statistics + block * 4, mask=block < blocks, other=0.0)
        total += count * tl.load(statistics + block * 4 + 1, mask=block < blocks, other=0.0)
        peak = tl.load(statistics + block * 4 + 3, mask=block < blocks, other=0.0)
        largest = tl.maximum(largest, peak)
    mean = tl.sum(total, 0) / entries
    squares = tl.zeros((INNER,), tl.float32)
    for start in range(0, blocks.to(tl.int32), INNER):
        block = start + tl.arange(0, INNER)
        count = tl.load(statistics + block * 4, mask=block < blocks, other=0.0)
        off = tl.load(statistics + block * 4 + 1, mask=block < blocks, other=0.0) - mean
        within = tl.load(statistics + block * 4 + 2, mask=block < blocks, other=0.0)
        squares += within + count * off * off
    deviation = tl.sqrt(tl.sum(squares, 0) / tl.maximum(entries - 1, 1.0))
    floor = 1e-6 * tl.max(largest, 0) + TINY
    temperature = tl.load(temperature_ptr)
    tl.store(floats(group + M_SCALE) + w, 1 / (temperature * tl.maximum(deviation, floor)))


@triton.jit
def column_max_kernel(
    first_ptr: tl.tensor,
    group_ptr: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """Column maxima of the logits after their row maxima are taken off; block = OUTER columns."""
    group, size, w, _, block = block_of(first_ptr, group_ptr, groups, steps, OUTER)
    units = size.to(tl.int32)
    j = block * OUTER + tl.arange(0, OUTER)
    matrix = floats(group + M_SIMILARITY) + w * size * size + j[None, :]
    scale = tl.load(floats(group + M_SCALE) + w)
    largest = tl.full((OUTER,), float("-inf"), tl.float32)
    for start in range(0, units, INNER):
        i = start + tl.arange(0, INNER)
        inside = (i[:, None] < units) & (j[None, :] < units)
        tile = tl.load(matrix + i[:, None] * size, mask=inside, other=0.0)
        row_max = tl.load(floats(group + M_ROW_MAX) + w * size + i, mask=i < units, other=0.0)
        logits = tl.where(inside, (tile - row_max[:, None]) * scale, float("-inf"))
        largest = tl.maximum(largest, tl.max(logits, 0))
    tl.store(floats(group + M_COLUMN_MAX) + w * size + j, largest, mask=j < units)


@triton.jit
def entries_of(
    group: tl.tensor, size: tl.tensor, w: tl.tensor, i: tl.tensor, j: tl.tensor
) -> tl.tensor:
    """Return `exp` of the shifted logits at rows i and columns j (one of them [., 1]), else 0."""
    inside = (i < size) & (j < size)
    entry = floats(group + M_SIMILARITY) + w * size * size + i * size + j
    similarity = tl.load(entry, mask=inside, other=0.0)
    row_max = tl.load(floats(group + M_ROW_MAX) + w * size + i, mask=i < size, other=0.0)
    column_max = tl.load(floats(group + M_COLUMN_MAX) + w * size + j, mask=j < size, other=0.0)
    logits = (similarity - row_max) * tl.load(floats(group + M_SCALE) + w) - column_max
    return tl.exp(tl.where(inside, logits, float("-inf")))


@triton.jit
def scaling_kernel(
    first_ptr: tl.tensor,
    group_ptr: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    COLUMNS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """Half an iteration: new scalings of OUTER rows (or columns) from those of the other side."""
    group, size, w, _, block = block_of(first_ptr, group_ptr, groups, steps, OUTER)
    units = size.to(tl.int32)
    mine = block * OUTER + tl.arange(0, OUTER)
    total = tl.zeros((OUTER,), tl.float32)
    for start in range(0, units, INNER):
        others = start + tl.arange(0, INNER)
        if COLUMNS:
            tile = entries_of(group, size, w, others[:, None], mine[None, :])
            weight = tl.load(floats(group + M_ROW) + w * size + others, others < units, other=0.0)
            total += tl.sum(tile * weight[:, None], 0)
        else:
            tile = entries_of(group, size, w, mine[:, None], others[None, :])
            column = floats(group + M_COLUMN) + w * size + others
            total += tl.sum(tile * tl.load(column, others < units, other=0.0)[None, :], 1)
    out = floats(group + M_COLUMN) if COLUMNS else floats(group + M_ROW)
    tl.store(out + w * size + mine, 1 / tl.where(mine < units, total, 1.0), mask=mine < units)


@triton.jit
def blend_kernel(
    first_ptr: tl.tensor,
    group_ptr: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    damping: tl.tensor,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """P moved towards the scaled matrix, OUTER rows."""
    group, size, w, _, block = block_of(first_ptr, group_ptr, groups, steps, OUTER)
    units = size.to(tl.int32)
    i = block * OUTER + tl.arange(0, OUTER)
    row = tl.load(floats(group + M_ROW) + w * size + i, mask=i < units, other=0.0)
    for start in range(0, units, INNER):
        j = start + tl.arange(0, INNER)
        column = tl.load(floats(group + M_COLUMN) + w * size + j, mask=j < units, other=0.0)
        tile = entries_of(group, size, w, i[:, None], j[None, :])
        inside = (i[:, None] < units) & (j[None, :] < units)
        soft_ptr = floats(group + M_SOFT) + w * size * size + i[:, None] * size + j[None, :]
        soft = tl.load(soft_ptr, mask=inside, other=0.0)
        moved = soft + damping * (tile * row[:, None] * column[None, :] - soft)
        tl.store(soft_ptr, moved, mask=inside)


class Streamed:
    """Prepared launches: tables uploaded, work vectors allocated."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Prepare S and P, float32 [b, n, n] each, checked by the caller."""
        device, rows = pairs[0][0].device, []
        self._work: list[Tensor] = []
        for s, p in pairs:
            batch, size = s.shape[:2]
            vectors = torch.empty(4, batch, size, device=device)
            statistics = torch.empty(batch, math.ceil(size / OUTER), 4, device=device)
            work = [*vectors, statistics, torch.empty(batch, device=device)]
            self._work += work
            rows.append(MatrixRow(size, batch, *(t.data_ptr() for t in (s, p, *work))))
        blocks = [len(s) * math.ceil(s.shape[1] / OUTER) for s, _ in pairs]
        self._columns = self._work[3::6]
        self._blocks = Table(blocks, rows, [], device)
        self._matrices = Table([len(s) for s, _ in pairs], rows, [], device)

    def launch(self, temperature: Tensor, damping: float, iterations: int) -> None:
        """Launch on torch's current stream, without waiting."""
        blocks, matrices = self._blocks, self._matrices
        grid, tile = (blocks.programs,), {"OUTER": OUTER, "INNER": INNER}
        options = {"num_warps": WARPS, "enable_fp_fusion": True}
        for column in self._columns:
            column.fill_(1)
        with on_device(blocks.first.device):
            statistics_kernel[grid](*blocks.arguments, **tile, **options)
            scale_kernel[(matrices.programs,)](*matrices.arguments, temperature, **tile, **options)
            column_max_kernel[grid](*blocks.arguments, **tile, **options)
            for _ in range(iterations):
                for columns in (False, True):
                    scaling_kernel[grid](*blocks.arguments, COLUMNS=columns, **tile, **options)
            blend_kernel[grid](*blocks.arguments, damping, **tile, **options)
