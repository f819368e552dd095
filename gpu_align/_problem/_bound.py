"""A lower bound on the distance over all permutations, of Gilmore-Lawler form."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from gpu_align._assignment import AssignmentProblem, dual_bounds, exact_duals, solve
from gpu_align._device import Engine
from gpu_align._problem._family import Matcher
from gpu_align._problem._form import AnyTerm
from gpu_align._problem._inner import has_inner, inner_mode, inner_values, inner_work
from gpu_align._problem._problem import AlignmentProblem
from gpu_align._problem._signed import is_signed, unsigned
from gpu_align._process import torch_threads

_MOST_WORK = 2.0**33
"""Multiply-adds of the inner assignments of a model: seconds on one core."""


def lower_bound(problem: AlignmentProblem, *, work: float = _MOST_WORK) -> Tensor:
    """Return a bound that no permutation's objective can go below, for each source model.

    It is over all symmetries that the problem has matrices for.
    A term that couples matrices is split evenly over them. Seen from the rows of one, what the
    others can contribute is at most `<b_j, P a_i> <= sorted(a_i) . sorted(b_j)`. That sorts each
    fixed place by itself; a term of two matrices with several is bounded by one assignment for all
    of them instead, and goes to its larger group. One assignment per family then bounds the sum
    from above. Its dual objective is used, and what rounding may have added in the problem's dtype
    is taken off. With evidence it bounds the distance less twice the evidence.

    Args:
        problem: what no permutation solves better.
        work: most multiply-adds that the inner assignments of a model may cost, seconds at most;
            terms beyond it are sorted.

    Returns:
        float64 [m], at least 0 without evidence. Loose for large groups: it is a certificate, not
        an estimate.

    Source: Gilmore, "Optimal and suboptimal algorithms for the quadratic assignment problem"
    (1962); Lawler, "The quadratic assignment problem" (1963).
    """
    inner, match = torch.zeros_like(problem.constant), exact_match(problem.engine)
    shares = bounded_shares(problem, problem.terms, match, work)
    for family in problem.families.values():
        similarity = {m: problem.unary[m].to(torch.float64) for m in family.variables}
        for variable in family.variables:
            for share in shares[variable]:
                add_bound(similarity, variable, share)
        inner += family.bound(similarity, match)
    bound = problem.unit * (problem.constant - 2 * inner - _rounding(problem))
    return bound if problem.evidence else bound.clamp_min(0)


def bounded_shares(
    problem: AlignmentProblem, terms: Iterable[AnyTerm], match: Matcher, work: float = _MOST_WORK
) -> dict[str, list[Tensor]]:
    """Return bounds that stand for terms, variable -> those that its pairs of units are given.

    Args:
        problem: what the terms are of.
        terms: that couple matrices.
        match: solves assignments; its values are upper bounds.
        work: see `lower_bound`.
    """
    left = min(work, _MOST_WORK)
    shares: dict[str, list[Tensor]] = {variable: [] for variable in problem.sizes}
    for term in terms:
        if has_inner(term) and inner_work(term) <= left:
            left -= inner_work(term)
            mode = inner_mode(term)
            with torch_threads.held(single=True):  # parts of it fit the cache of one core
                share = torch.minimum(inner_values(term, match), optimistic(term, mode))
            shares[term.variables[mode]].append(share)
        else:
            for mode, variable in enumerate(term.variables):
                shares[variable].append(optimistic(term, mode) / len(term.variables))
    return shares


def _rounding(problem: AlignmentProblem) -> Tensor:
    """Return by how much sums of the problem's dtype may be off, float64 [m].

    Errors of a sum of n products add up like a walk of n steps of half an eps each; it is of the
    size of the squared norms, however small the difference that is left of them.
    """
    entries = sum(math.prod(tensor.shape) for tensor in problem.spec.tensors.values())
    return torch.finfo(problem.dtype).eps * (8 + entries**0.5) * problem.constant.abs()


def exact_match(engine: Engine) -> Matcher:
    """Return what solves assignments in float64 and gives their dual objectives, upper bounds.

    On the host where the engine solves its assignments there, else on its device.
    """
    return dual_match if engine.waits else _device_match


def dual_match(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Assign [b, n, n] on the host; return columns and the dual objectives, upper bounds."""
    problem = AssignmentProblem(similarity.to("cpu", torch.float64), maximize=True)
    solution = solve(problem, certify=True)
    assert solution.row_dual is not None
    assert solution.col_dual is not None
    bound = solution.row_dual.sum(1) + solution.col_dual.sum(1)
    return solution.col_ind.to(similarity.device), bound.to(similarity.device)


def known_match(columns: Tensor) -> Matcher:
    """Return a matcher on the host for assignments whose solution is known, or nearly so.

    It is `dual_match` without looking for what is there; where the columns are not optimal, the
    dual objective is that of an optimal assignment all the same.

    Args:
        columns: int64 [b, n].
    """

    def match(similarity: Tensor) -> tuple[Tensor, Tensor]:
        problem = AssignmentProblem(similarity.to("cpu", torch.float64), maximize=True)
        solution = dual_bounds(problem, columns.cpu())
        return columns, solution.to(similarity.device)

    return match


def _device_match(similarity: Tensor) -> tuple[Tensor, Tensor]:
    columns, row, column = exact_duals(similarity.to(torch.float64))
    return columns, row.sum(1) + column.sum(1)


def optimistic(term: AnyTerm, mode: int) -> Tensor:
    """Return the most that a term can add for each pair of units, whatever the others do.

    Where signs are free, magnitudes are compared.

    Args:
        term: a term that couples two or more matrices.
        mode: the index of the term whose matrix has the rows.

    Returns:
        float64 [m, n, n].
    """
    target, source = term.rows(mode)
    if any(is_signed(variable) for variable in term.variables):
        target, source = target.abs(), source.abs()
    size, depth = len(target), target.shape[-1]
    a = _sorted(target.to(torch.float64).reshape(size, -1, depth), 1)
    b = _sorted(source.to(torch.float64).reshape(len(source), size, -1, depth), 2)
    return a.reshape(size, -1) @ b.reshape(len(source), size, -1).transpose(1, 2)


def add_bound(similarity: dict[str, Tensor], variable: str, bound: Tensor) -> None:
    """Add what a term can add at most for each pair of units, [b, n, n], to a family's similarity.

    The bound holds for any sign, so it is not the sign's business: the plain matrix gets it.
    """
    plain = unsigned(variable)
    similarity[plain] = similarity[plain] + bound.to(similarity[plain])


def _sorted(values: Tensor, axis: int) -> Tensor:
    """Return values in ascending order; NumPy's sort keeps no places and takes a sixth the time."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=axis))
    return values.sort(dim=axis).values
