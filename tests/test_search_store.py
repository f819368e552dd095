"""The file of a search: what is refused, and when it is written."""

import contextlib
import itertools
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import pair
from test_problem import problem_of
from test_resume import (
    assert_same,
    interrupted_at,
    interrupted_store,
    problem_named,
    stop_at,
    whole,
)
from test_search import SEARCHES

from gpu_align import (
    Annealing,
    CoordinateDescent,
    InputError,
    Progress,
    run_search,
)
from gpu_align._device._random import RandomStream
from gpu_align._search import Outcome, Run, SearchStore, _store
from gpu_align._search._loop import run_to_end

# What is refused


OTHERS: dict[str, tuple[str, Callable[[], dict[str, object]]]] = {
    "seed": ("the seed: it was 3, now it is 4", lambda: {"seed": 4}),
    "search": (
        "the search: it was Annealing, now it is Coord",
        lambda: {"search": CoordinateDescent()},
    ),
    "settings": ("the search: its settings", lambda: {"search": Annealing(starts=7)}),
    "source": (
        "the weights of the source: not the same",
        lambda: {"problem": problem_of(replace(pair("deep"), source=pair("deep", 5).source))},
    ),
    "metric": (
        "the metric: it was l2, now it is row",
        lambda: {"problem": problem_of(pair("deep"), metric="row")},
    ),
    "dtype": ("float32", lambda: {"problem": problem_of(pair("deep"), dtype=torch.float32)}),
    "networks": (
        "the symmetries: not the same",
        lambda: {"problem": problem_named("signed_heads")},
    ),
}


@pytest.mark.parametrize(("mentions", "change"), OTHERS.values(), ids=OTHERS)
def test_another_search_is_not_resumed(
    mentions: str, change: Callable[[], dict[str, object]], tmp_path: Path
) -> None:
    store = interrupted_store(tmp_path / "s")
    before = store.path.read_bytes()
    arguments = {"search": SEARCHES["annealing"], "problem": problem_named("deep"), "seed": 3}
    with pytest.raises(InputError) as refusal:
        run_search(**(arguments | change()), store=store)  # type: ignore
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


@settings(max_examples=25)
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
    torch.save({"schema": schema, "searches": {0: {"snapshot": OfAnotherRelease()}}}, path)
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
    document = {"schema": _store.SCHEMA, "searches": {0: {"identity": {}, "snapshot": hostile}}}
    write(tmp_path / "s", document if inside else hostile)
    with pytest.raises(InputError, match="cannot resume"):
        resumed_from(tmp_path / "s")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "part", ["schema", "searches", "none", "number", "identity", "snapshot", "perms", "state"]
)
def test_incomplete_file(part: str, tmp_path: Path) -> None:
    path = interrupted_store(tmp_path / "s").path
    with torch.serialization.safe_globals(list(_store.STORED)):
        document = torch.load(path, weights_only=True)
    [entry] = document["searches"].values()
    if part == "none":
        document["searches"] = {}
    elif part == "number":
        document["searches"]["x"] = entry
    elif part == "perms":
        next(iter(entry["snapshot"].best.perms.values()))[0, 0] += 1
    elif part == "state":
        object.__delattr__(entry["snapshot"].state, "step")
    else:
        (document if part in document else entry)[part] = None
    torch.save(document, path)
    with pytest.raises(InputError, match="cannot resume"):
        resumed_from(path)


# When it is written


def test_it_is_written_now_and_then(tmp_path: Path) -> None:
    now, saves = [0.0], []

    class Slow(SearchStore):
        def _write(self) -> None:
            super()._write()
            saves.append(now[0])
            now[0] += 4.0

    def step(progress: Progress) -> None:
        now[0] += 7.0

    store = Slow(tmp_path / "s", now=lambda: now[0])
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
