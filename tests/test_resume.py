"""Searches that are interrupted and resumed: nothing is lost, and the result is the same."""

import contextlib
import itertools
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import pair
from test_problem import problem_of
from test_search import SEARCHES

from gpu_align import (
    AlignmentProblem,
    Annealing,
    Budget,
    CoordinateDescent,
    InputError,
    Progress,
    Search,
    Status,
    run_search,
)
from gpu_align._search import Outcome, Run, SearchStore, State, _cooling, _descent, _store

KINDS = ("deep", "signed_heads")


@cache
def problem_named(name: str) -> AlignmentProblem:
    return problem_of(pair(name))


@cache
def whole(search: str, name: str) -> Outcome:
    return run_search(SEARCHES[search], problem_named(name), seed=3)


def interrupt(
    search: Search,
    problem: AlignmentProblem,
    step: int,
    store: SearchStore,
    monkeypatch: pytest.MonkeyPatch,
) -> Outcome:
    """Run a search that is interrupted when step `step` is done, but not yet taken note of."""
    taken = type(search).step

    def interrupted(self: Search, run: Run, state: State) -> State:
        after = taken(self, run, state)
        if self is search and state.sweep == step:
            raise KeyboardInterrupt
        return after

    with monkeypatch.context() as patch:
        patch.setattr(type(search), "step", interrupted)
        return run_search(search, problem, seed=3, store=store)


def assert_same(resumed: Outcome, expected: Outcome) -> None:
    for one, other in ((resumed.best, expected.best), (resumed.hypotheses, expected.hypotheses)):
        assert all(torch.equal(perm, other.perms[name]) for name, perm in one.perms.items())
        assert torch.equal(one.objective, other.objective)
        assert torch.equal(one.origin, other.origin)
    told = [
        [(e.stage, e.sweep, e.sweeps, e.best_distance) for e in outcome.history]
        for outcome in (resumed, expected)
    ]
    assert told[0] == told[1]
    assert resumed.status is expected.status
    assert resumed.assignments == expected.assignments
    seconds = [entry.seconds for entry in resumed.history]
    assert seconds == sorted(seconds)
    assert resumed.seconds >= seconds[-1]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("search", SEARCHES)
def test_resumed_after_any_step_it_ends_as_if_never_interrupted(
    search: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, expected = problem_named(name), whole(search, name)
    count = len(expected.history)
    for step in {*range(1, count + 1, max(count // 12, 1)), count}:
        path = tmp_path / f"{step}.search"
        part = interrupt(SEARCHES[search], problem, step, SearchStore(path), monkeypatch)
        assert part.status is Status.INTERRUPTED
        assert len(part.history) == max(step - 1, 1)
        again = SearchStore(path, resume=True)
        assert_same(run_search(SEARCHES[search], problem, seed=3, store=again), expected)
        again.discard()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20)
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
            if progress.sweep >= last:
                raise KeyboardInterrupt

        store = SearchStore(path, resume=resume)
        run_search(SEARCHES[search], problem, seed=3, store=store, progress=stop)
        # A search that has ended before is kept only once it has been written.
        store.flush()
        resume = True
    store = SearchStore(path, resume=True)
    assert_same(run_search(SEARCHES[search], problem, seed=3, store=store), expected)


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("name", ["deep", "signed_heads"])
def test_interrupted_within_a_step_in_place(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt an annealing within its step, and right after it has moved in place."""
    problem, search, calls = problem_named(name), SEARCHES["annealing"], []
    soften, step = _cooling.soften, _cooling.Cooling.step

    def broken(*args: object) -> object:
        calls.append(None)
        if len(calls) == 20 + at:
            raise KeyboardInterrupt
        return soften(*args)

    def broken_after(*args: object) -> None:
        step(*args)
        calls.append(None)
        if len(calls) == 20:
            raise KeyboardInterrupt

    store = SearchStore(tmp_path / "s")
    with monkeypatch.context() as patch:
        if at:
            patch.setattr(_cooling, "soften", broken)
        else:
            patch.setattr(_cooling.Cooling, "step", broken_after)
        run_search(search, problem, seed=3, store=store)
    resumed = run_search(search, problem, seed=3, store=SearchStore(store.path, resume=True))
    assert_same(resumed, whole("annealing", name))


def test_waves_of_an_annealing_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, search = problem_named("deep"), Annealing(starts=3, steps=4)
    monkeypatch.setattr(Run, "waves", lambda self, count: iter(torch.arange(count).split(1)))
    expected = run_search(search, problem, seed=3)
    for step in range(1, len(expected.history) + 1):
        path = tmp_path / str(step)
        interrupt(search, problem, step, SearchStore(path), monkeypatch)
        again = SearchStore(path, resume=True)
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


def stop_at(sweep: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.sweep == sweep:
            raise KeyboardInterrupt

    return stop


def interrupted_store(path: Path, sweep: int = 5, **changes: object) -> SearchStore:
    store = SearchStore(path)
    arguments = {"search": SEARCHES["annealing"], "problem": problem_named("deep"), "seed": 3}
    run_search(**(arguments | changes), store=store, progress=stop_at(sweep))  # type: ignore
    return SearchStore(path, resume=True)


def test_budgets_hold_for_both_parts_and_may_be_raised(tmp_path: Path) -> None:
    problem, search = problem_named("deep"), SEARCHES["annealing"]
    store = interrupted_store(tmp_path / "s", budget=Budget(sweeps=8))
    part = run_search(search, problem, seed=3, store=store, budget=Budget(sweeps=8))
    assert (part.status, len(part.history)) == (Status.SWEEP_BUDGET, 8)
    best = run_search(search, problem, seed=3, store=store, budget=Budget(sweeps=1))
    assert (best.status, len(best.history)) == (Status.SWEEP_BUDGET, 5)
    assert_same(run_search(search, problem, seed=3, store=store), whole("annealing", "deep"))


def test_seconds_before_the_interruption_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(progress: Progress) -> None:
        if progress.sweep == 2:
            store.note(replace(store._newest, seconds=1000.0))
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


def test_time_that_runs_out_within_a_sweep_keeps_its_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, moved = problem_named("deep"), []
    move = _descent._move

    def slow(run: Run, *args: object) -> object:
        moved.append(None)
        if len(moved) == 2:
            run.clock._started -= 100
        return move(run, *args)

    monkeypatch.setattr(_descent, "_move", slow)
    outcome = run_search(CoordinateDescent(order="forward"), problem, budget=Budget(seconds=50))
    assert outcome.status is Status.TIME_BUDGET
    assert len(moved) == 2 < len(problem.groups)
    assert float(outcome.best.objective) < float(problem.identity().objective)
    again = problem.objective(outcome.best.perms, outcome.best.model)
    assert torch.allclose(again, outcome.best.objective)


def test_time_that_runs_out_within_a_step_of_all_groups() -> None:
    problem, steps = problem_named("deep"), []

    class Slow(Annealing):
        def step(self, run: Run, state: State) -> State:
            steps.append(None)
            if len(steps) == 3:
                run.clock._started -= 100
            return super().step(run, state)

    outcome = run_search(Slow(starts=2), problem, budget=Budget(seconds=50))
    assert outcome.status is Status.TIME_BUDGET
    assert len(outcome.history) == 2


@pytest.mark.parametrize("search", ["descent_starts", "annealing", "recombination", "frank_wolfe"])
def test_long_steps_give_signs_of_life(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_align._search import _clock

    monkeypatch.setattr(_clock, "_BEAT", 0.0)
    shown: list[Progress] = []
    problem = problem_named("deep")
    outcome = run_search(SEARCHES[search], problem, seed=3, progress=shown.append)
    assert [entry for entry in shown if not entry.part] == list(outcome.history)
    parts = [entry.part for entry in shown if entry.part]
    assert len(parts) > len(outcome.history)
    assert all(" of " in part for part in parts)
    assert_same(outcome, whole(search, "deep"))


# What is refused


OTHERS: dict[str, tuple[str, dict[str, object]]] = {
    "seed": ("the seed: it was 3, now it is 4", {"seed": 4}),
    "search": ("the search: it was Annealing, now it is Coord", {"search": CoordinateDescent()}),
    "settings": ("the search: its settings", {"search": Annealing(starts=7)}),
    "source": (
        "the weights of the source: not the same",
        {"problem": problem_of(replace(pair("deep"), source=pair("deep", 5).source))},
    ),
    "metric": (
        "the metric: it was l2, now it is row",
        {"problem": problem_of(pair("deep"), metric="row")},
    ),
    "dtype": ("float32", {"problem": problem_of(pair("deep"), dtype=torch.float32)}),
    "networks": ("the symmetries: not the same", {"problem": problem_named("signed_heads")}),
}


@pytest.mark.parametrize(("mentions", "changes"), OTHERS.values(), ids=OTHERS)
def test_another_search_is_not_resumed(
    mentions: str, changes: dict[str, object], tmp_path: Path
) -> None:
    store = interrupted_store(tmp_path / "s")
    before = store.path.read_bytes()
    arguments = {"search": SEARCHES["annealing"], "problem": problem_named("deep"), "seed": 3}
    with pytest.raises(InputError) as refusal:
        run_search(**(arguments | changes), store=store)  # type: ignore
    assert mentions in str(refusal.value)
    assert "--resume" in str(refusal.value)
    assert store.path.read_bytes() == before


def resumed_from(path: Path) -> Outcome:
    store = SearchStore(path, resume=True)
    return run_search(SEARCHES["annealing"], problem_named("deep"), seed=3, store=store)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        resumed_from(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot resume"):
        resumed_from(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(share: float, tmp_path: Path) -> None:
    path = interrupted_store(tmp_path / "s").path
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="cannot resume"):
        resumed_from(path)


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_damaged_file(place: float, mask: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = interrupted_store(tmp_path_factory.mktemp("damaged") / "s").path
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= mask
    path.write_bytes(content)
    # Any other exception fails; padding may change without harm.
    with contextlib.suppress(InputError):
        assert_same(resumed_from(path), whole("annealing", "deep"))


class Hostile:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple:
        return os.system, (self.code,)


def write_plain(path: Path, document: object) -> None:
    path.write_bytes(pickle.dumps(document, protocol=2))


def write_zipped(path: Path, document: object) -> None:
    torch.save(document, path)


@pytest.mark.parametrize("write", [write_plain, write_zipped])
@pytest.mark.parametrize("inside", [False, True])
def test_code_in_a_file_is_not_run(
    inside: bool, write: Callable[[Path, object], None], tmp_path: Path
) -> None:
    hostile = Hostile(f"touch {tmp_path / 'executed'}")
    document = {"schema": _store.SCHEMA, "identity": {}, "snapshot": hostile}
    write(tmp_path / "s", document if inside else hostile)
    with pytest.raises(InputError, match="cannot resume"):
        resumed_from(tmp_path / "s")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("part", ["schema", "identity", "snapshot", "perms", "state"])
def test_incomplete_file(part: str, tmp_path: Path) -> None:
    path = interrupted_store(tmp_path / "s").path
    with torch.serialization.safe_globals(list(_store.STORED)):
        document = torch.load(path, weights_only=True)
    if part == "perms":
        next(iter(document["snapshot"].best.perms.values()))[0, 0] += 1
    elif part == "state":
        object.__delattr__(document["snapshot"].state, "sweep")
    else:
        document[part] = None
    torch.save(document, path)
    with pytest.raises(InputError, match="cannot resume"):
        resumed_from(path)


# When it is written


def test_it_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, saves = [0.0], []
    write = SearchStore._write

    def slow(self: SearchStore, snapshot: object) -> None:
        write(self, snapshot)
        saves.append(now[0])
        now[0] += 4.0

    def step(progress: Progress) -> None:
        now[0] += 7.0

    monkeypatch.setattr(_store.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(SearchStore, "_write", slow)
    store = SearchStore(tmp_path / "s")
    run_search(SEARCHES["annealing"], problem_named("deep"), seed=3, store=store, progress=step)
    assert 30 <= saves[0] < 30 + 7
    assert all(84 <= later - earlier < 84 + 7 for earlier, later in itertools.pairwise(saves))
    assert len(saves) > 3


def test_short_searches_write_nothing(tmp_path: Path) -> None:
    store = SearchStore(tmp_path / "s")
    run_search(SEARCHES["annealing"], problem_named("deep"), store=store)
    assert list(tmp_path.iterdir()) == []
    store.flush()
    assert store.kept
    assert list(tmp_path.iterdir()) == [store.path]
    store.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("zip")])
def test_the_search_goes_on_where_its_state_cannot_be_kept(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise failure

    monkeypatch.setattr(_store.torch, "save", full)
    monkeypatch.setattr(_store, "_INTERVAL", 0.0)
    monkeypatch.setattr(_store, "_SHARE", 1e9)
    told: list[str] = []
    store = SearchStore(tmp_path / "s", on_failure=told.append)
    outcome = run_search(SEARCHES["annealing"], problem_named("deep"), seed=3, store=store)
    assert_same(outcome, whole("annealing", "deep"))
    assert len(told) == 1  # not after every step
    assert "could not be kept" in told[0]
    assert not store.kept
    assert list(tmp_path.iterdir()) == []


def test_a_warning_tells_of_a_folder_that_is_gone(tmp_path: Path) -> None:
    store = SearchStore(tmp_path / "gone" / "s")
    with pytest.warns(RuntimeWarning, match="does not exist"):
        run_search(
            SEARCHES["annealing"],
            problem_named("deep"),
            store=store,
            progress=stop_at(3),
        )


def test_caches_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_align._search import _recall

    monkeypatch.setattr(_recall, "_WORTH", 0)
    problem, search = problem_named("deep"), CoordinateDescent(starts=8, initial="random")
    expected = run_search(search, problem, seed=3)
    interrupt(search, problem, 3, SearchStore(tmp_path / "s"), monkeypatch)
    with zipfile.ZipFile(tmp_path / "s") as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 100_000
    resumed = run_search(search, problem, seed=3, store=SearchStore(tmp_path / "s", resume=True))
    assert torch.allclose(resumed.best.objective, expected.best.objective)
