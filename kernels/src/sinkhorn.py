"""One step of deterministic annealing for many groups at once, fused (Triton).

    P <- (1 - d) P + d Sinkhorn(S / (T std S))

in place, for [b, n, n] of several groups with n up to `LARGEST`: one program keeps a matrix in
registers through all iterations, one launch for each size class.
`_twins.annealing_step_reference` is the twin; kernels/README.md has layout and limits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu_align._errors import InputError

from ._descriptors import check_matrices
from ._launch import Table, locate, on_device

__all__ = ["LARGEST", "AnnealingStep", "annealing_step"]

RESIDENT = {16: 1, 32: 4, 64: 8}
"""Largest n of each size class -> warps."""

LARGEST = max(RESIDENT)
"""Largest n. Beyond it torch's own operations were faster on an H200 than kernels that stream."""

TINY = tl.constexpr(1e-30)


class MatrixRow(NamedTuple):
    """One group of the table; tensors are addresses."""

    size: int
    similarity: int
    soft: int


M_FIELDS = tl.constexpr(len(MatrixRow._fields))
M_SIZE, M_SIMILARITY, M_SOFT = map(tl.constexpr, range(len(MatrixRow._fields)))


@triton.jit
def floats(field_ptr: tl.tensor) -> tl.tensor:
    """Return the float32 pointer that a field of the table holds."""
    return tl.load(field_ptr).to(tl.pointer_type(tl.float32))


@triton.jit
def resident_kernel(
    first_ptr: tl.tensor,
    group_ptr: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    temperature_ptr: tl.tensor,
    damping: tl.tensor,
    iterations: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The whole step of one matrix of at most BLOCK units."""
    number, w = locate(first_ptr, groups, steps, tl.program_id(0).to(tl.int64))
    group = group_ptr + number * M_FIELDS
    size = tl.load(group + M_SIZE)
    units, entries = size.to(tl.int32), (size * size).to(tl.float32)
    i = tl.arange(0, BLOCK)
    inside = (i[:, None] < units) & (i[None, :] < units)
    position, start = i[:, None] * units + i[None, :], w * size * size
    similarity_ptr = floats(group + M_SIMILARITY) + start
    similarity = tl.load(similarity_ptr + position, mask=inside, other=0.0)
    mean = tl.sum(tl.sum(similarity, 1), 0) / entries
    centred = tl.where(inside, similarity - mean, 0.0)
    deviation = tl.sqrt(tl.sum(tl.sum(centred * centred, 1), 0) / tl.maximum(entries - 1, 1.0))
    largest = tl.max(tl.max(tl.abs(similarity), 1), 0)
    temperature = tl.load(temperature_ptr)
    scale = 1 / (temperature * tl.maximum(deviation, 1e-6 * largest + TINY))
    logits = tl.where(inside, similarity, float("-inf"))
    row_max = tl.where(i < units, tl.max(logits, 1), 0.0)
    logits = (logits - row_max[:, None]) * scale
    column_max = tl.where(i < units, tl.max(logits, 0), 0.0)
    kernel = tl.exp(logits - column_max[None, :])
    row = tl.zeros((BLOCK,), tl.float32)
    column = tl.zeros((BLOCK,), tl.float32) + 1
    for _ in range(iterations):
        sums = tl.where(i < units, tl.sum(kernel * column[None, :], 1), 1.0)
        row = tl.where(i < units, 1 / sums, 0.0)
        sums = tl.where(i < units, tl.sum(kernel * row[:, None], 0), 1.0)
        column = tl.where(i < units, 1 / sums, 0.0)
    soft_ptr = floats(group + M_SOFT) + start + position
    soft = tl.load(soft_ptr, mask=inside, other=0.0)
    moved = soft + damping * (kernel * row[:, None] * column[None, :] - soft)
    tl.store(soft_ptr, moved, mask=inside)


class AnnealingStep:
    """Prepared launches of an annealing step of several groups: tables uploaded, memory held.

    S may be overwritten in place between launches, P is.
    """

    def __init__(self, similarity: Sequence[Tensor], soft: Sequence[Tensor]) -> None:
        """See `annealing_step`."""
        if len(similarity) != len(soft):
            raise InputError(f"expected as many S as P, got {len(similarity)} and {len(soft)}")
        self._held = (tuple(similarity), tuple(soft))
        classes: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for s, p in zip(similarity, soft, strict=True):
            if s.dim() != 3 or s.shape[1] != s.shape[2] or s.device != similarity[0].device:
                raise InputError(f"expected S [b, n, n], all on one device, got {list(s.shape)}")
            check_matrices("similarity", s, tuple(s.shape), s.device)
            check_matrices("soft", p, tuple(s.shape), s.device)
            if s.shape[1] > LARGEST:
                raise InputError(
                    f"expected at most {LARGEST} units, got {s.shape[1]}; anneal larger groups "
                    "with torch"
                )
            if s.numel():
                block = next(block for block in RESIDENT if s.shape[1] <= block)
                classes.setdefault(block, []).append((s, p))
        self._resident = {block: _resident_table(pairs) for block, pairs in classes.items()}
        device = similarity[0].device if similarity else torch.device("cpu")
        self._temperature = torch.zeros((), device=device)

    def launch(self, temperature: float | Tensor, damping: float, iterations: int) -> None:
        """Launch on torch's current stream, without waiting.

        Args:
            temperature: T > 0, in units of the standard deviation of each S; a float32 tensor []
                on the device is read there, so that a graph may be replayed at another one.
            damping: d, above 0 and at most 1.
            iterations: pairs of a row and a column scaling, at least 1.
        """
        if not isinstance(temperature, Tensor):
            self._check(temperature, damping, iterations, usable=temperature > 0)
            temperature = self._temperature.fill_(temperature)
        is_float32 = temperature.dtype == torch.float32
        self._check(temperature, damping, iterations, usable=is_float32)
        for block, table in self._resident.items():
            with on_device(table.first.device):
                resident_kernel[(table.programs,)](
                    *table.arguments,
                    temperature,
                    float(damping),
                    iterations,
                    BLOCK=block,
                    num_warps=RESIDENT[block],
                    enable_fp_fusion=True,
                )

    def _check(
        self, temperature: float | Tensor, damping: float, iterations: int, *, usable: bool
    ) -> None:
        if not (usable and 0 < damping <= 1 and iterations >= 1):
            raise InputError(
                "expected temperature > 0 (a tensor as float32), 0 < damping <= 1 and "
                f"iterations >= 1, got {temperature}, {damping} and {iterations}"
            )


def _resident_table(pairs: Sequence[tuple[Tensor, Tensor]]) -> Table:
    rows = [MatrixRow(s.shape[1], s.data_ptr(), p.data_ptr()) for s, p in pairs]
    return Table([len(s) for s, _ in pairs], rows, [], pairs[0][0].device)


def annealing_step(
    similarity: Sequence[Tensor],
    soft: Sequence[Tensor],
    temperature: float,
    damping: float = 0.5,
    iterations: int = 10,
) -> None:
    """Move P of many groups and hypotheses one annealing step, in place.

    Args:
        similarity: S, float32 [b, n, n] of each group, contiguous; b and n may differ, n is at
            most `LARGEST`.
        soft: P, of the same shapes, changed.
        temperature: T > 0, in units of the standard deviation of each S.
        damping: d, the share of the new matrix, above 0 and at most 1.
        iterations: pairs of a row and a column scaling, at least 1.

    Raises:
        InputError: shapes, dtypes, devices or numbers that do not fit.

    Source: Gold & Rangarajan, "A graduated assignment algorithm for graph matching" (1996).
    """
    AnnealingStep(similarity, soft).launch(temperature, damping, iterations)
