"""What each search promises beyond a good answer: who breeds, who stays, when it ends."""

from dataclasses import replace

import pytest
import torch
from networks import pair
from test_problem import problem_of
from test_search import SEARCHES
from torch import Tensor

from gpu_align import (
    AlignmentProblem,
    Annealing,
    BeamDescent,
    CoordinateDescent,
    Portfolio,
    Recombination,
    Status,
    run_search,
)
from gpu_align._device import RandomStream
from gpu_align._problem import Hypotheses, concatenate, hash_tensors
from gpu_align._search import Outcome, Run

FORWARD = CoordinateDescent(order="forward")


def stages(outcome: Outcome) -> set[str]:
    return {entry.stage for entry in outcome.history}


@pytest.mark.parametrize("search", SEARCHES)
def test_the_unit_of_the_weights_plays_no_part(search: str) -> None:
    """Powers of two scale without rounding: every decision is the same, to the last bit."""
    networks, scale = pair("recurrent"), 2.0**-20
    scaled = [
        {name: scale * tensor for name, tensor in state.items()}
        for state in (networks.source, networks.target)
    ]
    plain, other = (
        run_search(SEARCHES[search], problem, seed=5)
        for problem in (problem_of(networks), AlignmentProblem(*scaled, networks.spec))
    )
    for name, perm in plain.hypotheses.perms.items():
        assert torch.equal(perm, other.hypotheses.perms[name])
    assert len(plain.history) == len(other.history)
    assert plain.assignments == other.assignments
    assert float(other.best.objective) == pytest.approx(scale**2 * float(plain.best.objective))


# Annealing


def annealed(name: str, times: int) -> Hypotheses:
    """Return what is rounded in the end where every step is taken so often."""
    search, run = Annealing(starts=4, steps=5), Run(problem_of(pair(name)), RandomStream(0))
    state = search.init(run, None)
    for sweep in range(1, search.steps + 1):
        taken = [search.step(run, replace(state, step=sweep)) for _ in range(times)]
        state = taken[-1]
    return state.hypotheses


@pytest.mark.parametrize("name", ["deep", "signed_heads"])
def test_a_step_that_was_interrupted_after_it_had_moved_is_not_done_twice(name: str) -> None:
    """It moves in place, so that the state before it is no more."""
    once, again = annealed(name, 1), annealed(name, 2)
    for variable, perm in once.perms.items():
        assert torch.equal(perm, again.perms[variable])


# Recombination


def test_parents_are_two_adults_of_one_model() -> None:
    first, second = pair("deep", 0), pair("deep", 1)
    problem = AlignmentProblem([first.source, second.source], first.target, first.spec)
    run = Run(problem, RandomStream(0))
    adults = problem.random(3, run.random)
    mothers, fathers = Recombination(population=3, children=40)._draw_parents(run, adults)
    assert (mothers != fathers).all()
    assert torch.equal(mothers // 3, torch.arange(2).repeat_interleave(40))
    assert torch.equal(fathers // 3, mothers // 3)
    for parents in (mothers, fathers):
        assert set(parents.tolist()) == set(range(6))


def test_a_generation_keeps_its_best_adult() -> None:
    problem = problem_of(pair("deep"))
    found = run_search(BeamDescent(), problem, seed=1).best
    adults = concatenate([found, problem.random(1, RandomStream(1))])
    # Nearly all of a child is noise, so that it is no better than a random one.
    search = Recombination(population=2, children=2, generations=1, noise=0.99, steps=2)
    outcome = run_search(search, problem, start=adults)
    assert torch.equal(outcome.hypotheses.best().objective, adults.best().objective)
    assert outcome.hypotheses.each == 2


def test_children_bear_the_mark_of_a_parent() -> None:
    problem = problem_of(pair("deep"))
    adults = problem.random(4, RandomStream(1)).marked(3)
    search = Recombination(population=4, children=8, generations=2)
    outcome = run_search(search, problem, start=adults)
    assert outcome.hypotheses.lineage.tolist() == [3] * 4


# Portfolio


def test_one_hypothesis_that_was_found_before_is_no_consensus() -> None:
    """Two searches that draw nothing agree, which says nothing."""
    portfolio = Portfolio((FORWARD, FORWARD), (BeamDescent(patience=1),), width=2)
    outcome = run_search(portfolio, problem_of(pair("deep")))
    assert stages(outcome) == {"CoordinateDescent", "BeamDescent"}


def test_a_consensus_ends_the_portfolio() -> None:
    several = CoordinateDescent(starts=3, order="forward")
    refinement = (BeamDescent(patience=1),)
    problem = problem_of(pair("deep"))
    agreeing = run_search(Portfolio((FORWARD, several), refinement), problem)
    assert stages(agreeing) == {"CoordinateDescent"}
    backward = CoordinateDescent(order="backward")
    other = run_search(Portfolio((backward, several), refinement), problem)
    if float(other.history[-1].best_distance) != float(agreeing.best.objective):
        assert stages(other) == {"CoordinateDescent", "BeamDescent"}


def test_the_pool_hands_the_best_of_all_searches_on() -> None:
    """The second search is as bad as can be; the refinement begins from the first one's find."""
    problem = problem_of(pair("deep"))
    found = run_search(SEARCHES["annealing"], problem, seed=1).best
    poor = CoordinateDescent(starts=2, initial="random")
    portfolio = Portfolio((SEARCHES["annealing"], poor), (FORWARD,), width=2)
    outcome = run_search(portfolio, problem, seed=1)
    assert float(outcome.hypotheses.best().objective) <= float(found.objective)


# Beam descent


def distances(search: BeamDescent, seed: int = 0) -> list[float]:
    outcome = run_search(search, problem_of(pair("deep")), seed=seed)
    return [entry.best_distance for entry in outcome.history]


def test_patience_is_renewed_by_every_better_hypothesis() -> None:
    """With this seed a better one is found in time, and the search goes on for it."""
    endless, two = (distances(BeamDescent(patience=2, rounds=rounds)) for rounds in (1000, 2))
    assert len(endless) > len(two)


def test_every_round_has_a_noise_of_its_own() -> None:
    same, varied = (
        distances(BeamDescent(noise=noise, rounds=6, patience=9), seed=1)
        for noise in ((0.1,), (0.1, 2.0))
    )
    assert same != varied
    assert same[0] == varied[0]


def test_a_number_of_rounds_ends_the_beam() -> None:
    outcome = run_search(BeamDescent(rounds=1, patience=9), problem_of(pair("deep")))
    assert outcome.status is Status.COMPLETED
    assert outcome.hypotheses.each == BeamDescent().width


# Hashes of weights


def test_a_hash_tells_names_shapes_dtypes_and_models_apart() -> None:
    x, y = torch.arange(6.0), torch.arange(6.0) + 1
    states: list[list[dict[str, Tensor]]] = [
        [{"a": x, "b": y}],
        [{"a": y, "b": x}],
        [{"a": x, "c": y}],
        [{"a": x}, {"b": y}],
        [{"b": y}, {"a": x}],
        [{}, {"a": x, "b": y}],
        [{"a": x.view(2, 3), "b": y}],
        [{"a": x.view(3, 2), "b": y}],
        [{"a": x.view(torch.int32), "b": y}],
    ]
    assert len({hash_tensors(state) for state in states}) == len(states)


def test_a_hash_does_not_see_how_weights_lie_in_memory() -> None:
    x, y = torch.randn(3, 4), torch.randn(2)
    spread = torch.randn(4, 6)[:, ::2]
    spread.copy_(x.T)
    assert hash_tensors([{"a": x, "b": y}]) == hash_tensors([{"b": y, "a": spread.T}])
