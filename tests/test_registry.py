"""Every search of the registry is exported, described and tested, and holds what it declares."""

from dataclasses import replace
from pathlib import Path

import pytest
import test_engine
import test_search
import test_task_search
from networks import pair
from test_problem import problem_of

import gpu_align
from bench import same_seed
from gpu_align import Search, run_search
from gpu_align._device._random import RandomStream
from gpu_align._search import SEARCHES, Run

PAGE = (Path(__file__).parents[1] / "docs" / "searches.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SEARCHES)
def test_every_place_has_every_search(name: str) -> None:
    kind = SEARCHES[name].kind
    assert kind.__name__ in gpu_align.__all__
    assert f"| `{kind.__name__}` ({name}) |" in PAGE
    tables = [test_search.SEARCHES, test_engine.SEARCHES]
    if not SEARCHES[name].needs_aligner:  # no aligner is for the pairs of that bench
        tables.append(same_seed.SEARCHES)
    for table in [test_task_search.SEARCHES] if SEARCHES[name].needs_data else tables:
        assert kind in {type(search) for search in table.values()}


def test_every_search_is_registered() -> None:
    def concrete(kind: type[Search]) -> set[type[Search]]:
        below = kind.__subclasses__()
        own = set() if kind.__abstractmethods__ else {kind}
        return own.union(*map(concrete, below))

    ours = {kind for kind in concrete(Search) if kind.__module__.startswith("gpu_align.")}
    assert ours == {entry.kind for entry in SEARCHES.values()}


@pytest.mark.parametrize("search", test_search.SEARCHES.values(), ids=test_search.SEARCHES)
def test_no_search_holds_more_hypotheses_than_it_declares(search: Search) -> None:
    problem = problem_of(pair("deep"))
    held = run_search(search, problem, seed=1).hypotheses
    assert held.each <= search.hypotheses_per_model


def test_a_setting_is_what_is_held_or_begun_from() -> None:
    for entry in SEARCHES.values():
        if entry.setting is not None:
            few, many = (entry.make(value) for value in (2, 3))
            assert few is not None
            assert many is not None
            assert few.hypotheses_per_model < many.hypotheses_per_model


def test_a_search_of_ones_own_counts_as_one_of_many() -> None:
    class Own(test_search.Idle):
        """One that declares nothing."""

    assert Own().hypotheses_per_model == 32


def test_steps_are_counted_by_the_loop_alone() -> None:
    search, run = test_search.SEARCHES["portfolio"], Run(problem_of(pair("deep")), RandomStream(0))
    state = search.init(run, None)
    for _ in range(3):
        state = search.step(run, replace(state, step=7))
    assert (state.step, state.memory.inner.step) == (7, 0)
