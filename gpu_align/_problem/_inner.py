"""Inner assignments: the most that a pair of units gains from a term on two groups."""

import torch
from torch import Tensor

from gpu_align._problem._family import Matcher
from gpu_align._problem._form import AnyTerm
from gpu_align._problem._signed import is_signed
from gpu_align._problem._terms import CHUNK_ELEMENTS, Term

_ON_HOST = 2**18
"""Gains that are in the works at once on the host: they stay in the cache."""

_FEW = 2**16
"""Sum of n^3 up to which the assignments of a term are solved, and not only bounded."""

_PASSES = 8
"""Multiply-adds that take as long as the passes over a gain."""


def has_inner(term: AnyTerm) -> bool:
    """Say whether what a pair of units gains from a term is an assignment of the other units.

    With one fixed place that is a product of sorted rows; with three matrices it is no assignment.
    """
    return isinstance(term, Term) and len(term.variables) == 2 and term.target.shape[-1] > 1


def inner_mode(term: AnyTerm) -> int:
    """Return the mode whose pairs of units bound a term best: that of its larger group."""
    return int(term.target.shape[1] > term.target.shape[0])


def inner_work(term: AnyTerm) -> int:
    """Return about how many multiply-adds `inner_values` costs for each model."""
    rows, columns, depth = term.target.shape
    return rows**2 * columns**2 * (depth + _PASSES)


def inner_values(
    term: AnyTerm, match: Matcher, *, few: int = _FEW, on_host: int = _ON_HOST
) -> Tensor:
    """Return the most that a term adds for each pair of units, as the others are assigned best.

    That is `max_Q sum_k G[k, Q(k)]` with `G[k, l] = <A[i, k], B[j, l]>`, in magnitudes where signs
    are free. Many large problems are bounded by feasible duals instead: half of the largest gain
    of each column, what the rows need beside it, and what that has left to the columns.

    Args:
        term: of which `has_inner` holds.
        match: solves assignments; its values are upper bounds.
        few: sum of n^3 up to which they are solved.
        on_host: gains that are in the works at once on the host.

    Returns:
        float64 [m, n, n] for the pairs at `inner_mode`.
    """
    target, source = (part.to(torch.float64) for part in term.rows(inner_mode(term)))
    size, units, depth = target.shape
    solved = size**2 * units**3 <= few
    most = on_host if target.device.type == "cpu" else CHUNK_ELEMENTS
    columns = max(min(most // units**2, size), 1)
    rows = max(most // (units**2 * columns), 1)
    signed = any(is_signed(variable) for variable in term.variables)
    found = target.new_empty(len(source), size, size)
    for values, model in zip(found, source, strict=True):
        for i in range(0, size, rows):
            a = target[i : i + rows].reshape(-1, depth)
            for j in range(0, size, columns):
                b = model[j : j + columns].reshape(-1, depth)
                gain = (a @ b.T).reshape(len(a) // units, units, len(b) // units, units)
                gain = gain.abs_() if signed else gain
                values[i : i + rows, j : j + columns] = (
                    _solved(gain, match) if solved else _bounded(gain)
                )
    return found


def _solved(gain: Tensor, match: Matcher) -> Tensor:
    """Solve the assignments of gains [r, n, c, n]; return their values [r, c]."""
    return match(gain.transpose(1, 2).flatten(0, 1))[1].reshape(gain.shape[::2])


def _bounded(gain: Tensor) -> Tensor:
    """Return sums [r, c] of feasible duals of gains [r, n, c, n], which are overwritten."""
    column = gain.amax(1, keepdim=True).mul_(0.5)
    row = gain.sub_(column).amax(3, keepdim=True)
    rest = gain.sub_(row).amax(1, keepdim=True)
    return row.sum((1, 3)) + column.add_(rest).sum((1, 3))
