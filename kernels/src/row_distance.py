"""Row-distance costs of many groups and hypotheses in one launch, the gather fused (Triton).

For hypothesis w of a group, with the index vectors pi_w of the other groups,

    S[w, i, j] = sum_t <A_t[i], (pi_w B_t)[j]>,     C[w, i, j] = |a_i|^2 + |b_j|^2 - 2 S[w, i, j].

kernels/README.md has the memory layout, the limits and what has been measured.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._descriptors import (
    P_ACTIVE,
    P_BATCH,
    P_FIELDS,
    P_FIRST_TERM,
    P_LAST_TERM,
    P_MODEL,
    P_OUT,
    P_SIZE,
    P_SOURCE_NORM,
    P_TARGET_NORM,
    P_UNARY,
    P_UNARY_STEP,
    T_FIELDS,
    T_INNER,
    T_LENGTH,
    T_SOURCE,
    T_SOURCE_STRIDE,
    T_TARGET,
    T_TARGET_STRIDE,
    T_U,
    T_U_STEP,
    T_U_STRIDE,
    T_V,
    T_V_SIZE,
    T_V_STEP,
    T_V_STRIDE,
    ProblemRow,
    TermRow,
    fold,
    outputs,
    problem_row,
    programs_of,
    term_row,
)
from ._launch import (
    TRITON_DTYPES,
    Table,
    locate,
    on_device,
    processors,
    read_index,
    tile_of,
)
from ._rows import (
    PackedTerm,
    RowProblem,
    RowTerm,
    pack_rows,
)
from ._tiles import (
    Tile,
    choose_tile,
)

__all__ = [
    "RowDistance",
    "RowProblem",
    "RowTerm",
    "Tile",
    "pack_rows",
    "row_distance",
]


@triton.jit
def row_distance_kernel(
    first_ptr: tl.tensor,
    problem_ptr: tl.tensor,
    problems: tl.tensor,
    steps: tl.tensor,
    term_ptr: tl.tensor,
    cost: tl.tensor,
    DTYPE: tl.constexpr,
    SIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One tile of S or C of one hypothesis of one problem, over all terms."""
    number, local = locate(first_ptr, problems, steps, tl.program_id(0).to(tl.int64))
    problem = problem_ptr + number * P_FIELDS
    size, batch = tl.load(problem + P_SIZE), tl.load(problem + P_BATCH)
    w, i, j = tile_of(local, size, batch, BLOCK_M, BLOCK_N)
    active = tl.load(problem + P_ACTIVE)
    if active != 0:
        if tl.load(active.to(tl.pointer_type(tl.int64)) + w) == 0:
            return
    model = tl.load(tl.load(problem + P_MODEL).to(tl.pointer_type(tl.int64)) + w)
    units = size.to(tl.int32)
    padded = tl.multiple_of((units + 15) // 16 * 16, 16)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for t in range(tl.load(problem + P_FIRST_TERM), tl.load(problem + P_LAST_TERM)):
        term = term_ptr + t * T_FIELDS
        length, inner = tl.load(term + T_LENGTH), tl.load(term + T_INNER).to(tl.int32)
        a_stride = tl.multiple_of(tl.load(term + T_TARGET_STRIDE), 16)
        padded_length = tl.multiple_of(a_stride.to(tl.int32), 16)
        b_stride = tl.multiple_of(tl.load(term + T_SOURCE_STRIDE), 16)
        a_ptr = tl.load(term + T_TARGET).to(tl.pointer_type(DTYPE))
        b_ptr = tl.load(term + T_SOURCE).to(tl.pointer_type(DTYPE))
        a_ptr = tl.multiple_of(a_ptr, 16) + i[:, None] * a_stride
        b_ptr = tl.multiple_of(b_ptr, 16) + model * length * b_stride + j[None, :]
        u_stride, v_stride = tl.load(term + T_U_STRIDE), tl.load(term + T_V_STRIDE)
        v_size = tl.load(term + T_V_SIZE).to(tl.int32)
        u_ptr = tl.load(term + T_U).to(tl.pointer_type(tl.int64)) + w * tl.load(term + T_U_STEP)
        v_ptr = tl.load(term + T_V).to(tl.pointer_type(tl.int64)) + w * tl.load(term + T_V_STEP)
        for start in range(0, length.to(tl.int32), BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            inside = k < length
            unit = k // inner
            u, u_sign = read_index(u_ptr, unit // v_size, inside, SIGNED)
            v, v_sign = read_index(v_ptr, unit % v_size, inside, SIGNED)
            row = u * u_stride + v * v_stride + k % inner
            a_mask = (i[:, None] < units) & (k[None, :] < padded_length)
            b_mask = inside[:, None] & (j[None, :] < padded)
            a = tl.load(a_ptr + k[None, :], mask=a_mask, other=0.0)
            b = tl.load(b_ptr + row[:, None] * b_stride, mask=b_mask, other=0.0)
            if SIGNED:
                a = a * (u_sign * v_sign)[None, :].to(DTYPE)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    wanted = (i[:, None] < units) & (j[None, :] < units)
    unary = tl.load(problem + P_UNARY)
    if unary != 0:
        u_ptr = unary.to(tl.pointer_type(tl.float32)) + model * tl.load(problem + P_UNARY_STEP)
        total += tl.load(u_ptr + i[:, None] * size + j[None, :], mask=wanted, other=0.0)
    if cost != 0:
        a_norm = tl.load(problem + P_TARGET_NORM).to(tl.pointer_type(tl.float32)) + i
        b_norm = tl.load(problem + P_SOURCE_NORM).to(tl.pointer_type(tl.float32)) + j
        a_norm = tl.load(a_norm, mask=i < units, other=0.0)
        b_norm = tl.load(b_norm + model * size, mask=j < units, other=0.0)
        total = a_norm[:, None] + b_norm[None, :] - 2 * total
    out = tl.load(problem + P_OUT).to(tl.pointer_type(tl.float32)) + w * size * size
    tl.store(out + i[:, None] * size + j[None, :], total, mask=wanted)


class RowDistance:
    """A prepared launch of the cost or similarity of many groups: table uploaded, memory held.

    Index vectors may be overwritten in place between launches, as in a CUDA graph, which captures
    `launch` only.

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
        self._problems, self._cost = tuple(problems), cost
        self._signed = any(problem.signed for problem in problems)
        if not problems:
            return
        device, self._dtype = problems[0].rows.device, problems[0].rows.dtype
        sizes = [(problem.rows.size, len(problem.model)) for problem in problems]
        self._tile = tile or choose_tile(sizes, self._dtype, processors(device))
        self._held: list[Tensor] = [torch.zeros(1, dtype=torch.int64, device=device)]
        rows: list[ProblemRow] = []
        terms: list[TermRow] = []
        for problem, matrix in zip(problems, self.out, strict=True):
            first = len(terms)
            terms += [self._term(term, problem) for term in problem.rows.terms]
            rows.append(problem_row(problem, matrix, first, len(terms)))
        self._table = Table(programs_of(problems, self._tile), rows, terms, device)

    def launch(self) -> list[Tensor]:
        """Launch on torch's current stream, without waiting, and return `out`."""
        if self._problems and self._table.programs:
            table, tile = self._table, self._tile
            with on_device(table.first.device):
                row_distance_kernel[(table.programs,)](
                    *table.arguments,
                    table.details,
                    int(self._cost),
                    DTYPE=TRITON_DTYPES[self._dtype],
                    SIGNED=self._signed,
                    **tile.options(),
                )
        return self.out

    def _term(self, term: PackedTerm, problem: RowProblem) -> TermRow:
        indices = [problem.perms[group] for group in term.others]
        sizes = list(term.sizes)
        if len(indices) > 2:
            indices, sizes = [indices[0], fold(indices[1:])], [sizes[0], math.prod(sizes[1:])]
        missing = 2 - len(indices)
        v_size = sizes[1] if not missing else 1
        indices += [self._held[0].expand(len(problem.model), 1)] * missing
        self._held += indices
        u, v = indices
        return term_row(term, (u, v), (v_size * term.inner, term.inner), v_size)


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
        out: float32 [b, n, n], contiguous, one per problem; default new memory.
        tile: default by the table of `_tiles.py`.

    Returns:
        float32 [b, n, n] of each problem. Products are accumulated in float32.

    Raises:
        InputError: problems that do not fit together, or `out` of another shape.

    Source: equation of section 3.2 of Ainsworth et al., Git Re-Basin (ICLR 2023).
    """
    return RowDistance(problems, cost=cost, out=out, tile=tile).launch()
