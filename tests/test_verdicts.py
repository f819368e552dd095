"""What is said of an answer: never more than is known."""

from dataclasses import replace

import pytest
import report_pages
import torch
from test_report_page import answer

from gpu_align import AssignmentProblem, ScipyAssignment, Status
from gpu_align._assignment import certify
from gpu_align._report import _page

FAILURES = (Status.ROUND_LIMIT, Status.INEXACT, Status.NOT_FINITE)


@pytest.mark.parametrize("status", FAILURES)
def test_a_certificate_keeps_why_a_solver_failed(status: Status) -> None:
    """Even where its matching happens to be the best one."""
    problem = AssignmentProblem(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]).repeat(2, 1, 1))
    solution = ScipyAssignment().solve(problem)
    assert solution.status == (Status.SOLVED,) * 2
    failed = replace(solution, status=(status, Status.SOLVED))
    assert certify(problem, failed).status == (status, Status.OPTIMAL)


@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.0, "yes"), (4e-9, "yes"), (3e-6, "yes"), (4e-5, "open"), (4.0, "open")]
)
def test_a_report_says_optimal_up_to_rounding_only(
    gap: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dual is 4, so the gaps are from 0 to all of it; 4e-5 is one of 1e-5."""
    data = report_pages.result()
    monkeypatch.setattr(_page, "pictures", lambda result: [])
    data["groups"] = [report_pages.group("group", gap=gap)]
    got, text = answer(data, "Optimal group by group")
    assert got == verdict
    assert ("yes" in text) == (verdict == "yes")
    assert ("not shown for 1 of 1 group" in text) == (verdict == "open")
