"""Searches: what they find is valid, as good as they say, and reproducible."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from marks import each_once, slow
from networks import Pair, pair, planted
from oracles import Symmetry, hypothesis, objective, symmetry_of
from search_oracles import AtIdentity, assert_local_optimum
from strategies import seeds, tiny_pairs
from test_permutation import assert_permutations_equal
from test_problem import problem_of

from gpu_align import (
    AlignmentProblem,
    Annealing,
    BeamDescent,
    Budget,
    CoordinateDescent,
    FrankWolfe,
    InputError,
    KBest,
    LayerwiseBeam,
    Learned,
    Noise,
    Portfolio,
    Progress,
    Recombination,
    Rounding,
    Search,
    Status,
    run_search,
)
from gpu_align._problem import Hypotheses
from gpu_align._search import Outcome, Run, State

SEARCHES: dict[str, Search] = {
    "greedy": LayerwiseBeam(),
    "layerwise": LayerwiseBeam(width=4, candidates=KBest(3), lookahead=True),
    "layerwise_noise": LayerwiseBeam(width=4, candidates=Noise(5)),
    "layerwise_rounding": LayerwiseBeam(width=4, candidates=Rounding(5)),
    "layerwise_incoming": LayerwiseBeam(
        rule="incoming", row_distance="euclidean", cost_metric="standardized"
    ),
    "descent": CoordinateDescent(),
    "descent_forward": CoordinateDescent(order="forward"),
    "descent_backward": CoordinateDescent(order="backward"),
    "descent_starts": CoordinateDescent(starts=3, initial="random"),
    "beam": BeamDescent(patience=2),
    "frank_wolfe": FrankWolfe(),
    "frank_wolfe_starts": FrankWolfe(starts=3),
    "annealing": Annealing(starts=3),
    "recombination": Recombination(population=4, children=4, generations=2),
    "learned": Learned(AtIdentity()),
    "learned_start": Learned(AtIdentity(), then=CoordinateDescent()),
    "portfolio": Portfolio(
        (LayerwiseBeam(lookahead=True), CoordinateDescent(), Annealing(starts=2)),
        (Recombination(4, 4, 2), BeamDescent(patience=2)),
    ),
}
VARIANTS = [
    *("layerwise_noise", "layerwise_rounding", "layerwise_incoming", "descent_forward"),
    *("descent_backward", "descent_starts", "frank_wolfe_starts", "learned_start"),
]
"""Those that differ from another by their settings."""
ONE_OF_EACH = [name for name in SEARCHES if name not in VARIANTS]
each_search = pytest.mark.parametrize("search", slow(SEARCHES, but=ONE_OF_EACH))
STOCHASTIC = [
    *("layerwise_noise", "descent", "descent_starts", "beam", "frank_wolfe_starts"),
    *("annealing", "recombination"),
]
DESCENDING = [
    *("descent", "descent_forward", "descent_backward", "descent_starts", "beam"),
    *("frank_wolfe", "annealing", "portfolio"),
]
KINDS = [
    *("mlp", "groupnorm", "recurrent", "trilinear"),
    *("gqa", "signed_heads", "signed_recurrent", "single"),
]


def assert_honest(outcome: Outcome, problem: AlignmentProblem, networks: Pair) -> None:
    """Assert valid permutations, the oracle's distance, no harm done, and a falling history."""
    permutation = problem.permutation(outcome.best)
    expected = objective(networks.spec, symmetry_of(permutation), networks.source, networks.target)
    slack = 1e-9 * float(problem.constant.abs())
    assert float(outcome.best.objective) == pytest.approx(expected, abs=slack)
    assert expected <= float(problem.identity().objective) + slack
    again = problem.objective(outcome.hypotheses.perms, outcome.hypotheses.model)
    assert torch.allclose(again, outcome.hypotheses.objective, rtol=0, atol=slack)
    history = [entry.best_distance for entry in outcome.history]
    assert all(later <= earlier for earlier, later in itertools.pairwise(history))
    assert history[-1] == pytest.approx(float(outcome.best.objective))
    assert outcome.seconds >= outcome.history[-1].seconds >= 0


@functools.cache
def whole(search: str, name: str) -> Outcome:
    """Return what a search finds for a pair."""
    return run_search(SEARCHES[search], problem_of(pair(name)), seed=3)


def assert_same_outcome(a: Outcome, b: Outcome) -> None:
    assert all(torch.equal(perm, b.best.perms[group]) for group, perm in a.best.perms.items())
    assert [e.best_distance for e in a.history] == [e.best_distance for e in b.history]


@pytest.mark.usefixtures("nan_filled_empty")
@pytest.mark.parametrize(("search", "name"), each_once(SEARCHES, KINDS))
def test_search_is_valid_honest_and_does_no_harm(search: str, name: str) -> None:
    networks = pair(name)
    problem = problem_of(networks)
    outcome = run_search(SEARCHES[search], problem, seed=1)
    assert outcome.status in (Status.CONVERGED, Status.COMPLETED)
    assert outcome.assignments > 0
    assert_honest(outcome, problem, networks)


@each_search
def test_same_seed_gives_the_same_result(search: str) -> None:
    problem = problem_of(pair("deep"))
    state = torch.get_rng_state()
    assert_same_outcome(run_search(SEARCHES[search], problem, seed=3), whole(search, "deep"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("search", slow(STOCHASTIC, but=STOCHASTIC[::2]))
def test_another_seed_takes_another_way(search: str) -> None:
    problem = problem_of(pair("deep"))
    # A long annealing forgets where it began.
    chosen = Annealing(starts=3, steps=2) if search == "annealing" else SEARCHES[search]
    runs = [run_search(chosen, problem, seed=seed) for seed in range(3)]
    ways = {tuple(entry.best_distance for entry in run.history) for run in runs}
    ways |= {tuple(run.hypotheses.fingerprint().tolist()) for run in runs}
    assert len(ways) > 2


@pytest.mark.parametrize(
    ("search", "name"), each_once(DESCENDING, ["groupnorm", "trilinear", "heads", "signed_heads"])
)
def test_no_single_family_can_improve_what_descended(search: str, name: str) -> None:
    networks = pair(name)
    problem = problem_of(networks)
    outcome = run_search(SEARCHES[search], problem, seed=2)
    found = hypothesis(networks.spec, outcome.best.perms, 0)
    assert_local_optimum(networks.spec, found, networks.source, networks.target)


@settings(max_examples=15)
@given(networks=tiny_pairs(), seed=seeds)
def test_descent_ends_in_a_local_optimum(networks: tuple, seed: int) -> None:
    spec, source, target = networks
    problem = AlignmentProblem(source, target, spec)
    outcome = run_search(CoordinateDescent(), problem, seed=seed)
    if outcome.status is not Status.TRIVIAL:
        assert_local_optimum(spec, hypothesis(spec, outcome.best.perms, 0), source, target)


@pytest.mark.parametrize(
    ("name", "order"),
    each_once(["deep", "recurrent", "signed", "gqa"], ["random", "forward", "backward"]),
)
def test_narrow_beam_descent_is_coordinate_descent(name: str, order: str) -> None:
    problem = problem_of(pair(name))
    for seed in range(3):
        beam = run_search(BeamDescent(width=1, expansions=1, order=order), problem, seed=seed)
        plain = run_search(CoordinateDescent(order=order), problem, seed=seed)
        assert_same_outcome(beam, plain)
        assert beam.assignments == plain.assignments
        assert beam.status is plain.status is Status.CONVERGED


@pytest.mark.parametrize("name", ["recurrent", "signed_recurrent", "grouped", "gqa"])
def test_descent_only_improves_a_quadratic_family(name: str) -> None:
    for seed in range(5):
        problem = problem_of(pair(name, seed))
        outcome = run_search(CoordinateDescent(starts=4, initial="random"), problem, seed=seed)
        assert outcome.status is Status.CONVERGED
        assert_honest(outcome, problem, pair(name, seed))


PLANTED_SEARCHES = ["annealing", "recombination", "portfolio", "frank_wolfe_starts"]


@pytest.mark.parametrize(("search", "name"), each_once(PLANTED_SEARCHES, ["deep", "cnn"]))
def test_planted_permutation_is_found(search: str, name: str) -> None:
    networks, permutation = planted(name, noise=0.0, seed=1)
    problem = problem_of(networks)
    chosen = SEARCHES[search]
    if isinstance(chosen, Recombination):
        chosen = Recombination()
    outcome = run_search(chosen, problem)
    assert_permutations_equal(problem.permutation(outcome.best), permutation)
    assert float(outcome.best.objective) <= 1e-10 * float(problem.constant)


# Budgets, interruption, trivial cases


@pytest.mark.parametrize("search", SEARCHES)
def test_budget_of_steps_ends_the_search(search: str) -> None:
    networks = pair("deep")
    problem, history = problem_of(networks), whole(search, "deep").history
    part = run_search(SEARCHES[search], problem, seed=3, budget=Budget(steps=1))
    assert len(part.history) == 1
    if len(history) > 1:
        assert part.status is Status.SWEEP_BUDGET
    assert part.history[0].best_distance == history[0].best_distance
    assert_honest(part, problem, networks)


def test_budget_of_seconds_ends_the_search() -> None:
    networks = pair("deep")
    problem = problem_of(networks)
    endless = BeamDescent(patience=10**6, rounds=10**6)
    outcome = run_search(endless, problem, budget=Budget(seconds=0.2))
    assert outcome.status is Status.TIME_BUDGET
    assert all(entry.seconds_left is not None for entry in outcome.history)
    assert_honest(outcome, problem, networks)


@pytest.mark.parametrize("limit", [{"steps": 0}, {"seconds": 0.0}, {"seconds": -1.0}], ids=str)
def test_budget_of_nothing_is_refused(limit: dict[str, float]) -> None:
    with pytest.raises(InputError, match="above 0"):
        Budget(**limit)


def test_sweeps_are_the_old_name_of_steps() -> None:
    with pytest.warns(DeprecationWarning, match="use Budget"):
        budget = Budget(sweeps=3)
    assert budget == Budget(steps=3) == Budget(3)
    progress = Progress("Any", 2, 5, 1.0, 0.1, None)
    for value, old in ((budget, "sweeps"), (progress, "sweep"), (progress, "sweeps")):
        with pytest.warns(DeprecationWarning, match="is deprecated: use"):
            assert getattr(value, old) == getattr(value, old.replace("sweep", "step"))
    assert Progress.from_json(progress.to_json()) == progress


@pytest.mark.parametrize("after", [1, 4])
@pytest.mark.parametrize("search", ["descent", "annealing", "portfolio"])
def test_interrupt_returns_the_best_so_far(search: str, after: int) -> None:
    networks = pair("deep")
    problem = problem_of(networks)
    seen: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        if progress.part:
            return  # a sign of life on a slow machine
        seen.append(progress)
        if len(seen) == after:
            raise KeyboardInterrupt

    chosen = CoordinateDescent(starts=16, initial="random") if search == "descent" else None
    outcome = run_search(chosen or SEARCHES[search], problem, progress=interrupt)
    assert outcome.status is Status.INTERRUPTED
    assert list(outcome.history) == seen
    assert_honest(outcome, problem, networks)


def test_threads_of_torch_come_back() -> None:
    torch.set_num_threads(2)

    def stop(progress: Progress) -> None:
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="callback"):
        run_search(CoordinateDescent(), problem_of(pair("deep")), progress=stop)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["mlp", "wide", "cnn", "recurrent", "gqa", "signed_heads"])
@pytest.mark.parametrize("search", ["greedy", "portfolio"])
def test_equal_networks_are_trivial(search: str, name: str, dtype: torch.dtype) -> None:
    networks = pair(name)
    problem = problem_of(replace(networks, source=networks.target), dtype=dtype)
    outcome = run_search(SEARCHES[search], problem)
    assert outcome.status is Status.TRIVIAL
    assert outcome.assignments == 0
    assert set(problem.permutation(outcome.best).moved().values()) == {0}


def test_evidence_that_likes_the_identity_does_not_end_the_search() -> None:
    networks = pair("mlp")
    evidence = torch.zeros(5, 5)
    evidence[0, 0] = 100.0
    problem = problem_of(networks, evidence={"2": evidence})
    assert float(problem.identity().objective) < 0
    outcome = run_search(CoordinateDescent(), problem)
    assert outcome.status is Status.CONVERGED
    assert float(outcome.best.objective) < float(problem.identity().objective)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_network_without_groups_is_trivial(search: Search) -> None:
    networks = pair("tiny")
    alone = {name: t for name, t in networks.spec.tensors.items() if not t.groups}
    spec = replace(networks.spec, groups={}, tensors=alone)
    source, target = ({name: s[name] for name in alone} for s in (networks.source, networks.target))
    problem = AlignmentProblem(source, target, spec)
    outcome = run_search(search, problem)
    assert outcome.status is Status.TRIVIAL
    distance = objective(spec, Symmetry({}), source, target)
    assert float(outcome.best.objective) == pytest.approx(distance)
    assert problem.permutation(outcome.best).perms == {}


@each_search
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_networks_of_equal_units_are_searched(search: str, dtype: torch.dtype) -> None:
    networks = pair("mlp")
    flat = [{n: torch.full_like(t, v) for n, t in networks.source.items()} for v in (0.5, 0.25)]
    same = replace(networks, source=flat[0], target=flat[1])
    problem = problem_of(same, dtype=dtype)
    outcome = run_search(SEARCHES[search], problem)
    assert float(outcome.best.objective) == pytest.approx(float(problem.identity().objective))


# Several models, starts, lineage


@each_search
def test_several_models_in_one_batch(search: str) -> None:
    pairs = [pair("deep", seed) for seed in range(3)]
    target, spec = pairs[0].target, pairs[0].spec
    sources = [networks.source for networks in pairs]
    problem = AlignmentProblem(sources, target, spec)
    outcome = run_search(SEARCHES[search], problem)
    assert outcome.best.model.tolist() == [0, 1, 2]
    for model, source in enumerate(sources):
        permutation = problem.permutation(outcome.best, model)
        expected = objective(spec, symmetry_of(permutation), source, target)
        assert float(outcome.best.objective[model]) == pytest.approx(expected)
        assert expected <= float(problem.identity().objective[model])
    history = [entry.best_distance for entry in outcome.history]
    assert history[-1] == pytest.approx(float(outcome.best.objective.mean()))


@pytest.mark.parametrize("search", ["greedy", "layerwise", "descent_forward", "frank_wolfe"])
def test_batch_of_models_equals_separate_problems(search: str) -> None:
    pairs = [pair("mlp", seed) for seed in range(3)]
    target, spec = pairs[0].target, pairs[0].spec
    together = run_search(
        SEARCHES[search], AlignmentProblem([p.source for p in pairs], target, spec)
    )
    for model, networks in enumerate(pairs):
        alone = run_search(SEARCHES[search], AlignmentProblem(networks.source, target, spec))
        assert float(together.best.objective[model]) == pytest.approx(float(alone.best.objective))


@each_search
def test_search_is_never_worse_than_its_start(search: str) -> None:
    networks, permutation = planted("deep", noise=0.01)
    problem = problem_of(networks)
    start = problem.hypotheses(problem.vectors(permutation))
    outcome = run_search(SEARCHES[search], problem, start=start)
    assert float(outcome.best.objective) <= float(start.objective) * (1 + 1e-12)


class Idle(Search[None]):
    """Finds nothing but the identity."""

    name = "Idle"

    def init(self, run: Run, start: Hypotheses | None) -> State:
        return State(self.name, run.problem.identity() if start is None else start, None)

    def step(self, run: Run, state: State) -> State:
        return replace(state, finished=Status.COMPLETED)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_origin_names_the_search_that_found_it(number: int) -> None:
    searches: list[Search] = [Idle(), Idle(), Idle()]
    searches[number - 1] = Annealing(starts=2)
    portfolio = Portfolio(tuple(searches), ())
    outcome = run_search(portfolio, problem_of(planted("deep", noise=0.0)[0]))
    assert int(outcome.best.lineage) == number
    assert portfolio.describe(number) == "Annealing"
    assert portfolio.describe(0) == "Identity"


def test_origin_of_what_nothing_improves_is_the_identity() -> None:
    networks = pair("deep")
    close = replace(networks, source={n: t + 1e-3 for n, t in networks.target.items()})
    outcome = run_search(Portfolio((CoordinateDescent(),), ()), problem_of(close))
    assert int(outcome.best.lineage) == 0


BAD_SETTINGS = {
    "starts": lambda: CoordinateDescent(starts=0),
    "order": lambda: CoordinateDescent(order="upward"),
    "initial": lambda: CoordinateDescent(initial="zeros"),
    "width": lambda: LayerwiseBeam(width=0),
    "rule": lambda: LayerwiseBeam(rule="nope"),
    "row_distance": lambda: LayerwiseBeam(row_distance="nope"),
    "k": lambda: KBest(0),
    "scale": lambda: Noise(3, scale=0.0),
    "unit": lambda: Rounding(3, unit=-1.0),
    "zero_unit": lambda: Rounding(3, unit=0.0),
    "steps": lambda: FrankWolfe(steps=0),
    "temperatures": lambda: Annealing(hot=0.1, cold=0.5),
    "damping": lambda: Annealing(damping=0.0),
    "beam": lambda: BeamDescent(expansions=0),
    "no_noise": lambda: BeamDescent(noise=()),
    "generations": lambda: Recombination(generations=0),
    "empty": lambda: Portfolio(searches=()),
}


@pytest.mark.parametrize("build", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_make_no_sense_are_refused(build: object) -> None:
    with pytest.raises(InputError):
        build()
