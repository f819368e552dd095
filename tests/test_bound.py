"""The lower bound: never above a distance, and the optimum where nothing couples."""

import pytest
import torch
from hypothesis import given, settings
from marks import each_once, slow
from networks import PAIRS, mlp, pair, randomised
from oracles import all_symmetries, brute_force
from scipy.optimize import linear_sum_assignment
from strategies import tiny_pairs
from test_problem import as_batch

from gpu_align import (
    METRICS,
    AlignmentProblem,
    CoordinateDescent,
    Permutation,
    chain_spec,
    lower_bound,
    run_search,
)
from gpu_align._problem import is_signed, optimistic

SMALL = ["grouped", "gqa", "signed", "signed_recurrent", "single"]
"""Families small enough to try all symmetries."""


@settings(max_examples=20)
@given(networks=tiny_pairs())
def test_bound_is_below_the_brute_force_optimum(networks: tuple) -> None:
    spec, source, target = networks
    bound = float(lower_bound(AlignmentProblem(source, target, spec)))
    assert 0 <= bound <= brute_force(spec, source, target) + 1e-9


@settings(max_examples=20)
@given(networks=tiny_pairs(hidden=1))
def test_bound_of_one_hidden_layer_is_the_optimum(networks: tuple) -> None:
    spec, source, target = networks
    bound = float(lower_bound(AlignmentProblem(source, target, spec)))
    assert bound == pytest.approx(brute_force(spec, source, target), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "widths", [(5, 3, 2), (6, 8, 8, 3), (20, 50, 30, 5), (90, 300, 4)], ids=str
)
def test_bound_of_a_planted_pair_is_0(widths: tuple[int, ...], metric: str) -> None:
    """Their distance is 0, so that no more than rounding could be left."""
    for seed in range(8):
        target = randomised(mlp(widths), seed).state_dict()
        spec = chain_spec(target)
        order = Permutation.random(spec, generator=torch.Generator().manual_seed(seed))
        problem = AlignmentProblem(order.apply(target), target, spec, metric=metric)
        assert float(lower_bound(problem)) == 0


@pytest.mark.parametrize(("name", "metric"), each_once(PAIRS, METRICS))
def test_bound_is_below_every_distance_found(name: str, metric: str) -> None:
    networks = pair(name)
    problem = AlignmentProblem(
        networks.source, networks.target, networks.spec, metric=metric, dtype=torch.float64
    )
    found = run_search(CoordinateDescent(starts=4, initial="random"), problem)
    bound = float(lower_bound(problem))
    assert 0 <= bound <= float(found.best.objective) * (1 + 1e-12)


@pytest.mark.parametrize(
    "name", ["recurrent", "trilinear", *slow(SMALL, but=[n for n in SMALL if n != "gqa"])]
)
def test_bound_is_below_the_optimum_of_every_kind_of_term(name: str) -> None:
    for seed in range(1 if name == "gqa" else 3):
        networks = pair(name, seed)
        problem = AlignmentProblem(networks.source, networks.target, networks.spec)
        best = brute_force(networks.spec, networks.source, networks.target)
        assert float(lower_bound(problem)) <= best


@pytest.mark.parametrize("seed", range(5))
def test_bound_holds_where_signs_gain_more_than_they_couple(seed: int) -> None:
    """What a unit gains with one sign alone is not to be cancelled by the bound of the rest."""
    networks = pair("signed", seed)
    alone = {"w_a", "b_a", "b_b", "w_out"}
    source = {n: -3 * t if n in alone else t for n, t in networks.target.items()}
    problem = AlignmentProblem(source, networks.target, networks.spec)
    best = brute_force(networks.spec, source, networks.target)
    assert float(lower_bound(problem)) <= best * (1 + 1e-12)


def test_bound_of_several_models_is_that_of_each() -> None:
    one, other = pair("mlp"), pair("mlp", 1)
    both = lower_bound(AlignmentProblem([one.source, other.source], one.target, one.spec))
    for source, bound in zip((one.source, other.source), both.tolist(), strict=True):
        alone = lower_bound(AlignmentProblem(source, one.target, one.spec))
        assert float(alone) == pytest.approx(bound)


def test_bound_grows_with_evidence_against() -> None:
    networks = pair("shallow")
    evidence = torch.randn(4, 4, dtype=torch.float64)
    problem = AlignmentProblem(
        networks.source, networks.target, networks.spec, evidence={"0": evidence}
    )
    unary = problem.unary["0"][0].numpy()
    rows, columns = linear_sum_assignment(unary, maximize=True)
    expected = float(problem.constant) - 2 * unary[rows, columns].sum()
    assert float(lower_bound(problem)) == pytest.approx(max(expected, 0.0))


@pytest.mark.parametrize("name", ["mlp", "trilinear", "recurrent", *SMALL])
def test_optimistic_similarity_is_never_exceeded(name: str) -> None:
    networks = pair(name)
    problem = AlignmentProblem(networks.source, networks.target, networks.spec)
    perms = as_batch(problem, list(all_symmetries(networks.spec))[::7])
    model = torch.zeros(len(next(iter(perms.values()))), dtype=torch.int64)
    for term in problem.terms:
        for place, matrix in enumerate(term.variables):
            most = optimistic(term, place)[0]
            if term.variables.count(matrix) == 1:
                # Children of one parent are not seen where their parents do not meet.
                real = term.similarity(place, perms, model)
                real = real.abs() if is_signed(matrix) else real
                assert ((real == 0) | (real <= most + 1e-9)).all()
