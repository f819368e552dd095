"""The layer-wise beam and its candidates: against a plain greedy pass and brute force."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import each_once
from networks import pair
from oracles import Symmetry, all_symmetries, brute_force, objective, symmetry_of
from scipy.optimize import linear_sum_assignment
from search_oracles import greedy_pass
from strategies import seeds, tiny_pairs
from test_problem import as_batch, problem_of
from torch import Tensor

from gpu_align import (
    AlignmentProblem,
    KBest,
    LayerwiseBeam,
    Noise,
    Permutation,
    PermutationSpec,
    Rounding,
    run_search,
)
from gpu_align._device._random import RandomStream
from gpu_align._problem import picked
from gpu_align._search import Candidates, Run, _candidates


def run_of(problem: AlignmentProblem | None = None) -> Run:
    problem = problem or problem_of(pair("mlp"))
    return Run(problem, RandomStream(0))


def optimum(cost: Tensor) -> float:
    rows, columns = linear_sum_assignment(cost.numpy())
    return float(cost.numpy()[rows, columns].sum())


def totals(cost: Tensor, candidates: Tensor) -> Tensor:
    """Return the cost of each candidate: [b, n, n], [b, k, n] -> [b, k]."""
    return (
        cost[:, None]
        .expand(-1, candidates.shape[1], -1, -1)
        .gather(3, candidates[..., None])
        .sum((2, 3))
    )


def assert_permutations(candidates: Tensor, count: int, size: int) -> None:
    assert candidates.shape[1:] == (count, size)
    assert torch.equal(candidates.sort(2).values, torch.arange(size).expand_as(candidates))


def assert_same_symmetry(a: Symmetry, b: Symmetry) -> None:
    assert set(a.perms) == set(b.perms)
    for name, perm in a.perms.items():
        assert perm.tolist() == b.perms[name].tolist()
        ones = np.ones_like(perm)
        assert a.signs.get(name, ones).tolist() == b.signs.get(name, ones).tolist()


# The beam

UNCOUPLED = ["heads", "signed", "signed_heads", "single"]
"""Families without a tensor on which two of their groups lie beside each other."""


WAYS = [
    " ".join(way)
    for way in itertools.product(
        ("l2", "standardized"), ("settled", "incoming"), ("squared", "euclidean")
    )
]


@pytest.mark.parametrize(
    ("name", "way"), each_once(["mlp", "deep", "cnn", "resnet", *UNCOUPLED], WAYS)
)
def test_narrow_beam_is_the_greedy_pass(name: str, way: str) -> None:
    networks, (metric, rule, row_distance) = pair(name), way.split()
    search = LayerwiseBeam(
        rule=rule,
        row_distance=row_distance,
        cost_metric=metric,
    )
    problem = problem_of(networks)
    outcome = run_search(search, problem)
    expected = greedy_pass(
        *(networks.spec, networks.source, networks.target),
        incoming=rule == "incoming",
        euclidean=row_distance == "euclidean",
        metric=metric,
    )
    distance = objective(networks.spec, expected, networks.source, networks.target)
    assert float(outcome.hypotheses.objective) == pytest.approx(distance)
    if distance < float(problem.identity().objective):
        assert_same_symmetry(symmetry_of(problem.permutation(outcome.best)), expected)


@settings(max_examples=25)
@given(networks=tiny_pairs(), lookahead=st.booleans())
def test_beam_of_everything_finds_the_optimum(networks: tuple, lookahead: bool) -> None:
    spec, source, target = networks
    problem = AlignmentProblem(source, target, spec)
    largest = max(math.factorial(n) for n in [1, *problem.sizes.values()])
    search = LayerwiseBeam(width=largest**2, candidates=KBest(largest), lookahead=lookahead)
    outcome = run_search(search, problem)
    best = brute_force(spec, source, target)
    assert float(outcome.best.objective) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("name", ["tiny", "trilinear", "recurrent"])
def test_wide_beam_is_no_worse_than_a_narrow_one_here(name: str) -> None:
    networks = pair(name)
    problem = problem_of(networks)
    distances = [
        float(run_search(LayerwiseBeam(width, KBest(24)), problem).best.objective)
        for width in (1, 600)
    ]
    assert distances[1] <= distances[0]
    assert distances[1] == pytest.approx(
        brute_force(networks.spec, networks.source, networks.target)
    )


@pytest.mark.parametrize("name", ["tiny", "trilinear", "recurrent", "mlp", "gqa", "signed"])
def test_lookahead_score_is_admissible(name: str) -> None:
    """No completion of a prefix is better than its score, less what later groups add alone."""
    networks = pair(name)
    problem = problem_of(networks)
    run = run_of(problem)
    search = LayerwiseBeam(width=30, candidates=KBest(5), lookahead=True)
    perms = as_batch(problem, list(all_symmetries(networks.spec)))
    model = torch.zeros(len(perms[problem.order[0]]), dtype=torch.int64)
    distances = problem.objective(perms, model)
    state = search.init(run, None)
    for number in range(1, len(problem.order)):
        state = search.step(run, state)
        decided = [m for g in problem.order[:number] for m in problem.families[g].variables]
        # The part of F in which no decided group takes part; the score leaves it out.
        later = torch.zeros(len(model), dtype=torch.float64)
        for matrix in problem.sizes.keys() - set(decided):
            later += picked(problem.unary[matrix].expand(len(model), -1, -1), perms[matrix])
        for term in problem.terms:
            if set(decided).isdisjoint(term.variables):
                later += term.inner(perms, model)
        partial = state.memory.hypotheses
        for index in range(len(partial)):
            same = torch.stack([(perms[m] == partial.perms[m][index]).all(1) for m in decided])
            assert same.all(0).any()
            completed = (distances + 2 * later)[same.all(0)]
            assert (completed >= partial.objective[index] - 1e-9).all()


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("name", ["deep", "heads", "grouped", "signed", "trilinear", "recurrent"])
def test_settled_scores_grow_to_the_distance(name: str, lookahead: bool) -> None:
    problem = problem_of(pair(name))
    run = run_of(problem)
    search = LayerwiseBeam(width=3, candidates=KBest(3), lookahead=lookahead)
    state = search.init(run, None)
    for _ in problem.order:
        state = search.step(run, state)
    scores = state.memory.hypotheses
    again = problem.objective(scores.perms, scores.model)
    assert torch.allclose(scores.objective, again)
    assert state.hypotheses.objective.tolist() == sorted(state.hypotheses.objective.tolist())


@pytest.mark.parametrize("rule", ["settled", "incoming"])
@pytest.mark.parametrize("metric", [None, "standardized"], ids=["same_metric", "standardized"])
@pytest.mark.parametrize("strength", [1e1, 1e3])
def test_evidence_guides_the_costs(rule: str, metric: str | None, strength: float) -> None:
    networks = pair("mlp")
    wanted = torch.tensor([3, 1, 0, 2])
    evidence = {"0": strength * torch.nn.functional.one_hot(wanted).double()}
    problem = problem_of(networks, evidence=evidence)
    outcome = run_search(LayerwiseBeam(rule=rule, cost_metric=metric), problem)
    assert torch.equal(outcome.best.perms["0"][0], wanted)


# Candidates


@dataclass(frozen=True)
class NotUndone(Candidates):
    """What the published code of the coursework does: the rows stay shuffled."""

    count: int = 10

    def propose(self, run: Run, cost: Tensor) -> Tensor:
        batch, size, _ = cost.shape
        order = run.random.permutation(run.owners(batch), self.count, size)
        shuffled = cost[torch.arange(batch)[:, None, None], order]
        return run.assign(-shuffled.flatten(0, 1)).reshape(batch, self.count, size)


@given(size=st.integers(1, 12), seed=seeds)
def test_rounding_with_a_tiny_unit_is_exact(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(3, size, size, generator=generator, dtype=torch.float64)
    candidates = Rounding(count=4, unit=1e-9).propose(run_of(), cost)
    assert_permutations(candidates, 4, size)
    for number, value in enumerate(totals(cost, candidates)):
        assert value.tolist() == pytest.approx([optimum(cost[number])] * 4)


def test_a_shuffle_that_is_not_undone_would_show() -> None:
    cost = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = totals(cost, Rounding(count=10, unit=1e-9).propose(run_of(), cost)).mean()
    broken = totals(cost, NotUndone().propose(run_of(), cost)).mean()
    assert ours == pytest.approx(np.mean([optimum(c) for c in cost]))
    assert broken > 3 * ours


def test_rounding_gives_several_optima_of_the_rounded_costs() -> None:
    cost = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    candidates = Rounding(count=20, unit=0.5).propose(run_of(), cost)
    assert len({tuple(row) for row in candidates[0].tolist()}) > 3
    rounded = (cost / 0.5).round()
    assert set(totals(rounded, candidates)[0].tolist()) == {optimum(rounded[0])}


def test_rounding_in_parts_is_the_same() -> None:
    """The same orders of two matrices are tried in one part, and among more of them in two."""
    size = 200
    cost = torch.rand(2, size, size, generator=torch.Generator().manual_seed(0))
    count = _candidates._CHUNK["cpu"] // size**2 // 2
    whole = Rounding(count, unit=0.3).propose(run_of(), cost)
    run = run_of()
    parts = Rounding(count + 5, unit=0.3).propose(run, cost)
    assert torch.equal(parts[:, :count], whole)
    assert run.assignments == 2 * (count + 5)


@pytest.mark.parametrize("value", [0.0, 7.0], ids=["zeros", "constant"])
@pytest.mark.parametrize(
    "candidates", [KBest(3), Noise(3), Rounding(3)], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_candidates_of_equal_costs(
    candidates: Candidates, value: float, dtype: torch.dtype
) -> None:
    problem = problem_of(pair("mlp"), dtype=dtype)
    proposed = candidates.propose(run_of(problem), torch.full((2, 5, 5), value, dtype=dtype))
    assert_permutations(proposed, 3, 5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_k_best_enumerates_in_order(size: int) -> None:
    cost = torch.rand(2, size, size, dtype=torch.float64)
    count = math.factorial(size)
    candidates = KBest(count).propose(run_of(), cost)
    assert_permutations(candidates, count, size)
    value = totals(cost, candidates)
    assert torch.equal(value, value.sort(1).values)
    for number in range(2):
        assert len({tuple(row) for row in candidates[number].tolist()}) == count
        assert float(value[number, 0]) == pytest.approx(optimum(cost[number]))


def test_noise_keeps_the_optimum_first() -> None:
    cost = torch.rand(4, 9, 9, dtype=torch.float64)
    candidates = Noise(count=6, scale=1.0).propose(run_of(), cost)
    assert_permutations(candidates, 6, 9)
    value = totals(cost, candidates)
    assert value[:, 0].tolist() == pytest.approx([optimum(c) for c in cost])
    assert (value[:, 1:] >= value[:, :1] - 1e-12).all()
    assert (value[:, 1:].amax(1) > value[:, 0] + 1e-6).all()


def test_incoming_rule_of_one_layer_ignores_what_leaves_it() -> None:
    networks = pair("shallow")
    changed = {**networks.source, "2.weight": torch.zeros_like(networks.source["2.weight"])}
    perms = []
    for source in (networks.source, changed):
        problem = AlignmentProblem(source, networks.target, networks.spec)
        run = run_of(problem)
        search = LayerwiseBeam(rule="incoming")
        state = search.step(run, search.init(run, None))
        perms.append(state.hypotheses.perms["0"].tolist())
    assert perms[0] == perms[1]


def test_a_greedy_pass_tells_units_by_how_they_feed_each_other() -> None:
    """Nothing else does: sorted rows of a reordered copy agree where they belong."""
    generator = torch.Generator().manual_seed(0)
    source = {"loop": torch.randn(7, 7, generator=generator, dtype=torch.float64)}
    spec = PermutationSpec.from_json(
        """{"format": "gpu-align/spec", "version": 1, "groups": {"h": 7},
        "tensors": {"loop": ["h", "h"]}}"""
    )
    target = Permutation.random(spec, seed=1).apply(source)
    problem = AlignmentProblem(source, target, spec, dtype=torch.float64)
    outcome = run_search(LayerwiseBeam(width=1, candidates=KBest(1)), problem)
    assert problem.distance(problem.permutation(outcome.best)) == 0
