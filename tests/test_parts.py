"""Parts of a batch: they cover it, are computed alike, and end where they are interrupted."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from zoos import state

from gpu_align import (
    AlignmentProblem,
    Annealing,
    BeamDescent,
    CoordinateDescent,
    Recombination,
    Search,
    chain_spec,
    run_search,
)
from gpu_align._assignment import at_most_threads, thread_count
from gpu_align._device import RandomStream
from gpu_align._process import torch_threads
from gpu_align._search import Run
from gpu_align._search._loop import run_to_end
from gpu_align._search._parts import for_each_part, parts_of


@given(st.integers(1, 3000), st.integers(0, 2**19), st.integers(1, 64))
def test_parts_cover_a_batch(count: int, entries: int, workers: int) -> None:
    parts = parts_of(count, entries, workers)
    assert [n for part in parts for n in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert all(part.start % 16 == 0 for part in parts)
    assert min(sizes) > 1 or count == 1
    assert (max(sizes) - 1) * entries <= 2**18 or max(sizes) <= 17
    even, least = count / workers, 2**17 // max(entries, 1)
    assert max(sizes) <= max(even, least) + 16  # nobody waits for long, nobody has too little


def test_a_part_is_not_cut_again() -> None:
    for entries in (0, 64, 1000, 2**10, 2**19):
        for part in parts_of(3000, entries, 3):
            assert len(parts_of(part.stop - part.start, entries, 1)) == 1


class Watched(AlignmentProblem):
    """A problem that notes which threads compute its similarities."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.threads: set[int] = set()

    def soft_similarity(self, *arguments: object) -> dict[str, Tensor]:
        self.threads.add(threading.get_ident())
        return super().soft_similarity(*arguments)

    def similarity(self, *arguments: object) -> Tensor:
        self.threads.add(threading.get_ident())
        return super().similarity(*arguments)


@pytest.mark.parametrize(
    "search",
    [
        Annealing(3, steps=6),
        Recombination(4, 4, 1, steps=4),
        CoordinateDescent(4, initial="random"),
        BeamDescent(2, 2, patience=2),
    ],
    ids=lambda search: search.name,
)
@pytest.mark.parametrize("widths", [(5, 16, 16, 3), (5, 17, 16, 3)], ids=str)
def test_searches_are_the_same_in_parts(search: Search, widths: tuple[int, ...]) -> None:
    reference, sources = state(0, *widths), [state(n, *widths) for n in range(1, 14)]
    problem = Watched(sources, reference, chain_spec(reference))
    whole = run_search(search, problem)
    assert problem.threads == {threading.get_ident()}
    run = Run(problem, RandomStream(0))
    run.executor.part_entries = 2**10
    with at_most_threads(3), torch.inference_mode():
        apart = run_to_end(run, search)
    assert len(problem.threads) > 1
    assert apart.assignments == whole.assignments
    assert torch.equal(apart.hypotheses.objective, whole.hypotheses.objective)
    for name, perm in whole.hypotheses.perms.items():
        assert torch.equal(apart.hypotheses.perms[name], perm)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_part_is_at_work_after_an_interruption(workers: int) -> None:
    begun, ended = [], []

    def do(part: slice) -> None:
        begun.append(part)
        torch.randn(100, 100).square()
        ended.append(part)

    def beat(text: str) -> None:
        raise KeyboardInterrupt

    with (
        at_most_threads(workers),
        torch_threads.held(single=True),
        pytest.raises(KeyboardInterrupt),
    ):
        for_each_part(parts_of(16 * 500, 2**20, workers), do, beat)
    assert begun
    assert sorted(map(str, begun)) == sorted(map(str, ended))
    assert len(begun) < 500


def test_what_parts_return_comes_in_order_from_threads_of_one_solver_each() -> None:
    def do(part: slice) -> tuple[int, int]:
        return part.start, thread_count(None)

    with torch_threads.held(single=True), at_most_threads(3):
        found = for_each_part(parts_of(16 * 50, 2**20, 3), do, lambda text: None)
        assert thread_count(None) == 3
    assert found == [(16 * number, 1) for number in range(50)]


def test_similarities_that_are_kept_are_not_cut() -> None:
    widths = (5, 16, 16, 3)
    reference, sources = state(0, *widths), [state(n, *widths) for n in range(1, 14)]
    problem = Watched(sources, reference, chain_spec(reference))
    run = Run(problem, RandomStream(0))
    run.executor.part_entries, run.executor.cache.least_work = 2**10, 0
    with at_most_threads(3):
        kept = run_to_end(run, CoordinateDescent(4, initial="random"))
    assert problem.threads == {threading.get_ident()}
    anew = run_search(CoordinateDescent(4, initial="random"), problem)
    assert torch.allclose(kept.best.objective, anew.best.objective)
