"""The k best matchings on a CUDA device: `pytest -m gpu`."""

import math
from dataclasses import replace

import pytest
import torch
from test_assignment import KINDS, make_cost, make_ragged
from test_k_best import Identity, check_found
from test_k_best_kernel import forbid, integers

from gpu_align._assignment import AssignmentProblem, _k_best, k_best, solve
from gpu_align._assignment._k_best import _rank_by_torch
from gpu_align._errors import GpuAlignError
from gpu_align.kernels import k_best as launcher
from gpu_align.kernels.k_best import fits, rank_matchings

pytestmark = pytest.mark.gpu
pytest.importorskip("cupy")


def largest() -> int:
    """Rows of the largest problem that the kernel takes."""
    device = torch.device("cuda", 0)
    return next(n for n in range(1, 1000) if not fits(n + 1, device))


@pytest.mark.parametrize("share", [0.0, 0.6], ids=["all", "some"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_device_finds_what_torch_does_on_the_cpu(kind, share):
    """Bit for bit, in ties the same one first; where none is left, too."""
    sizes = (
        (2, 1, 3),
        (2, 2, 5),
        (3, 5, 130),
        (200, 9, 40),
        (2, 24, 100),
        (2, 33, 20),
        (1, 64, 60),
    )
    for batch, n, k in sizes:
        cost = integers(kind, batch, n)
        best = solve(AssignmentProblem(cost)).col_ind
        cost = forbid(cost, best, share)
        found, total = rank_matchings(cost.cuda(), best.cuda(), k)
        expected = _rank_by_torch(cost, best, k)
        assert torch.equal(found.cpu(), expected[0])
        assert torch.equal(total.cpu(), expected[1])


def test_as_large_as_it_fits():
    n = largest()
    assert n > 100
    cost = integers("gaussian", 2, n)
    best = solve(AssignmentProblem(cost)).col_ind
    found, total = rank_matchings(cost.cuda(), best.cuda(), 4)
    expected = _rank_by_torch(cost, best, 4)
    assert torch.equal(found.cpu(), expected[0])
    assert torch.equal(total.cpu(), expected[1])


def test_the_first_size_beyond_goes_to_torch(monkeypatch):
    launches = []
    monkeypatch.setattr(launcher, "_call", lambda *given: launches.append(given))
    k_best(AssignmentProblem(torch.rand(1, largest() + 1, largest() + 1, device="cuda")), 2)
    assert launches == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_all_permutations_of_small_problems(kind, maximize):
    cost = make_cost(kind, 3, 5, seed=1)
    lack = 5 * 2.0**-26 * float(cost.abs().max())
    found = k_best(AssignmentProblem(cost.cuda(), maximize), 130)
    assert found[0].is_cuda
    check_found(AssignmentProblem(cost, maximize), 130, found, lack)


@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_a_ragged_batch_with_nan_padding(maximize):
    problem = make_ragged([4, 0, 1, 2, 5], math.nan, maximize)
    on_device = AssignmentProblem(problem.cost.cuda(), maximize, problem.sizes.cuda())
    check_found(problem, 30, k_best(on_device, 30), 1e-6)


class OnDevice(Identity):
    """Not exact."""

    def solve(self, problem):
        found = super().solve(AssignmentProblem(problem.cost.cpu()))
        return replace(found, col_ind=found.col_ind.cuda())


def test_a_matching_that_is_not_the_best_is_noticed():
    with pytest.raises(GpuAlignError, match="exact solver"):
        k_best(AssignmentProblem(make_cost("gaussian", 2, 9, seed=0).cuda()), 3, OnDevice())


def test_one_launch_that_nothing_waits_for(monkeypatch, no_waits):
    costs = [integers("gaussian", 3, n) for n in (5, 24, 64)]
    bests = [solve(AssignmentProblem(cost)).col_ind.cuda() for cost in costs]
    costs = [cost.cuda() for cost in costs]
    rank_matchings(costs[0], bests[0], 2)  # compiles
    with no_waits():
        for cost, best in zip(costs, bests, strict=True):
            rank_matchings(cost, best, 20)
    launches = []
    call = launcher._call
    monkeypatch.setattr(launcher, "_call", lambda *given: (launches.append(given), call(*given)))
    monkeypatch.setattr(_k_best._Ranking, "run", lambda self: pytest.fail("torch ranks"))
    k_best(AssignmentProblem(torch.rand(300, 24, 24, device="cuda")), 100)
    assert len(launches) == 1


def test_the_current_stream_is_used():
    cost = integers("gaussian", 8, 24)
    best = solve(AssignmentProblem(cost)).col_ind.cuda()
    expected = rank_matchings(cost.cuda(), best, 10)
    held, stream = cost.cuda(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        found = rank_matchings(held * 1.0, best, 10)
        done = torch.cuda.Event()
        done.record(stream)
        assert not done.query()
    stream.synchronize()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("n", [24, 64])
def test_twice_is_bitwise_the_same(n):
    problem = AssignmentProblem(make_cost("dead_units", 150, n, seed=0).cuda())
    assert all(map(torch.equal, k_best(problem, 50), k_best(problem, 50)))
