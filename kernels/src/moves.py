"""What a descent notes around the assignments of one group, for all hypotheses at once (Triton).

`Select` says which hypotheses look at the group now, `Accept` moves those that gain. Between the
two lie the similarity and the assignment; nothing of it is read by the host.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Launch

__all__ = ["Accept", "Batch", "Move", "Select"]

HYPOTHESES = 128
BLOCKS = {32: 1, 256: 4}
LARGEST = (1024, 8)
"""Places read at a time -> warps, for groups of up to so many units; and for all larger ones."""

_COUNTS = ("batch", "groups", "number", "size", "neighbours")
"""Integers that change from group to group: no variant is compiled for their values."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Hypotheses on their way down; all but the tolerance is written to.

    Attributes:
        objective: float64 [b].
        tolerance: float64 [b], the gain that a move must exceed.
        stale: uint8 [b, groups], contiguous; which groups are to be looked at.
        active: int64 [b], the size of the problem that a hypothesis has now, 0 where it has none.
        code: int64 [1], the largest code of a failed assignment.
    """

    objective: Tensor
    tolerance: Tensor
    stale: Tensor
    active: Tensor
    code: Tensor

    def part(self, first: int, last: int) -> "Batch":
        """Return the hypotheses from `first` to `last`, on the same memory."""
        here = slice(first, last)
        vectors = (self.objective[here], self.tolerance[here], self.stale[here], self.active[here])
        return Batch(*vectors, self.code)


@dataclass(frozen=True, eq=False)
class Move:
    """One group of c hypotheses.

    Attributes:
        batch: these hypotheses.
        similarity: float32 [c, n, n], contiguous.
        signed: the same of the signed matrix, or None.
        perm: int64 [c, n], contiguous; where the group is; overwritten.
        signed_perm: the same with signs, or None.
        col_dual: float64 [c, n], contiguous; duals of the last assignment, overwritten.
        neighbours: int64 [k], the groups that are stale after a move.
    """

    batch: Batch
    similarity: Tensor
    signed: Tensor | None
    perm: Tensor
    signed_perm: Tensor | None
    col_dual: Tensor
    neighbours: Tensor


@triton.jit(do_not_specialize=_COUNTS)
def select_kernel(
    chosen_ptr: tl.tensor,
    number: tl.tensor,
    size: tl.tensor,
    stale_ptr: tl.tensor,
    active_ptr: tl.tensor,
    batch: tl.tensor,
    groups: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Hypotheses are active where they are chosen and the group is stale, which then it is not."""
    w = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = w < batch
    chosen = tl.load(chosen_ptr + w, mask=inside, other=0) != 0
    stale = tl.load(stale_ptr + w * groups + number, mask=inside, other=0) != 0
    tl.store(active_ptr + w, tl.where(chosen & stale, size, 0).to(tl.int64), mask=inside)
    tl.store(stale_ptr + w * groups + number, 0, mask=inside & chosen)


@triton.jit
def signed_entry(
    matrix_ptr: tl.tensor, i: tl.tensor, size: tl.tensor, perm: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Return the entries that a permutation in one-line notation picks, in float64."""
    unit = tl.where(perm < 0, ~perm, perm)
    entry = tl.load(matrix_ptr + i * size + unit, mask=inside, other=0.0)
    return tl.where(perm < 0, -entry, entry).to(tl.float64)


@triton.jit(do_not_specialize=_COUNTS)
def accept_kernel(
    found_ptr: tl.tensor,
    found_dual_ptr: tl.tensor,
    status_ptr: tl.tensor,
    similarity_ptr: tl.tensor,
    signed_ptr: tl.tensor,
    perm_ptr: tl.tensor,
    signed_perm_ptr: tl.tensor,
    col_dual_ptr: tl.tensor,
    objective_ptr: tl.tensor,
    tolerance_ptr: tl.tensor,
    stale_ptr: tl.tensor,
    active_ptr: tl.tensor,
    code_ptr: tl.tensor,
    neighbours_ptr: tl.tensor,
    neighbours: tl.tensor,
    groups: tl.tensor,
    size: tl.tensor,
    SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One hypothesis: what its assignment gains; it moves where that exceeds the tolerance."""
    w = tl.program_id(0).to(tl.int64)
    if tl.load(active_ptr + w) == 0:
        return
    tl.atomic_max(code_ptr, tl.load(status_ptr + w))
    similarity_ptr += w * size * size
    perm_ptr += w * size
    found_ptr += w * size
    if SIGNED:
        signed_ptr += w * size * size
        signed_perm_ptr += w * size
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = i < size
        new = tl.load(found_ptr + i, mask=inside, other=0)
        old = tl.load(perm_ptr + i, mask=inside, other=0)
        total += signed_entry(similarity_ptr, i, size, new, inside)
        total -= signed_entry(similarity_ptr, i, size, old, inside)
        if SIGNED:
            entry = tl.load(signed_ptr + i * size + new, mask=inside, other=0.0)
            total += tl.abs(entry).to(tl.float64)
            old = tl.load(signed_perm_ptr + i, mask=inside, other=0)
            total -= signed_entry(signed_ptr, i, size, old, inside)
        dual = tl.load(found_dual_ptr + w * size + i, mask=inside, other=0.0)
        tl.store(col_dual_ptr + w * size + i, dual, mask=inside)
    gain = 2 * tl.sum(total, 0)
    if gain > tl.load(tolerance_ptr + w):
        for start in range(0, size, BLOCK):
            i = start + tl.arange(0, BLOCK).to(tl.int64)
            inside = i < size
            new = tl.load(found_ptr + i, mask=inside, other=0)
            tl.store(perm_ptr + i, new, mask=inside)
            if SIGNED:
                entry = tl.load(signed_ptr + i * size + new, mask=inside, other=0.0)
                tl.store(signed_perm_ptr + i, tl.where(entry < 0, ~new, new), mask=inside)
        tl.store(objective_ptr + w, tl.load(objective_ptr + w) - gain)
        for k in range(0, neighbours):
            tl.store(stale_ptr + w * groups + tl.load(neighbours_ptr + k), 1)


class Select:
    """Says in `active` who looks at a group now; for the chosen it is then stale no more."""

    def __init__(self, batch: Batch) -> None:
        """Prepare for all hypotheses of a batch."""
        count, groups = batch.stale.shape
        self._launch = Launch(
            select_kernel,
            triton.cdiv(count, HYPOTHESES),
            (batch.stale, batch.active, count, groups),
            {"BLOCK": HYPOTHESES},
            {"num_warps": 4, "enable_fp_fusion": True},
            batch.stale.device,
        )

    def launch(self, chosen: Tensor, number: int, size: int) -> None:
        """Launch on torch's current stream, without waiting.

        Args:
            chosen: uint8 [b] or more, who may; its address is a multiple of 16.
            number: of the group.
            size: n of the group.
        """
        self._launch(chosen, number, size)


class Accept:
    """Moves active hypotheses to their assignments where that gains more than the tolerance.

    A signed group takes at each place the sign that its signed matrix has there.
    """

    def __init__(self, move: Move) -> None:
        """Prepare for one move."""
        count, size, _ = move.similarity.shape
        batch = move.batch
        signed = move.similarity if move.signed is None else move.signed
        signed_perm = move.perm if move.signed_perm is None else move.signed_perm
        block, warps = next(((b, w) for b, w in BLOCKS.items() if size <= b), LARGEST)
        self._launch = Launch(
            accept_kernel,
            count,
            (
                move.similarity,
                signed,
                move.perm,
                signed_perm,
                move.col_dual,
                batch.objective,
                batch.tolerance,
                batch.stale,
                batch.active,
                batch.code,
                move.neighbours,
                len(move.neighbours),
                batch.stale.shape[1],
                size,
            ),
            {"SIGNED": move.signed is not None, "BLOCK": block},
            {"num_warps": warps, "enable_fp_fusion": True},
            move.similarity.device,
        )

    def launch(self, col_ind: Tensor, col_dual: Tensor, status: Tensor) -> None:
        """Launch on torch's current stream, without waiting.

        Args:
            col_ind: int64 [c, n], assignments that maximise similarity + |signed|.
            col_dual: float64 [c, n], their duals.
            status: int64 [c], 0 where solved.
        """
        self._launch(col_ind, col_dual, status)
