"""What a grouped row-distance launch knows of each problem and term: addresses, strides, sizes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from gpu_align._errors import InputError

from ._rows import PackedTerm, RowProblem
from ._tiles import Tile


class ProblemRow(NamedTuple):
    """One problem of the table; tensors are addresses, 0 where there is none."""

    size: int
    batch: int
    out: int
    model: int
    target_norm: int
    source_norm: int
    parent: int
    parent_index: int
    changes: int
    unary: int
    unary_step: int
    active: int
    first_term: int
    last_term: int


class TermRow(NamedTuple):
    """One term of the table. A row's position (u, v, r) is `u * u_stride + v * v_stride + r`.

    u and v are units of the other two groups, r is below `inner`; a group that is not there has
    one unit. `*_step` is elements per hypothesis. In an update u is the group that moved, and
    only its changed `places` are visited.
    """

    target: int
    target_stride: int
    source: int
    source_stride: int
    length: int
    inner: int
    u_stride: int
    v_stride: int
    v_size: int
    u: int
    u_step: int
    v: int
    v_step: int
    before: int
    before_step: int
    places: int
    places_step: int


# The same fields as numbers: a kernel reads no NamedTuple.
P_FIELDS, T_FIELDS = tl.constexpr(len(ProblemRow._fields)), tl.constexpr(len(TermRow._fields))
(
    P_SIZE,
    P_BATCH,
    P_OUT,
    P_MODEL,
    P_TARGET_NORM,
    P_SOURCE_NORM,
    P_PARENT,
    P_PARENT_INDEX,
    P_CHANGES,
    P_UNARY,
    P_UNARY_STEP,
    P_ACTIVE,
    P_FIRST_TERM,
    P_LAST_TERM,
) = map(tl.constexpr, range(len(ProblemRow._fields)))
(
    T_TARGET,
    T_TARGET_STRIDE,
    T_SOURCE,
    T_SOURCE_STRIDE,
    T_LENGTH,
    T_INNER,
    T_U_STRIDE,
    T_V_STRIDE,
    T_V_SIZE,
    T_U,
    T_U_STEP,
    T_V,
    T_V_STEP,
    T_BEFORE,
    T_BEFORE_STEP,
    T_PLACES,
    T_PLACES_STEP,
) = map(tl.constexpr, range(len(TermRow._fields)))


def problem_row(
    problem: RowProblem, out: Tensor, first_term: int, last_term: int, **more: int
) -> ProblemRow:
    """Return the row of a problem; `more` are the fields of an update."""
    rows = problem.rows
    return ProblemRow(
        size=rows.size,
        batch=len(problem.model),
        out=out.data_ptr(),
        model=problem.model.data_ptr(),
        target_norm=rows.target_norm.data_ptr(),
        source_norm=rows.source_norm.data_ptr(),
        first_term=first_term,
        last_term=last_term,
        unary=0 if problem.unary is None else problem.unary.data_ptr(),
        unary_step=0 if problem.unary is None or len(problem.unary) == 1 else rows.size**2,
        active=0 if problem.active is None else problem.active.data_ptr(),
        **{"parent": 0, "parent_index": 0, "changes": 0, **more},
    )


def term_row(
    term: PackedTerm,
    indices: tuple[Tensor, Tensor],
    strides: tuple[int, int],
    v_size: int,
    before: Tensor | None = None,
    places: Tensor | None = None,
) -> TermRow:
    """Return the row of a term.

    Args:
        term: the weights.
        indices: int64 [b, units] of u and v.
        strides: of u and v within a row.
        v_size: units of v.
        before, places: int64 [b, units] of u; updates only.

    Raises:
        InputError: rows of 2^31 elements or more.
    """
    if term.length >= 2**31:
        raise InputError(f"expected rows of fewer than 2^31 elements, got {term.length}")
    u, v = indices
    return TermRow(
        target=term.target.data_ptr(),
        target_stride=term.target.stride(0),
        source=term.source.data_ptr(),
        source_stride=term.source.stride(0),
        length=term.length,
        inner=term.inner,
        u_stride=strides[0],
        v_stride=strides[1],
        v_size=v_size,
        u=u.data_ptr(),
        u_step=u.stride(0),
        v=v.data_ptr(),
        v_step=v.stride(0),
        before=0 if before is None else before.data_ptr(),
        before_step=0 if before is None else before.stride(0),
        places=0 if places is None else places.data_ptr(),
        places_step=0 if places is None else places.stride(0),
    )


def fold(indices: Sequence[Tensor]) -> Tensor:
    """Return one index vector for several axes, int64 [b, product of units], signs multiplied."""
    total = indices[0]
    for index in indices[1:]:
        unit, inner = (torch.where(i < 0, ~i, i) for i in (total, index))
        both = unit[:, :, None] * index.shape[1] + inner[:, None, :]
        negative = (total < 0)[:, :, None] ^ (index < 0)[:, None, :]
        total = torch.where(negative, ~both, both).flatten(1)
    return total


def outputs(problems: Sequence[RowProblem], given: Sequence[Tensor] | None) -> list[Tensor]:
    """Check the problems against each other; return checked or new float32 [b, n, n].

    Raises:
        InputError: several dtypes or devices, or `given` does not fit.
    """
    kinds = {(problem.rows.dtype, problem.rows.device) for problem in problems}
    if len(kinds) > 1:
        raise InputError(f"expected problems of one dtype and device in a launch, got {kinds}")
    shapes = [(len(p.model), p.rows.size, p.rows.size) for p in problems]
    if given is None:
        devices = [problem.rows.device for problem in problems]
        return [torch.empty(s, device=d) for s, d in zip(shapes, devices, strict=True)]
    if len(given) != len(problems):
        raise InputError(f"expected {len(problems)} outputs, got {len(given)}")
    for problem, matrix, shape in zip(problems, given, shapes, strict=True):
        check_matrices("out", matrix, shape, problem.rows.device)
    return list(given)


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


def programs_of(problems: Sequence[RowProblem], tile: Tile) -> list[int]:
    """Return how many tiles each problem has."""
    return [
        len(problem.model)
        * math.ceil(problem.rows.size / tile.rows)
        * math.ceil(problem.rows.size / tile.columns)
        for problem in problems
    ]
