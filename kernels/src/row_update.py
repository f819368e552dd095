"""Row-distance costs from the matrices of parents that differ in a few places (Triton).

A hypothesis whose index vector of one other group differs from its parent's at m places has

    S' = S + sum_{k changed} A[:, k] (B[new_k] - B[old_k])^T,     C' = C - 2 (S' - S).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu_align._errors import InputError

from ._descriptors import (
    P_BATCH,
    P_CHANGES,
    P_FIELDS,
    P_FIRST_TERM,
    P_LAST_TERM,
    P_MODEL,
    P_OUT,
    P_PARENT,
    P_PARENT_INDEX,
    P_SIZE,
    T_BEFORE,
    T_BEFORE_STEP,
    T_FIELDS,
    T_INNER,
    T_LENGTH,
    T_PLACES,
    T_PLACES_STEP,
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
    check_matrices,
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
    read_index,
    tile_of,
)
from ._rows import (
    PackedTerm,
    RowProblem,
    check_index,
)
from ._tiles import (
    UPDATE_TILES,
    Tile,
)

__all__ = ["RowDistanceUpdate", "RowUpdate", "row_distance_update"]


@dataclass(frozen=True)
class RowUpdate:
    """Hypotheses that differ from their parents in some places of one other group.

    Attributes:
        problem: the hypotheses, at their own index vectors; signs are always understood.
        parent: float32 [p, n, n], the parents' matrices.
        parent_index: int64 [b], the parent of each hypothesis.
        moved: the group in which they differ.
        before: int64 [b, units], index vector of `moved` in the parent of each hypothesis.
    """

    problem: RowProblem
    parent: Tensor
    parent_index: Tensor
    moved: str
    before: Tensor

    def __post_init__(self) -> None:
        rows, batch = self.problem.rows, len(self.problem.model)
        shape = (len(self.parent), rows.size, rows.size)
        check_matrices("parent", self.parent, shape, rows.device)
        check_index("parent_index", self.parent_index, (batch,), rows.device)
        if self.moved not in self.problem.perms:
            raise InputError(f"expected 'moved' to name another group, got {self.moved!r}")
        units = self.problem.perms[self.moved].shape[1]
        check_index("before", self.before, (batch, units), rows.device)
        for term in rows.terms:
            times = term.others.count(self.moved)
            if times > 1 or (times and len(term.others) > 2):
                raise InputError(
                    f"expected {self.moved!r} once among at most two other groups of a term, got "
                    f"{term.others}; compute the matrix anew with row_distance"
                )


@triton.jit
def row_update_kernel(
    first_ptr: tl.tensor,
    problem_ptr: tl.tensor,
    problems: tl.tensor,
    steps: tl.tensor,
    term_ptr: tl.tensor,
    scale: tl.tensor,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One tile of the parent's matrix plus what the changed places of one group change."""
    number, local = locate(first_ptr, problems, steps, tl.program_id(0).to(tl.int64))
    problem = problem_ptr + number * P_FIELDS
    size, batch = tl.load(problem + P_SIZE), tl.load(problem + P_BATCH)
    w, i, j = tile_of(local, size, batch, BLOCK_M, BLOCK_N)
    model = tl.load(tl.load(problem + P_MODEL).to(tl.pointer_type(tl.int64)) + w)
    count = tl.load(tl.load(problem + P_CHANGES).to(tl.pointer_type(tl.int64)) + w)
    units = size.to(tl.int32)
    padded = tl.multiple_of((units + 15) // 16 * 16, 16)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for t in range(tl.load(problem + P_FIRST_TERM), tl.load(problem + P_LAST_TERM)):
        term = term_ptr + t * T_FIELDS
        length, inner = tl.load(term + T_LENGTH), tl.load(term + T_INNER).to(tl.int32)
        a_stride = tl.load(term + T_TARGET_STRIDE)
        b_stride = tl.multiple_of(tl.load(term + T_SOURCE_STRIDE), 16)
        a_ptr = tl.load(term + T_TARGET).to(tl.pointer_type(DTYPE)) + i[:, None] * a_stride
        b_ptr = tl.multiple_of(tl.load(term + T_SOURCE).to(tl.pointer_type(DTYPE)), 16)
        b_ptr += model * length * b_stride + j[None, :]
        u_stride, v_stride = tl.load(term + T_U_STRIDE), tl.load(term + T_V_STRIDE)
        v_size = tl.load(term + T_V_SIZE).to(tl.int32)
        u_ptr = tl.load(term + T_U).to(tl.pointer_type(tl.int64)) + w * tl.load(term + T_U_STEP)
        v_ptr = tl.load(term + T_V).to(tl.pointer_type(tl.int64)) + w * tl.load(term + T_V_STEP)
        before_ptr = tl.load(term + T_BEFORE).to(tl.pointer_type(tl.int64))
        before_ptr += w * tl.load(term + T_BEFORE_STEP)
        places_ptr = tl.load(term + T_PLACES).to(tl.pointer_type(tl.int64))
        places_ptr += w * tl.load(term + T_PLACES_STEP)
        changed = count.to(tl.int32) * v_size * inner
        for start in range(0, changed, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            inside = k < changed
            unit = k // inner
            place = tl.load(places_ptr + unit // v_size, mask=inside, other=0)
            new, new_sign = read_index(u_ptr, place, inside, True)
            old, old_sign = read_index(before_ptr, place, inside, True)
            v, v_sign = read_index(v_ptr, unit % v_size, inside, True)
            column = place * u_stride + (unit % v_size) * v_stride + k % inner
            rest = v * v_stride + k % inner
            a_mask = (i[:, None] < units) & inside[None, :]
            b_mask = inside[:, None] & (j[None, :] < padded)
            a = tl.load(a_ptr + column[None, :], mask=a_mask, other=0.0).to(tl.float32)
            new_row, old_row = new * u_stride + rest, old * u_stride + rest
            b_new = tl.load(b_ptr + new_row[:, None] * b_stride, mask=b_mask, other=0.0)
            b_old = tl.load(b_ptr + old_row[:, None] * b_stride, mask=b_mask, other=0.0)
            b = b_new.to(tl.float32) * (v_sign * new_sign)[:, None]
            b -= b_old.to(tl.float32) * (v_sign * old_sign)[:, None]
            total = tl.dot(a, b, total, input_precision=PRECISION)
    wanted = (i[:, None] < units) & (j[None, :] < units)
    position = i[:, None] * size + j[None, :]
    parent = tl.load(tl.load(problem + P_PARENT_INDEX).to(tl.pointer_type(tl.int64)) + w)
    parent_ptr = tl.load(problem + P_PARENT).to(tl.pointer_type(tl.float32))
    before = tl.load(parent_ptr + parent * size * size + position, mask=wanted, other=0.0)
    out = tl.load(problem + P_OUT).to(tl.pointer_type(tl.float32)) + w * size * size
    tl.store(out + position, before + scale * total, mask=wanted)


class RowDistanceUpdate:
    """A prepared launch of updates.

    Attributes:
        out: float32 [b, n, n] of each update.
    """

    def __init__(
        self,
        updates: Sequence[RowUpdate],
        *,
        cost: bool = False,
        out: Sequence[Tensor] | None = None,
        tile: Tile | None = None,
    ) -> None:
        """See `row_distance_update`."""
        problems = [update.problem for update in updates]
        self.out = outputs(problems, out)
        self._updates, self._scale = tuple(updates), -2.0 if cost else 1.0
        if not updates:
            return
        device, self._dtype = problems[0].rows.device, problems[0].rows.dtype
        self._tile = tile or UPDATE_TILES[self._dtype]
        self._held: list[Tensor] = [torch.zeros(1, dtype=torch.int64, device=device)]
        rows: list[ProblemRow] = []
        terms: list[TermRow] = []
        for update, matrix in zip(updates, self.out, strict=True):
            changed = update.before != update.problem.perms[update.moved]
            count = changed.sum(1)
            places = changed.to(torch.int8).argsort(dim=1, descending=True, stable=True)
            self._held += [count, places]
            first = len(terms)
            for term in update.problem.rows.terms:
                if update.moved in term.others:
                    terms.append(self._term(term, update, places))
            parents = {
                "parent": update.parent.data_ptr(),
                "parent_index": update.parent_index.data_ptr(),
                "changes": count.data_ptr(),
            }
            rows.append(problem_row(update.problem, matrix, first, len(terms), **parents))
        self._table = Table(programs_of(problems, self._tile), rows, terms, device)

    def launch(self) -> list[Tensor]:
        """Launch on torch's current stream, without waiting, and return `out`."""
        if self._updates and self._table.programs:
            table = self._table
            with on_device(table.first.device):
                row_update_kernel[(table.programs,)](
                    *table.arguments,
                    table.details,
                    self._scale,
                    DTYPE=TRITON_DTYPES[self._dtype],
                    **self._tile.options(),
                )
        return self.out

    def _term(self, term: PackedTerm, update: RowUpdate, places: Tensor) -> TermRow:
        place, perms = term.others.index(update.moved), update.problem.perms
        strides = [math.prod(term.sizes[n + 1 :]) * term.inner for n in range(len(term.sizes))]
        v, v_size, v_stride = self._held[0].expand(len(places), 1), 1, 0
        if len(term.others) == 2:
            other = 1 - place
            v, v_size, v_stride = perms[term.others[other]], term.sizes[other], strides[other]
        u = perms[update.moved]
        return term_row(term, (u, v), (strides[place], v_stride), v_size, update.before, places)


def row_distance_update(
    updates: Sequence[RowUpdate],
    *,
    cost: bool = False,
    out: Sequence[Tensor] | None = None,
    tile: Tile | None = None,
) -> list[Tensor]:
    """Compute what `row_distance` gives from the matrices of the parents and m changed places.

    Args:
        updates: of one dtype and device.
        cost: whether the parents' matrices are costs and not similarities.
        out: float32 [b, n, n], contiguous, not the parents' memory; default new memory.
        tile: default by the table of `_tiles.py`.

    Returns:
        float32 [b, n, n] of each update.

    Raises:
        InputError: as `row_distance`; a term in which the moved group is not one of at most two
            other groups, once.
    """
    return RowDistanceUpdate(updates, cost=cost, out=out, tile=tile).launch()
