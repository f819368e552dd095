"""The bound by inner assignments: above what any order gains, below every distance, and tighter."""

import pytest
import torch
from networks import CNN, pair, randomised
from scipy.optimize import linear_sum_assignment

from gpu_align import (
    AlignmentProblem,
    CoordinateDescent,
    align,
    discover,
    lower_bound,
    run_search,
)
from gpu_align._problem import dual_match, optimistic
from gpu_align._problem._inner import has_inner, inner_mode, inner_values

COUPLED = ["cnn", "resnet", "groupnorm", "heads", "signed", "signed_heads", "recurrent"]


def problem_of(name: str) -> AlignmentProblem:
    networks = pair(name)
    return AlignmentProblem(networks.source, networks.target, networks.spec, dtype=torch.float64)


@pytest.mark.parametrize("solved", [True, False])
@pytest.mark.parametrize("name", COUPLED)
def test_values_are_assignments_or_above(name: str, solved: bool) -> None:
    bounded = {} if solved else {"few": -1, "on_host": 40}
    problem = problem_of(name)
    for term in filter(has_inner, problem.terms):
        mode = inner_mode(term)
        found = inner_values(term, dual_match, **bounded)[0]
        target, source = term.rows(mode)
        gains = torch.einsum("ikd,jld->ijkl", target, source[0])
        if any(variable.endswith("±") for variable in term.variables):
            gains = gains.abs()
        for i, row in enumerate(gains.numpy()):
            for j, gain in enumerate(row):
                best = gain[linear_sum_assignment(gain, maximize=True)].sum()
                excess = float(found[i, j]) - best
                assert excess >= -1e-9
                if solved:
                    assert excess <= 1e-9
                else:  # duals by rows alone would not be below this
                    assert float(found[i, j]) <= max(gain.max(1).sum(), gain.max(0).sum()) + 1e-9


def test_an_inner_assignment_is_at_most_the_sorted_rows() -> None:
    problem = problem_of("cnn")
    terms = [term for term in problem.terms if has_inner(term)]
    assert terms
    for term in terms:
        sorted_rows = optimistic(term, inner_mode(term))
        assert (inner_values(term, dual_match) <= sorted_rows + 1e-9).all()


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_the_bound_is_tighter_and_below_every_distance(name: str) -> None:
    problem = problem_of(name)
    found = run_search(CoordinateDescent(starts=4, initial="random"), problem)
    assert lower_bound(problem, work=0) < lower_bound(problem) <= found.best.objective


def test_the_bound_costs_no_more_than_the_search() -> None:
    networks, problem = pair("cnn"), problem_of("cnn")
    found = align(networks.source, networks.target, spec=networks.spec)
    assert found.lower_bound == pytest.approx(float(lower_bound(problem)))
    wide = [randomised(CNN(8, hidden=8, side=16), seed) for seed in (0, 1)]
    source, target = (model.state_dict() for model in wide)
    spec = discover(wide[0].float(), torch.randn(2, 1, 16, 16))
    problem = AlignmentProblem(source, target, spec, dtype=torch.float64)
    cheap = align(source, target, spec=spec, search=CoordinateDescent())
    assert cheap.lower_bound == pytest.approx(float(lower_bound(problem, work=0)))
    assert cheap.lower_bound < 0.9 * float(lower_bound(problem))
