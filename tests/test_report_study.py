"""The beam-width study of the report."""

import itertools
from typing import Any

import pytest
import torch
from report_pages import mlp

from gpu_align import AlignmentProblem, InputError, chain_spec
from gpu_align._report import _study, beam_width_study


def problem_of(*widths: int, seed: int = 0) -> AlignmentProblem:
    source, target = (mlp(seed + n, *widths).double().state_dict() for n in (0, 1))
    return AlignmentProblem(source, target, chain_spec(target))


def test_study_reaches_the_optimum_once_the_beam_holds_everything() -> None:
    problem = problem_of(4, 3, 3, 2)
    every = list(itertools.permutations(range(3)))
    pairs = list(itertools.product(every, every))
    perms = {
        name: torch.tensor([pair[n] for pair in pairs]) for n, name in enumerate(problem.order)
    }
    optimum = float(problem.hypotheses(perms).objective.min())
    rows = beam_width_study(problem, (1, 2, 6, 20))
    assert [row["width"] for row in rows] == [1, 2, 6, 20]
    assert all(row["distance"] >= optimum * (1 - 1e-12) for row in rows)
    # Six hypotheses are all orders of the first group, and the second is then solved exactly.
    assert [row["distance"] for row in rows[2:]] == pytest.approx([optimum, optimum], rel=1e-12)
    assert all(row["seconds"] > 0 for row in rows)


def test_study_gives_the_objective_of_real_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(10, 24, 24, 5)
    outcomes = []

    def watched(*arguments: Any, **options: Any) -> Any:
        outcomes.append(run(*arguments, **options))
        return outcomes[-1]

    run = _study.run_search
    monkeypatch.setattr(_study, "run_search", watched)
    rows = beam_width_study(problem, (1, 4, 12), seed=3)
    for row, outcome in zip(rows, outcomes[1:], strict=True):
        exact = problem.distance(problem.permutation(outcome.best))
        assert row["distance"] == pytest.approx(exact, rel=1e-9)
    assert [row["distance"] for row in beam_width_study(problem, (1, 4, 12), seed=3)] == [
        row["distance"] for row in rows
    ]
    assert len({row["distance"] for row in rows}) > 1, "the width does not matter here"


def test_study_skips_what_has_nothing_to_align() -> None:
    assert beam_width_study(problem_of(4, 1, 3)) == []
    with pytest.raises(InputError, match="width"):
        beam_width_study(problem_of(4, 3, 2), (0,))
