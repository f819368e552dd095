"""What a row-distance launch knows of its problem and the terms: addresses, strides, sizes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from gpu_align._errors import InputError

from .rows import PackedTerm, RowProblem


class ProblemRow(NamedTuple):
    """The problem of a launch; tensors are addresses, 0 where there is none.

    A tile is the work of `chunks` programs, `chunk` steps of BLOCK_K each. `*_step` is elements per
    hypothesis or model.
    """

    size: int
    batch: int
    out: int
    model: int
    unary: int
    unary_step: int
    active: int
    chunks: int
    chunk: int
    terms: int


class TermRow(NamedTuple):
    """One term of a launch. A row's position (u, v, r) is `u * u_stride + v * v_stride + r`.

    u and v are units of the other two groups, r is below `inner`; a group that is not there has
    one unit, whose index vector has address 0. `*_step` is elements per hypothesis or model; the
    negative of a row lies `negative` rows behind it.
    """

    target: int
    target_stride: int
    source: int
    source_stride: int
    model_step: int
    negative: int
    length: int
    inner: int
    u_stride: int
    v_stride: int
    v_size: int
    u: int
    u_step: int
    v: int
    v_step: int


MAX_LENGTH = 2**31 - 2**10
"""Rows are shorter, so that a position a step beyond their end has 32 bits."""

# The same fields as numbers: a kernel reads no NamedTuple.
T_FIELDS = tl.constexpr(len(TermRow._fields))
(
    P_SIZE,
    P_BATCH,
    P_OUT,
    P_MODEL,
    P_UNARY,
    P_UNARY_STEP,
    P_ACTIVE,
    P_CHUNKS,
    P_CHUNK,
    P_TERMS,
) = map(tl.constexpr, range(len(ProblemRow._fields)))
(
    T_TARGET,
    T_TARGET_STRIDE,
    T_SOURCE,
    T_SOURCE_STRIDE,
    T_MODEL_STEP,
    T_NEGATIVE,
    T_LENGTH,
    T_INNER,
    T_U_STRIDE,
    T_V_STRIDE,
    T_V_SIZE,
    T_U,
    T_U_STEP,
    T_V,
    T_V_STEP,
) = map(tl.constexpr, range(len(TermRow._fields)))


def problem_row(problem: RowProblem, out: Tensor, chunks: tuple[int, int]) -> ProblemRow:
    """Return the row of a problem.

    Args:
        problem: the hypotheses.
        out: float32 [b, n, n].
        chunks: how many, and the steps of each.
    """
    rows, unary, active = problem.rows, problem.unary, problem.active
    return ProblemRow(
        size=rows.size,
        batch=len(problem.model),
        out=out.data_ptr(),
        model=problem.model.data_ptr(),
        unary=0 if unary is None else unary.data_ptr(),
        unary_step=0 if unary is None or len(unary) == 1 else unary.stride(0),
        active=0 if active is None else active.data_ptr(),
        chunks=chunks[0],
        chunk=chunks[1],
        terms=len(rows.terms),
    )


def term_row(
    term: PackedTerm, indices: Sequence[Tensor], sizes: Sequence[int], *, signed: bool
) -> TermRow:
    """Return the row of a term.

    Args:
        term: the weights.
        indices: int64 [b, units] of at most two other groups.
        sizes: their units.
        signed: whether the source has negative rows.

    Raises:
        InputError: rows of `MAX_LENGTH` elements or more.
    """
    if term.length >= MAX_LENGTH:
        raise InputError(f"expected rows of fewer than {MAX_LENGTH} elements, got {term.length}")
    u, v = (*indices, None, None)[:2]
    v_size = sizes[1] if len(sizes) > 1 else 1
    return TermRow(
        target=term.target.data_ptr(),
        target_stride=term.target.stride(0),
        source=term.source.data_ptr(),
        source_stride=term.source.stride(0),
        model_step=term.source.stride(0) * term.length * (2 if signed else 1),
        negative=term.length if signed else 0,
        length=term.length,
        inner=term.inner,
        u_stride=v_size * term.inner,
        v_stride=term.inner,
        v_size=v_size,
        u=0 if u is None else u.data_ptr(),
        u_step=0 if u is None else u.stride(0),
        v=0 if v is None else v.data_ptr(),
        v_step=0 if v is None else v.stride(0),
    )


def check_matrices(
    name: str, matrices: Tensor, shape: tuple[int, ...], device: torch.device
) -> None:
    """Check a batch of matrices that a kernel addresses by its shape.

    Raises:
        InputError: not float32 of this shape, contiguous, on this device.
    """
    wrong = matrices.dtype != torch.float32 or tuple(matrices.shape) != shape
    if wrong or matrices.device != device or not matrices.is_contiguous():
        raise InputError(
            f"expected {name!r} as contiguous float32 {list(shape)} on {device}, got "
            f"{matrices.dtype} {list(matrices.shape)} on {matrices.device} with strides "
            f"{matrices.stride()}"
        )
