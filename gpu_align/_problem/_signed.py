"""Signed permutations in one-line notation: `j`, or `~j` where unit j is also negated."""

import torch
from torch import Tensor

_MARK = "±"  # no group's name has it


def signed_matrix(group: str) -> str:
    """Return the name of a group's signed permutation matrix, beside that of its plain one."""
    return group + _MARK


def is_signed(variable: str) -> bool:
    """Say whether a name is that of a signed permutation matrix."""
    return variable.endswith(_MARK)


def unsigned(variable: str) -> str:
    """Return the name of the group that a variable belongs to."""
    return variable.removesuffix(_MARK)


def index_of(perm: Tensor) -> Tensor:
    """Return the unit at each place, signs left out."""
    return perm ^ (perm >> 63)


def sign_of(perm: Tensor) -> Tensor:
    """Return 1 or -1 for each place."""
    return 1 + 2 * (perm >> 63)


def with_sign(perm: Tensor, negative: Tensor) -> Tensor:
    """Return the notation of a permutation (of no signs) with units negated where `negative`."""
    return torch.where(negative, ~perm, perm)


def picked(
    matrix: Tensor, perm: Tensor, owner: Tensor | None = None, *, signed: bool = True
) -> Tensor:
    """Return `<M, P>` of matrices and signed permutations, float64 [b].

    Args:
        matrix: [b, n, n]; [k, n, n] with `owner`.
        perm: int64 [b, n].
        owner: int64 [b], which matrix each permutation belongs to; no matrix is copied.
        signed: whether the permutations may have signs.
    """
    index = index_of(perm) if signed else perm
    if owner is None or len(matrix) == 1:
        entries = matrix.expand(len(perm), -1, -1).gather(2, index[..., None])[..., 0]
    else:
        rows = torch.arange(perm.shape[1], device=perm.device)
        entries = matrix[owner[:, None], rows, index]
    entries = entries * sign_of(perm) if signed else entries
    return entries.sum(1, dtype=torch.float64)


def to_matrix(perm: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the signed permutation matrix, [b, n] -> [b, n, n]."""
    batch, size = perm.shape
    zeros = torch.zeros(batch, size, size, dtype=dtype, device=perm.device)
    return zeros.scatter_(2, index_of(perm)[..., None], sign_of(perm)[..., None].to(dtype))
