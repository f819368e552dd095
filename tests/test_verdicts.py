"""What is said of an answer: never more than is known."""

import itertools
import re
from dataclasses import replace

import pytest
import report_pages
import torch
from test_report_page import answer
from torch import Tensor, nn

from gpu_align import (
    AlignmentResult,
    AssignmentProblem,
    Permutation,
    ScipyAssignment,
    Status,
    align,
)
from gpu_align._assignment import certify

FAILURES = (Status.ROUND_LIMIT, Status.INEXACT, Status.NOT_FINITE)


@pytest.mark.parametrize("status", FAILURES)
def test_a_certificate_keeps_why_a_solver_failed(status: Status) -> None:
    """Even where its matching happens to be the best one."""
    problem = AssignmentProblem(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]).repeat(2, 1, 1))
    solution = ScipyAssignment().solve(problem)
    assert solution.status == (Status.SOLVED,) * 2
    failed = replace(solution, status=(status, Status.SOLVED))
    assert certify(problem, failed).status == (status, Status.OPTIMAL)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.0, "yes"), (4e-9, "yes"), (3e-6, "yes"), (4e-5, "open"), (4.0, "open")]
)
def test_a_report_says_optimal_up_to_rounding_only(gap: float, verdict: str) -> None:
    """The dual is 4, so the gaps are from 0 to all of it; 4e-5 is one of 1e-5."""
    data = report_pages.result()
    data["groups"] = [report_pages.group("group", gap=gap)]
    got, text = answer(data, "Optimal group by group")
    assert got == verdict
    assert ("yes" in text) == (verdict == "yes")
    assert ("not shown for 1 of 1 group" in text) == (verdict == "open")


class Recurrent(nn.Module):
    """Units that feed themselves: their order counts twice in one tensor, so its gap stays open."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0])


def most_off(result: AlignmentResult, target: dict[str, Tensor], group: str) -> float:
    """Return what the best order of one group alone takes off the distance."""
    spec = result.permutation.spec
    still = {name: torch.arange(len(perm)) for name, perm in result.permutation.perms.items()}
    distances = []
    for order in itertools.permutations(range(spec.units(group))):
        moved = Permutation(spec, still | {group: torch.tensor(order)}).apply(result.state_dict)
        pairs = ((moved[name].double(), target[name].double()) for name in spec.tensors)
        distances.append(sum(float((a - b).square().sum()) for a, b in pairs))
    return result.distance - min(distances)


def test_a_search_that_ended_says_no_more_than_its_gaps() -> None:
    torch.manual_seed(0)
    source, target = Recurrent(), Recurrent()
    result = align(source, target, example_inputs=torch.randn(5, 2, 3), search="descent")
    assert result.status is Status.CONVERGED
    (group,) = result.groups
    assert not group.is_optimal
    for text in (result.summary(), result._repr_html_(), result.to_json()["status_note"]):
        (most,) = re.findall(
            rf"another one of {group.name} alone could take at most (\S+) off", text
        )
        assert 0 <= most_off(result, target.state_dict(), group.name) <= 1.01 * float(most)
        assert "there is none" not in text


def test_a_search_that_ended_says_what_its_gaps_prove() -> None:
    torch.manual_seed(0)
    source, target = (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(2))
    result = align(source, target, example_inputs=torch.randn(4, 3), search="descent")
    assert result.status is Status.CONVERGED
    (group,) = result.groups
    assert group.is_optimal
    assert most_off(result, target.state_dict(), group.name) <= 1e-6
    assert f"{result.status.value}, and there is none" in result.summary()
