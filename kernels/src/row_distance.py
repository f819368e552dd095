"""The similarity of one group, for many hypotheses, the gather fused (Triton).

For hypothesis w of a group, with the index vectors pi_w of the other groups and U its unary part,

    S[w, i, j] = U[i, j] + sum_t <A_t[i], (pi_w B_t)[j]>,

which the distances of rows are made of: `|a_i - b_j|^2 = |a_i|^2 + |b_j|^2 - 2 S[w, i, j]`.
kernels/README.md has the memory layout, the limits and what has been measured.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _descriptors as at
from ._descriptors import TermRow, check_matrices, problem_row, term_row
from ._launch import TRITON_DTYPES, Launch, Table, architecture, processors
from ._row_terms import add_term, tile_of
from ._tiles import Tile, Work, choose_tile, split
from .rows import PackedTerm, RowProblem, RowTerm, fold, pack_rows

__all__ = [
    "RowDistance",
    "RowProblem",
    "RowTerm",
    "Tile",
    "pack_rows",
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
) -> None:
    """Add the unary part to a tile of the products and write it."""
    units = size.to(tl.int32)
    wanted = (i[:, None] < units) & (j[None, :] < units)
    position = i[:, None] * size + j[None, :]
    unary_ptr = tl.load(problem + at.P_UNARY)
    if unary_ptr != 0:
        step = tl.load(problem + at.P_UNARY_STEP)
        unary = unary_ptr.to(tl.pointer_type(tl.float32)) + model * step
        total += tl.load(unary + position, mask=wanted, other=0.0)
    out_ptr = tl.load(problem + at.P_OUT)
    if out_ptr != 0:  # it never is; without a branch here the largest tile spills on sm_90
        out = out_ptr.to(tl.pointer_type(tl.float32)) + w * size * size
        tl.store(out + position, total, mask=wanted)


@triton.jit
def is_active(problem: tl.tensor, w: tl.tensor) -> tl.tensor:
    """Say whether a hypothesis is to be computed."""
    active_ptr = tl.load(problem + at.P_ACTIVE)
    active = active_ptr == 0
    if active_ptr != 0:
        active = tl.load(active_ptr.to(tl.pointer_type(tl.int64)) + w) != 0
    return active


@triton.jit
def row_distance_kernel(
    problem: tl.tensor,
    term_ptr: tl.tensor,
    part_ptr: tl.tensor,
    arrived_ptr: tl.tensor,
    DTYPE: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One tile of S of one hypothesis, over all terms or a chunk of them.

    The chunks of a tile write their sums to `part_ptr`, and the last to arrive adds them in their
    order, so that the sum does not depend on which it was. `arrived_ptr` counts them, from 0 to 0.
    Hypotheses run fastest: neighbours read the same rows of A and the same columns of B.
    """
    size = tl.load(problem + at.P_SIZE)
    units, batch = size.to(tl.int32), tl.load(problem + at.P_BATCH).to(tl.int32)
    chunks = tl.load(problem + at.P_CHUNKS).to(tl.int32)
    chunk_steps = tl.load(problem + at.P_CHUNK).to(tl.int32)
    tiles = batch * tl.cdiv(units, BLOCK_M) * tl.cdiv(units, BLOCK_N)
    chunk, place = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    tile, w = place // batch, (place % batch).to(tl.int64)
    if not is_active(problem, w):
        return
    i, j = tile_of(tile, units, BLOCK_M, BLOCK_N)
    model = tl.load(tl.load(problem + at.P_MODEL).to(tl.pointer_type(tl.int64)) + w)
    padded = tl.multiple_of((units + 15) // 16 * 16, 16)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    before = chunk * chunk_steps
    for t in range(tl.load(problem + at.P_TERMS)):
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
        slot = place.to(tl.int64) * chunks
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
    finish(total, problem, w, model, i, j, size)


class RowDistance:
    """A prepared launch of the similarity of one group: table uploaded, memory held.

    Index vectors, `active` and unary parts may be overwritten in place between launches, as in a
    CUDA graph, which captures `launch` only; not the index vectors of terms of four groups, two of
    which are made one here. Launches of one object must not overlap in time.

    Attributes:
        out: float32 [b, n, n].
    """

    def __init__(
        self,
        problem: RowProblem,
        *,
        out: Tensor | None = None,
        tile: Tile | None = None,
        chunks: tuple[int, int] | None = None,
    ) -> None:
        """Prepare the launch.

        Args:
            problem: the group with its hypotheses.
            out: float32 [b, n, n], contiguous; default new memory, which hypotheses that are not
                active leave as it is.
            tile: default by the table of `_tiles.py`.
            chunks: of the rows of a tile, how many and of how many steps; default by `split`.

        Raises:
            InputError: `out` of another shape, rows that are too long.
        """
        rows, work = problem.rows, work_of(problem)
        shape = (work.batch, work.units, work.units)
        self.out = torch.empty(shape, device=rows.device) if out is None else out
        check_matrices("out", self.out, shape, rows.device)
        self._launch: Launch | None = None
        if not work.batch or not work.units:
            return
        count = processors(rows.device)
        tile = tile or choose_tile(work, rows.planes, count, architecture(rows.device))
        chunks = chunks or split(work, tile, count)
        programs = work.tiles(tile) * chunks[0]
        self._held: list[object] = [problem]
        terms = [self._term(term, problem) for term in rows.terms]
        row = problem_row(problem, self.out, chunks)
        table = Table([programs], [row], terms, rows.device)
        parts = programs if chunks[0] > 1 else 0
        scratch = torch.empty(parts * tile.rows * tile.columns, device=rows.device)
        arrived = torch.zeros(parts, dtype=torch.int32, device=rows.device)
        constants = {
            "DTYPE": TRITON_DTYPES[rows.dtype],
            "PLANES": rows.planes,
            **tile.constants(),
        }
        self._launch = Launch(
            row_distance_kernel,
            programs,
            (table.problems, table.details, scratch, arrived),
            constants,
            tile.options(),
            rows.device,
        )

    def launch(self) -> Tensor:
        """Launch on torch's current stream, without waiting, and return `out`.

        Products are accumulated in float32.
        """
        if self._launch is not None:
            self._launch()
        return self.out

    def _term(self, term: PackedTerm, problem: RowProblem) -> TermRow:
        indices = [problem.perms[group] for group in term.others]
        sizes = list(term.sizes)
        if len(indices) > 2:
            indices, sizes = [indices[0], fold(indices[1:])], [sizes[0], math.prod(sizes[1:])]
        self._held += indices
        return term_row(term, indices, sizes, signed=problem.rows.signed)


def work_of(problem: RowProblem) -> Work:
    """Return what the tiles of a launch are chosen by."""
    lengths = tuple(term.length for term in problem.rows.terms)
    return Work(problem.rows.size, len(problem.model), lengths)
