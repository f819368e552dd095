"""Similarities that are updated and not computed anew, splits by memory, and replays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import each_once, slow
from networks import pair
from test_engine import EMULATED, float32_problem
from test_problem import problem_of
from triton_devices import INTERPRETED

from gpu_align import (
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    Recombination,
    Search,
    run_search,
)
from gpu_align._device._backend import CPU
from gpu_align._device._random import RandomStream
from gpu_align._device._replay import Replay
from gpu_align._problem import AlignmentProblem, Term
from gpu_align._search import Run
from gpu_align._search._loop import run_to_end

KINDS = ("mlp", "cnn", "resnet", "trilinear", "recurrent", "signed", "heads", "gqa")
DESCENDING: dict[str, Search] = {
    "descent": CoordinateDescent(starts=3, initial="random"),
    "beam": BeamDescent(patience=2),
}


def swapped(perms: dict, stream: RandomStream, share: float) -> dict:
    """Shuffle the units of each vector among a share of its places."""
    found = {}
    for name, perm in perms.items():
        batch, size = perm.shape
        places = stream.permutation(torch.arange(batch), size)[:, : max(int(share * size), 1)]
        found[name] = perm.scatter(1, places, perm.gather(1, places.roll(1, 1)))
    return found


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", KINDS)
def test_a_change_is_the_difference_of_two_similarities(
    name: str, share: float, stream: RandomStream
) -> None:
    networks, other = pair(name), pair(name, seed=9)
    sources = [networks.source, other.source]
    problem = AlignmentProblem(sources, networks.target, networks.spec, dtype=torch.float64)
    batch = problem.random(2, stream)
    after = swapped(dict(batch.perms), stream, share)
    for term in problem.terms:
        for mode in range(len(term.variables)) if isinstance(term, Term) else ():
            states = batch.perms, after
            old, new = (term.similarity(mode, perms, batch.model) for perms in states)
            change = term.change(mode, *states, batch.model, share=1.0)
            assert torch.allclose(old + change, new)


@pytest.mark.parametrize("name", KINDS)
def test_updated_similarity_is_the_similarity(name: str, stream: RandomStream) -> None:
    problem = problem_of(pair(name))
    batch = problem.random(4, stream)
    for share in (0.0, 0.3, 1.0):
        after = swapped(dict(batch.perms), stream, share)
        for matrix in problem.sizes:
            before = problem.similarity(matrix, batch.perms, batch.model)
            kept = before.clone()
            found = problem.updated_similarity(matrix, before, batch.perms, after, batch.model)
            assert torch.allclose(found, problem.similarity(matrix, after, batch.model))
            assert torch.equal(before, kept)


@pytest.mark.skipif(not INTERPRETED, reason="compiled in this process")
@pytest.mark.parametrize("name", slow(["mlp", "trilinear", "signed", "gqa"], but=["signed", "gqa"]))
def test_updated_similarity_by_the_kernels(name: str, stream: RandomStream) -> None:
    pytest.importorskip("triton")
    problem, plain = (float32_problem(name, engine) for engine in (EMULATED, CPU))
    batch = problem.random(2, stream)
    after = swapped(dict(batch.perms), stream, 0.4)
    for matrix in problem.sizes:
        before = problem.similarity(matrix, batch.perms, batch.model)
        found = problem.updated_similarity(matrix, before, batch.perms, after, batch.model)
        expected = plain.similarity(matrix, after, batch.model)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("search", "name"), each_once(DESCENDING, KINDS))
def test_the_cache_changes_no_answer(search: str, name: str) -> None:
    problem, objectives = problem_of(pair(name)), []
    for least_work in (0, 2**62):
        run = Run(problem, RandomStream(4))
        run.executor.cache.least_work = least_work
        objectives.append(run_to_end(run, DESCENDING[search]).hypotheses.objective)
    assert torch.allclose(*objectives)


@settings(max_examples=30)
@given(share=st.floats(0, 1), seed=st.integers(0, 100))
def test_update_of_a_random_share(share: float, seed: int) -> None:
    problem, stream = problem_of(pair("cnn")), RandomStream(seed)
    batch = problem.random(2, stream)
    after = swapped(dict(batch.perms), stream, share)
    for matrix in problem.sizes:
        before = problem.similarity(matrix, batch.perms, batch.model)
        found = problem.updated_similarity(matrix, before, batch.perms, after, batch.model)
        assert torch.allclose(found, problem.similarity(matrix, after, batch.model))


LARGE: dict[str, Search] = DESCENDING | {
    "annealing": Annealing(starts=5),
    "frank_wolfe": FrankWolfe(starts=3),
    "recombination": Recombination(population=4, children=5),
}


@pytest.mark.parametrize(("search", "name"), each_once(LARGE, ["mlp", "heads"]))
def test_what_does_not_fit_is_split_and_said(
    search: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = pair(name)
    sources = [networks.source, pair(name, seed=9).source]
    problem = AlignmentProblem(sources, networks.target, networks.spec)
    whole = run_search(LARGE[search], problem, seed=3)
    assert not whole.splits
    monkeypatch.setenv("GPU_ALIGN_MEMORY", "1")
    split = run_search(LARGE[search], problem, seed=3)
    assert torch.allclose(split.hypotheses.objective, whole.hypotheses.objective)
    assert split.splits
    assert all(" at a time" in text for text in split.splits.values())


def test_replay_calls_its_function_on_the_cpu() -> None:
    total = torch.zeros(())
    replay = Replay(lambda: total.add_(1) and None, torch.device("cpu"))
    for _ in range(5):
        replay()
    assert float(total) == 5
