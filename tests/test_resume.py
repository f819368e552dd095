"""Searches that are interrupted and resumed: nothing is lost, and the result is the same."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import each_once, slow
from networks import pair
from test_problem import problem_of
from test_search import ONE_OF_EACH, SEARCHES, VARIANTS, whole

from gpu_align import (
    AlignmentProblem,
    Annealing,
    Budget,
    CoordinateDescent,
    FrankWolfe,
    Progress,
    Search,
    Status,
    run_search,
)
from gpu_align._assignment import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
    ScipyAssignment,
)
from gpu_align._device._random import RandomStream
from gpu_align._search import Outcome, Run, SearchStore, State, _annealing_step
from gpu_align._search._clock import Clock
from gpu_align._search._loop import run_to_end


@cache
def problem_named(name: str) -> AlignmentProblem:
    return problem_of(pair(name))


@contextlib.contextmanager
def interrupted_at(search: Search, step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt a search when step `step` is done, but not yet taken note of."""
    kind, taken = type(search), type(search).step

    def interrupted(self: Search, run: Run, state: State) -> State:
        after = taken(self, run, state)
        if self is search and state.step == step - 1:
            raise KeyboardInterrupt
        return after

    with monkeypatch.context() as patch:
        patch.setattr(kind, "step", interrupted)
        yield


def interrupt(
    search: Search,
    problem: AlignmentProblem,
    step: int,
    store: SearchStore,
    monkeypatch: pytest.MonkeyPatch,
) -> Outcome:
    """Run a search that is interrupted at a step."""
    with interrupted_at(search, step, monkeypatch):
        return run_search(search, problem, seed=3, store=store)


def assert_same(resumed: Outcome, expected: Outcome) -> None:
    for one, other in ((resumed.best, expected.best), (resumed.hypotheses, expected.hypotheses)):
        assert all(torch.equal(perm, other.perms[name]) for name, perm in one.perms.items())
        assert torch.equal(one.objective, other.objective)
        assert torch.equal(one.lineage, other.lineage)
    told = [
        [(e.stage, e.step, e.steps, e.best_distance) for e in outcome.history]
        for outcome in (resumed, expected)
    ]
    assert told[0] == told[1]
    assert resumed.status is expected.status
    assert resumed.assignments == expected.assignments
    seconds = [entry.seconds for entry in resumed.history]
    assert seconds == sorted(seconds)
    assert resumed.seconds >= seconds[-1]


@pytest.mark.parametrize(
    ("search", "name"),
    [
        *each_once(ONE_OF_EACH, ["deep", "signed_heads"]),
        *(pytest.param(name, "deep", marks=pytest.mark.slow) for name in VARIANTS),
        *(pytest.param(name, "signed_heads", marks=pytest.mark.slow) for name in VARIANTS),
    ],
)
def test_resumed_after_any_step_it_ends_as_if_never_interrupted(
    search: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, expected = problem_named(name), whole(search, name)
    count = len(expected.history)
    for step in {1, (count + 1) // 2, count}:
        path = tmp_path / f"{step}.search"
        part = interrupt(SEARCHES[search], problem, step, SearchStore(path), monkeypatch)
        assert part.status is Status.INTERRUPTED
        assert len(part.history) == max(step - 1, 1)
        again = SearchStore(path, resume=True)
        assert_same(run_search(SEARCHES[search], problem, seed=3, store=again), expected)
        again.discard()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=5)
@given(
    search=st.sampled_from(["annealing", "portfolio", "recombination", "beam"]),
    steps=st.lists(st.integers(1, 200), min_size=1, max_size=4),
)
def test_however_often_it_is_interrupted(
    search: str, steps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    problem, expected = problem_named("deep"), whole(search, "deep")
    path = tmp_path_factory.mktemp("often") / "any.search"
    resume = False
    for step in sorted(steps):

        def stop(progress: Progress, last: int = step) -> None:
            if progress.step >= last:
                raise KeyboardInterrupt

        store = SearchStore(path, resume=resume)
        run_search(SEARCHES[search], problem, seed=3, store=store, progress=stop)
        # A search that has ended before is kept only once it has been written.
        store.flush()
        resume = True
    store = SearchStore(path, resume=True)
    assert_same(run_search(SEARCHES[search], problem, seed=3, store=store), expected)


@pytest.mark.parametrize("at", slow(range(6), but=(0, 4)))
@pytest.mark.parametrize("name", ["deep", "signed_heads"])
def test_interrupted_within_a_step_in_place(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt an annealing within its step, and right after it has moved in place."""
    problem, search, calls = problem_named(name), SEARCHES["annealing"], []
    soften, take = _annealing_step.soften, _annealing_step.AnnealingStep.take

    def broken(*args: object) -> object:
        calls.append(None)
        if len(calls) == 20 + at:
            raise KeyboardInterrupt
        return soften(*args)

    def broken_after(*args: object) -> None:
        take(*args)
        calls.append(None)
        if len(calls) == 20:
            raise KeyboardInterrupt

    store = SearchStore(tmp_path / "s")
    with monkeypatch.context() as patch:
        if at:
            patch.setattr(_annealing_step, "soften", broken)
        else:
            patch.setattr(_annealing_step.AnnealingStep, "take", broken_after)
        run_search(search, problem, seed=3, store=store)
    resumed = run_search(search, problem, seed=3, store=SearchStore(store.path, resume=True))
    assert_same(resumed, whole("annealing", name))


@pytest.mark.parametrize("search", [Annealing(starts=2, steps=3), FrankWolfe(starts=2, steps=3)])
def test_waves_are_resumed(search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_named("deep")
    monkeypatch.setenv("GPU_ALIGN_MEMORY", "1")
    expected = run_search(search, problem, seed=3)
    for step in range(1, len(expected.history) + 1):
        store = SearchStore(tmp_path / str(step))
        with interrupted_at(search, step, monkeypatch):
            run_search(search, problem, seed=3, store=store)
        again = SearchStore(store.path, resume=True)
        assert_same(run_search(search, problem, seed=3, store=again), expected)


def test_several_models_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair("deep", 0), pair("deep", 1)
    problem = AlignmentProblem([first.source, second.source], first.target, first.spec)
    search = SEARCHES["portfolio"]
    expected = run_search(search, problem, seed=3)
    interrupt(search, problem, 30, SearchStore(tmp_path / "s"), monkeypatch)
    again = SearchStore(tmp_path / "s", resume=True)
    assert_same(run_search(search, problem, seed=3, store=again), expected)


# Budgets


def stop_at(step: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return stop


def interrupted_store(path: Path, step: int = 5, **changes: object) -> SearchStore:
    store = SearchStore(path)
    arguments = {"search": SEARCHES["annealing"], "problem": problem_named("deep"), "seed": 3}
    run_search(**(arguments | changes), store=store, progress=stop_at(step))  # type: ignore
    return SearchStore(path, resume=True)


def test_budgets_hold_for_both_parts_and_may_be_raised(tmp_path: Path) -> None:
    problem, search = problem_named("deep"), SEARCHES["annealing"]
    store = interrupted_store(tmp_path / "s", budget=Budget(steps=8))
    part = run_search(search, problem, seed=3, store=store, budget=Budget(steps=8))
    assert (part.status, len(part.history)) == (Status.SWEEP_BUDGET, 8)
    best = run_search(search, problem, seed=3, store=store, budget=Budget(steps=1))
    assert (best.status, len(best.history)) == (Status.SWEEP_BUDGET, 5)
    assert_same(run_search(search, problem, seed=3, store=store), whole("annealing", "deep"))


def test_seconds_before_the_interruption_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(progress: Progress) -> None:
        if progress.step == 2:
            store.note(replace(store._searches[0]["snapshot"], seconds=1000.0))
            raise KeyboardInterrupt

    problem, search = problem_named("deep"), SEARCHES["annealing"]
    store = SearchStore(tmp_path / "s")
    run_search(search, problem, seed=3, store=store, progress=slow)
    store = SearchStore(tmp_path / "s", resume=True)
    outcome = run_search(search, problem, seed=3, store=store, budget=Budget(seconds=900))
    assert outcome.status is Status.TIME_BUDGET
    assert outcome.seconds >= 1000
    outcome = run_search(search, problem, seed=3, store=store, budget=Budget(seconds=1060))
    assert outcome.history[-1].seconds >= 1000
    assert outcome.status is Status.CONVERGED


class Slow(AbstractAssignmentSolver):
    """Takes 30 seconds for each batch of a clock that nothing else moves."""

    name = "slow"

    def __init__(self) -> None:
        self.now = 0.0

    def solve(self, problem: AssignmentProblem) -> AssignmentSolution:
        self.now += 30
        return ScipyAssignment().solve(problem)

    def run_of_50_seconds(self, problem: AlignmentProblem) -> Run:
        clock = Clock(Budget(seconds=50), now=lambda: self.now)
        return Run(problem, RandomStream(0), self, clock=clock)


def test_time_that_runs_out_within_a_sweep_keeps_its_moves() -> None:
    problem, slow = problem_named("deep"), Slow()
    outcome = run_to_end(slow.run_of_50_seconds(problem), CoordinateDescent(order="forward"))
    assert outcome.status is Status.TIME_BUDGET
    assert outcome.assignments == 2 < len(problem.order)
    assert float(outcome.best.objective) < float(problem.identity().objective)
    again = problem.objective(outcome.best.perms, outcome.best.model)
    assert torch.allclose(again, outcome.best.objective)


def test_time_that_runs_out_within_a_step_of_all_groups() -> None:
    slow = Slow()
    outcome = run_to_end(slow.run_of_50_seconds(problem_named("deep")), FrankWolfe(starts=2))
    assert outcome.status is Status.TIME_BUDGET
    assert outcome.assignments == 2 * 2
    assert outcome.history[-1].step == 0


@pytest.mark.parametrize("search", ["descent_starts", "annealing", "recombination", "frank_wolfe"])
def test_long_steps_give_signs_of_life(search: str) -> None:
    shown: list[Progress] = []
    clock = Clock(progress=shown.append, silence=0.0)
    run = Run(problem_named("deep"), RandomStream(3), clock=clock)
    outcome = run_to_end(run, SEARCHES[search])
    assert [entry for entry in shown if not entry.part] == list(outcome.history)
    parts = [entry.part for entry in shown if entry.part]
    assert len(parts) > len(outcome.history)
    assert all(" of " in part for part in parts)
    assert_same(outcome, whole(search, "deep"))
