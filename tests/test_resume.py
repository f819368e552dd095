"""Searches that are interrupted and resumed: nothing is lost, and the result is the same."""

import contextlib
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from children import WAIT, child
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import pair
from test_problem import problem_of
from test_search import SEARCHES
from typer.testing import CliRunner, Result

from gpu_align import (
    AlignmentProblem,
    Annealing,
    Budget,
    CheckpointError,
    CoordinateDescent,
    FrankWolfe,
    InputError,
    Progress,
    Search,
    Status,
    _interrupt,
    run_search,
    save_checkpoint,
)
from gpu_align._align import _many
from gpu_align._assignment import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
    ScipyAssignment,
)
from gpu_align._cli import _outputs, _terminal
from gpu_align._cli._main import app
from gpu_align._device._random import RandomStream
from gpu_align._search import Outcome, Run, SearchStore, State, _annealing_step, _store
from gpu_align._search._clock import Clock
from gpu_align._search._loop import run_to_end

KINDS = ("deep", "signed_heads")


@cache
def problem_named(name: str) -> AlignmentProblem:
    return problem_of(pair(name))


@cache
def whole(search: str, name: str) -> Outcome:
    return run_search(SEARCHES[search], problem_named(name), seed=3)


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


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("search", SEARCHES)
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
            if progress.step >= last:
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


@pytest.mark.parametrize("search", [Annealing(starts=3, steps=4), FrankWolfe(starts=3, steps=3)])
def test_waves_are_resumed(search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_named("deep")

    def tight() -> Run:
        return Run(problem, RandomStream(3), free=lambda device: 1)

    expected = run_to_end(tight(), search)
    for step in range(1, len(expected.history) + 1):
        store = SearchStore(tmp_path / str(step))
        with interrupted_at(search, step, monkeypatch):
            run_to_end(tight(), search, store=store)
        again = SearchStore(store.path, resume=True)
        assert_same(run_to_end(tight(), search, store=again), expected)


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


@pytest.mark.parametrize("schema", ["gpu-align/search/1", "gpu-align/search/99"])
def test_a_search_of_another_release_is_refused_by_name(schema: str, tmp_path: Path) -> None:
    path = interrupted_store(tmp_path / "s").path
    torch.save({"schema": schema, "identity": {}, "snapshot": OfAnotherRelease()}, path)
    with pytest.raises(InputError, match=f"kept by another release .{schema}; this one reads"):
        resumed_from(path)


class OfAnotherRelease:
    """A class that this release does not have, as far as it knows."""


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
        object.__delattr__(document["snapshot"].state, "step")
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

    monkeypatch.setattr(SearchStore, "_write", slow)
    store = SearchStore(tmp_path / "s", now=lambda: now[0])
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
    told: list[str] = []
    store = SearchStore(tmp_path / "s", on_failure=told.append)
    store.interval, store.share = 0.0, 1e9
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
    search = CoordinateDescent(starts=8, initial="random")

    def cached() -> Run:
        run = Run(problem_named("deep"), RandomStream(3))
        run.executor.cache.least_work = 0
        return run

    expected = run_to_end(cached(), search)
    with interrupted_at(search, 3, monkeypatch):
        run_to_end(cached(), search, store=SearchStore(tmp_path / "s"))
    with zipfile.ZipFile(tmp_path / "s") as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 100_000
    resumed = run_to_end(cached(), search, store=SearchStore(tmp_path / "s", resume=True))
    assert torch.allclose(resumed.best.objective, expected.best.objective)


# On the command line


def write_networks(folder: Path, width: int) -> None:
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        sizes = [10, width, width, 4]
        shapes = {
            f"{2 * n}.weight": (rows, cols)
            for n, (cols, rows) in enumerate(itertools.pairwise(sizes))
        }
        state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        save_checkpoint(folder / f"{seed}.safetensors", state)


SLOW = "from gpu_align import SearchStore; SearchStore.interval = {interval}; "
"""Python that has a search kept more often."""


def command(*options: str, interval: float = 30.0) -> list[str]:
    code = SLOW.format(interval=interval) + "from gpu_align._cli import main; main()"
    networks = ("1.safetensors", "0.safetensors", "-o", "new.safetensors", "-q")
    return [sys.executable, "-c", code, "align", *networks, *options]


def finish(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options), cwd=folder, capture_output=True, text=True, timeout=4 * WAIT
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = ("--search", "annealing", "--starts", "16")


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two networks, and what is made of them without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    write_networks(folder, 128)
    done = finish(folder, *LONG)
    assert done.returncode == 0, done.stderr
    return folder


def copy_networks(source: Path, folder: Path) -> None:
    for seed in (0, 1):
        shutil.copy(source / f"{seed}.safetensors", folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_is_continued(
    number: signal.Signals, uninterrupted_run: Path, tmp_path: Path
) -> None:
    copy_networks(uninterrupted_run, tmp_path)
    state, out = tmp_path / "new.safetensors.search", tmp_path / "new.safetensors"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child(command(*LONG, interval=0.1), cwd=tmp_path, **pipes) as process:
        wait_for(state)
        process.send_signal(number)
        _, stderr = process.communicate()
    assert "Traceback" not in stderr
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
    else:
        assert process.returncode == 1
        assert "--resume" in stderr
        assert out.exists()
    refused = finish(tmp_path, *LONG)
    assert refused.returncode == 2
    assert "add --resume" in refused.stderr
    done = finish(tmp_path, *LONG, "--resume")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == (uninterrupted_run / "new.safetensors").read_bytes()
    assert not state.exists()


def test_the_second_ctrl_c_quits_at_once(tmp_path: Path) -> None:
    """Also where Python itself does not get to look at signals: the handler hangs here."""
    code = (
        "import signal, sys, time\n"
        "from gpu_align import _interrupt\n"
        "_interrupt._interrupt = lambda *args: time.sleep(99)\n"
        "_interrupt.take_signals()\n"
        "print('ready', flush=True)\n"
        "time.sleep(99)\n"
    )
    with child([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(2 * _interrupt._SAME)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 1


@pytest.mark.parametrize("module", [False, True])
def test_ctrl_c_during_the_imports(module: bool, tmp_path: Path) -> None:
    # A stand-in for torch that says when it is being imported.
    (tmp_path / "torch.py").write_text("import time; print('in', flush=True); time.sleep(99)\n")
    script = tmp_path / "gpu-align"
    script.write_text("from gpu_align._cli import main; main()\n", encoding="utf-8")
    how = ["-m", "gpu_align"] if module else [str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child([sys.executable, *how, "env"], env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (1, "interrupted\n")


def test_importing_the_library_leaves_signals_alone() -> None:
    code = (
        "import signal; import gpu_align; "
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_signals_are_held_back_within_and_delivered_after() -> None:
    done = []

    def interrupted() -> None:
        with _interrupt.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("within")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["within"]
    with _interrupt.uninterrupted(deliver=False):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_networks(tmp_path, 8)
    return tmp_path


def invoke(*options: str) -> Result:
    networks = ("align", "1.safetensors", "0.safetensors", "--search", "annealing")
    return CliRunner().invoke(app, [*networks, *options])


def invoke_interrupted(monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    def stop(self: object, progress: Progress) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_terminal.Display, "search", stop)
        return invoke(*options)


def test_source_is_not_replaced_by_an_interrupted_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path("1.safetensors").read_bytes()
    result = invoke_interrupted(monkeypatch, "-o", "1.safetensors")
    assert result.exit_code == 1
    assert "--steps 1" in result.stderr
    assert Path("1.safetensors").read_bytes() == before
    assert "nothing was written" not in result.stdout
    assert invoke("-o", "1.safetensors", "--resume").exit_code == 0
    assert Path("1.safetensors").read_bytes() != before
    assert not Path("1.safetensors.search").exists()


def test_without_outputs_nothing_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke_interrupted(monkeypatch)
    assert result.exit_code == 1
    assert "--resume" not in result.stderr
    assert len(list(folder.iterdir())) == 2
    result = invoke("--resume")
    assert result.exit_code == 2
    assert "none is named" in result.stderr


def test_resume_without_a_kept_search(folder: Path) -> None:
    result = invoke("-o", "new.safetensors", "--resume")
    assert result.exit_code == 2
    assert "nothing to resume: new.safetensors.search does not exist" in result.stderr


def test_outputs_that_cannot_be_written_leave_the_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise CheckpointError("cannot write new.safetensors: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_outputs, "save_checkpoint", full)
        result = invoke("-o", "new.safetensors")
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert Path("new.safetensors.search").exists()
    assert invoke("-o", "new.safetensors", "--resume").exit_code == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        *("0.safetensors", "1.safetensors", "new.safetensors")
    ]


def test_ctrl_c_after_the_search_keeps_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_many, "certificates", stop)
        result = invoke("-o", "new.safetensors")
    assert result.exit_code == 1
    assert "--resume" in result.stderr
    assert not Path("new.safetensors").exists()
    assert invoke("-o", "new.safetensors", "--resume").exit_code == 0


def test_ctrl_c_while_writing_lets_it_finish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = _outputs.save_checkpoint

    def interrupted(*args: object, **kwargs: object) -> None:
        signal.raise_signal(signal.SIGINT)
        save(*args, **kwargs)

    monkeypatch.setattr(_outputs, "save_checkpoint", interrupted)
    result = invoke("-o", "new.safetensors", "--json-file", "r.json")
    assert result.exit_code == 0, result.output
    assert Path("new.safetensors").exists()
    assert Path("r.json").exists()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"out": "a/new.pt"}, "a/new.pt.search"),
        ({"out": "shards"}, "shards.search"),
        ({"out": "a/shards/"}, "a/shards.search"),
        ({"out": "a/shards/model.safetensors.index.json"}, "a/shards.search"),
        ({"json_file": "r.json", "report": "p.html"}, "r.json.search"),
        ({}, None),
    ],
)
def test_where_the_search_is_kept(chosen: dict[str, str], expected: str | None) -> None:
    none = dict.fromkeys(("out", "permutation", "json_file", "report"))
    outputs = _outputs.Outputs(**none | {name: Path(path) for name, path in chosen.items()})
    assert outputs.state == (None if expected is None else Path(expected))
