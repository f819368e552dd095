"""Row-distance costs of many groups and hypotheses in one launch, the gather fused (Triton).

For hypothesis w of a group, with the index vectors pi_w of the other groups and U its unary part,

    S[w, i, j] = U[i, j] + sum_t <A_t[i], (pi_w B_t)[j]>,
    C[w, i, j] = |a_i|^2 + |b_j|^2 - 2 S[w, i, j].

kernels/README.md has the memory layout, the limits and what has been measured.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _descriptors as at
from ._descriptors import ProblemRow, TermRow, fold, outputs, problem_row, term_row
from ._launch import TRITON_DTYPES, Launch, Table, architecture, locate, processors
from ._row_terms import add_term, tile_of
from ._tiles import Tile, Work, choose_tile, split
from .rows import PackedTerm, RowProblem, RowTerm, pack_rows

__all__ = [
    "RowDistance",
    "RowProblem",
    "RowTerm",
    "Tile",
    "pack_rows",
    "row_distance",
]


@triton.jit
def finish(
    total: tl.tensor,
    problem: tl.tensor,
    w: tl.tensor,
    model: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    size: tl.tensor,
    cost: tl.tensor,
) -> None:
    """Add the unary part to a tile of the products, make it the cost if wanted, write it."""
    wanted = (i[:, None] < size) & (j[None, :] < size)
    position = i[:, None] * size + j[None, :]
    unary_ptr = tl.load(problem + at.P_UNARY)
    if unary_ptr != 0:
        step = tl.load(problem + at.P_UNARY_STEP)
        unary = unary_ptr.to(tl.pointer_type(tl.float32)) + model * step
        total += tl.load(unary + position, mask=wanted, other=0.0)
    if cost != 0:
        a_norm = tl.load(problem + at.P_TARGET_NORM).to(tl.pointer_type(tl.float32)) + i
        b_norm = tl.load(problem + at.P_SOURCE_NORM).to(tl.pointer_type(tl.float32)) + j
        a_norm = tl.load(a_norm, mask=i < size, other=0.0)
        b_norm = tl.load(b_norm + model * size, mask=j < size, other=0.0)
        total = a_norm[:, None] + b_norm[None, :] - 2 * total
    out = tl.load(problem + at.P_OUT).to(tl.pointer_type(tl.float32)) + w * size * size
    tl.store(out + position, total, mask=wanted)


@triton.jit
def is_active(problem: tl.tensor, w: tl.tensor) -> tl.tensor:
    """Say whether a hypothesis is to be computed."""
    active_ptr = tl.load(problem + at.P_ACTIVE)
    active = active_ptr == 0
    if active_ptr != 0:
        active = tl.load(active_ptr.to(tl.pointer_type(tl.int64)) + w) != 0
    return active


@triton.jit(do_not_specialize=["problems", "steps", "cost"])
def row_distance_kernel(
    first_ptr: tl.tensor,
    problem_ptr: tl.tensor,
    problems: tl.tensor,
    steps: tl.tensor,
    term_ptr: tl.tensor,
    part_ptr: tl.tensor,
    arrived_ptr: tl.tensor,
    cost: tl.tensor,
    DTYPE: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One tile of S or C of one hypothesis of one problem, over all terms or a chunk of them.

    The chunks of a tile write their sums to `part_ptr`, and the last to arrive adds them in their
    order, so that the sum does not depend on which it was. `arrived_ptr` counts them, from 0 to 0.
    Hypotheses run fastest: neighbours read the same rows of A and the same columns of B.
    """
    number, local = locate(first_ptr, problems, steps, tl.program_id(0).to(tl.int64))
    problem = problem_ptr + number * at.P_FIELDS
    size = tl.load(problem + at.P_SIZE)
    units, batch = size.to(tl.int32), tl.load(problem + at.P_BATCH).to(tl.int32)
    chunks = tl.load(problem + at.P_CHUNKS).to(tl.int32)
    chunk_steps = tl.load(problem + at.P_CHUNK).to(tl.int32)
    tiles = batch * tl.cdiv(units, BLOCK_M) * tl.cdiv(units, BLOCK_N)
    chunk, place = local.to(tl.int32) // tiles, local.to(tl.int32) % tiles
    tile, w = place // batch, (place % batch).to(tl.int64)
    if not is_active(problem, w):
        return
    i, j = tile_of(tile, units, BLOCK_M, BLOCK_N)
    model = tl.load(tl.load(problem + at.P_MODEL).to(tl.pointer_type(tl.int64)) + w)
    padded = tl.multiple_of((units + 15) // 16 * 16, 16)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    before = chunk * chunk_steps
    for t in range(tl.load(problem + at.P_FIRST_TERM), tl.load(problem + at.P_LAST_TERM)):
        term = term_ptr + t * at.T_FIELDS
        term_steps = tl.cdiv(tl.load(term + at.T_LENGTH), BLOCK_K).to(tl.int32)
        begin = tl.minimum(tl.maximum(before, 0), term_steps)
        end = tl.minimum(tl.maximum(before + chunk_steps, 0), term_steps)
        before -= term_steps
        total = add_term(
            total, term, w, model, i, j, units, padded, begin, end,
            DTYPE, PLANES, PRECISION, BLOCK_K,
        )  # fmt: skip
    if chunks > 1:
        slot = tl.load(problem + at.P_PART) + place.to(tl.int64) * chunks
        within = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        part = part_ptr + slot * (BLOCK_M * BLOCK_N) + within
        tl.store(part + chunk * (BLOCK_M * BLOCK_N), total)
        tl.debug_barrier()  # all threads have written before one of them says so
        if tl.atomic_add(arrived_ptr + slot, 1) < chunks - 1:
            return
        tl.store(arrived_ptr + slot, 0)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for c in range(chunks):
            total += tl.load(part + c * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
    finish(total, problem, w, model, i, j, size, cost)


class RowDistance:
    """A prepared launch of the cost or similarity of many groups: table uploaded, memory held.

    Index vectors, `active` and unary parts may be overwritten in place between launches, as in a
    CUDA graph, which captures `launch` only; not the index vectors of terms of four groups, two of
    which are made one here. Launches of one object must not overlap in time.

    Attributes:
        out: float32 [b, n, n] of each problem.
    """

    def __init__(
        self,
        problems: Sequence[RowProblem],
        *,
        cost: bool = False,
        out: Sequence[Tensor] | None = None,
        tile: Tile | None = None,
    ) -> None:
        """See `row_distance`."""
        self.out = outputs(problems, out)
        self._launch: Launch | None = None
        work = [work_of(problem) for problem in problems]
        if not any(load.batch and load.units for load in work):
            return
        rows = problems[0].rows
        count = processors(rows.device)
        tile = tile or choose_tile(work, rows.planes, count, architecture(rows.device))
        chunks = split(work, tile, count)
        self._held: list[object] = list(problems)
        table, parts = self._table(problems, work, chunks, tile)
        scratch = torch.empty(parts * tile.rows * tile.columns, device=rows.device)
        arrived = torch.zeros(parts, dtype=torch.int32, device=rows.device)
        constants = {
            "DTYPE": TRITON_DTYPES[rows.dtype],
            "PLANES": rows.planes,
            **tile.constants(),
        }
        arguments = (*table.arguments, table.details, scratch, arrived, int(cost))
        self._launch = Launch(
            row_distance_kernel,
            table.programs,
            arguments,
            constants,
            tile.options(),
            rows.device,
        )

    def launch(self) -> list[Tensor]:
        """Launch on torch's current stream, without waiting, and return `out`."""
        if self._launch is not None:
            self._launch()
        return self.out

    def _table(
        self,
        problems: Sequence[RowProblem],
        work: Sequence[Work],
        chunks: Sequence[tuple[int, int]],
        tile: Tile,
    ) -> tuple[Table, int]:
        """Return the table, and how many sums of chunks there are."""
        programs: list[int] = []
        rows: list[ProblemRow] = []
        terms: list[TermRow] = []
        parts = 0
        for problem, matrix, load, (count, steps) in zip(
            problems, self.out, work, chunks, strict=True
        ):
            first = len(terms)
            terms += [self._term(term, problem) for term in problem.rows.terms]
            rows.append(problem_row(problem, matrix, (first, len(terms)), (count, steps), parts))
            programs.append(load.tiles(tile) * count)
            parts += programs[-1] if count > 1 else 0
        return Table(programs, rows, terms, problems[0].rows.device), parts

    def _term(self, term: PackedTerm, problem: RowProblem) -> TermRow:
        indices = [problem.perms[group] for group in term.others]
        sizes = list(term.sizes)
        if len(indices) > 2:
            indices, sizes = [indices[0], fold(indices[1:])], [sizes[0], math.prod(sizes[1:])]
        self._held += indices
        return term_row(term, problem.rows.signed, indices, sizes)


def work_of(problem: RowProblem) -> Work:
    """Return what the tiles of a problem are chosen by."""
    lengths = tuple(term.length for term in problem.rows.terms)
    return Work(problem.rows.size, len(problem.model), lengths)


def row_distance(
    problems: Sequence[RowProblem],
    *,
    cost: bool = False,
    out: Sequence[Tensor] | None = None,
    tile: Tile | None = None,
) -> list[Tensor]:
    """Compute the similarity S, or the row-distance cost C, of many groups in one launch.

    Args:
        problems: groups with their hypotheses, of one dtype and device; n, b and terms may differ.
        cost: return C instead of S.
        out: float32 [b, n, n], contiguous, one per problem; default new memory, which hypotheses
            that are not active leave as it is.
        tile: default by the table of `_tiles.py`.

    Returns:
        float32 [b, n, n] of each problem. Products are accumulated in float32.

    Raises:
        InputError: problems that do not fit together, or `out` of another shape.

    Source: equation of section 3.2 of Ainsworth et al., Git Re-Basin (ICLR 2023).
    """
    return RowDistance(problems, cost=cost, out=out, tile=tile).launch()
