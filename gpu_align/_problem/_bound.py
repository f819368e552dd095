"""A lower bound on the distance over all permutations, of Gilmore-Lawler form."""

import torch
from torch import Tensor

from gpu_align._assignment import AssignmentProblem, solve
from gpu_align._problem._problem import AlignmentProblem
from gpu_align._problem._terms import Term


def lower_bound(problem: AlignmentProblem) -> Tensor:
    """Return a bound that no permutation's objective can go below, for each source model.

    A term that couples groups is split evenly over them. Seen from the rows of one group, what
    the others can contribute is at most `<b_j, P a_i> <= sorted(a_i) . sorted(b_j)`; one
    assignment per group then bounds the sum from above. Its dual objective is used, so the bound
    holds to the rounding of the problem's dtype. With evidence it bounds the distance less twice
    the evidence.

    Returns:
        float64 [m], at least 0 without evidence. Loose for large groups: it is a certificate, not
        an estimate.

    Source: Gilmore, "Optimal and suboptimal algorithms for the quadratic assignment problem"
    (1962); Lawler, "The quadratic assignment problem" (1963).
    """
    inner = torch.zeros(problem.models, dtype=torch.float64)
    for group in problem.groups:
        similarity = problem.unary[group].to(torch.float64)
        for term in problem.touching(group):
            for place, name in enumerate(term.groups):
                if name == group:
                    similarity = similarity + optimistic(term, place) / len(term.groups)
        solution = solve(AssignmentProblem(similarity, maximize=True), certify=True)
        assert solution.row_dual is not None
        assert solution.col_dual is not None
        inner += solution.row_dual.sum(1) + solution.col_dual.sum(1)
    bound = problem.constant - 2 * inner
    return bound if problem.evidence else bound.clamp_min(0)


def optimistic(term: Term, place: int) -> Tensor:
    """Return the most that a term can add for each pair of units, whatever the other groups do.

    Args:
        term: a term that couples two or more groups.
        place: which of its groups has the rows.

    Returns:
        float64 [m, n, n].
    """
    target, source = term.rows(place)
    size, depth = len(target), target.shape[-1]
    a = target.to(torch.float64).reshape(size, -1, depth).sort(dim=1).values
    b = source.to(torch.float64).reshape(len(source), size, -1, depth).sort(dim=2).values
    return a.reshape(size, -1) @ b.reshape(len(source), size, -1).transpose(1, 2)
