"""Parts of a batch: they cover it, are computed alike, and end where they are interrupted."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from zoos import state

from gpu_align import AlignmentProblem, Annealing, Recombination, chain_spec, run_search
from gpu_align._process import torch_threads
from gpu_align._search import _parts
from gpu_align._search._parts import for_each_part, parts_of


@given(st.integers(1, 3000), st.integers(0, 2**19))
def test_parts_cover_a_batch(count: int, entries: int) -> None:
    parts = parts_of(count, entries)
    assert [n for part in parts for n in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert all(part.start % 16 == 0 for part in parts)
    assert min(sizes) > 1 or count == 1
    assert max(sizes) * entries <= 2**17 or max(sizes) <= 17


@pytest.mark.parametrize("search", [Annealing(3, steps=6), Recombination(4, 4, 1, steps=4)])
@pytest.mark.parametrize("widths", [(5, 16, 16, 3), (5, 17, 16, 3)], ids=str)
def test_searches_are_the_same_in_parts(
    search: Annealing | Recombination, widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, sources = state(0, *widths), [state(n, *widths) for n in range(1, 14)]
    form = AlignmentProblem(sources, reference, chain_spec(reference))
    threads = set()

    def note(parts: list[slice], do, beat) -> None:  # type: ignore[no-untyped-def]
        def noted(part: slice) -> None:
            threads.add(threading.get_ident())
            do(part)

        assert len(parts) > 1
        for_each_part(parts, noted, beat)

    monkeypatch.setattr("gpu_align._search._executor.for_each_part", note)
    monkeypatch.setattr(_parts, "thread_count", lambda threads: 3)
    whole = run_search(search, form)
    assert not threads
    monkeypatch.setattr(_parts, "_ENTRIES", 2**10)
    with torch.inference_mode():
        apart = run_search(search, form)
    assert threads - {threading.get_ident()}
    assert torch.equal(apart.hypotheses.objective, whole.hypotheses.objective)
    for name, perm in whole.hypotheses.perms.items():
        assert torch.equal(apart.hypotheses.perms[name], perm)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_part_is_at_work_after_an_interruption(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_parts, "thread_count", lambda threads: workers)
    begun, ended = [], []

    def do(part: slice) -> None:
        begun.append(part)
        torch.randn(100, 100).square()
        ended.append(part)

    def beat(text: str) -> None:
        raise KeyboardInterrupt

    with torch_threads.held(single=True), pytest.raises(KeyboardInterrupt):
        for_each_part(parts_of(16 * 500, 2**20), do, beat)
    assert begun
    assert sorted(map(str, begun)) == sorted(map(str, ended))
    assert len(begun) < 500
