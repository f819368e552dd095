"""The assignment kernels on a CUDA device: `pytest -m gpu`."""

import math

import numpy as np
import pytest
import torch
from auction_host import COMPILER, HostDevice, build
from test_auction import KINDS, check, make_cost, statuses

from gpu_align._assignment import (
    AssignmentProblem,
    AuctionAssignment,
    AutoAssignment,
    _k_best,
    k_best,
    solve,
)
from gpu_align._status import Status
from gpu_align.kernels import auction as launcher
from gpu_align.kernels.auction import AuctionResult, auction

pytestmark = pytest.mark.gpu
pytest.importorskip("cupy")


def to_cpu(result: AuctionResult) -> AuctionResult:
    return AuctionResult(**{name: tensor.cpu() for name, tensor in vars(result).items()})


@pytest.fixture
def force(monkeypatch):
    """Make the launcher believe in less shared memory, so that it takes another kernel."""

    def limit(shared: int) -> None:
        multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        monkeypatch.setattr(launcher, "_limits", lambda device: (shared, multiprocessors))

    return limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_against_scipy(kind, dtype, maximize):
    for n in (1, 2, 31, 32, 33, 64, 257, 512):
        cost = torch.stack([make_cost(kind, n, seed) for seed in range(3)]).to(dtype)
        result = to_cpu(auction(cost.cuda(), maximize=maximize))
        for p in range(3):
            check(cost[p], result, p, maximize)


@pytest.mark.parametrize("kind", ["aligned", "dead_units", "few_integers"])
@pytest.mark.parametrize("n", [1024, 2500])
def test_large_problems(kind, n):
    cost = make_cost(kind, n).float()
    check(cost, to_cpu(auction(cost[None].cuda())), 0)


def test_100_random_batches_are_certified():
    generator = np.random.default_rng(0)
    for seed in range(100):
        batch, n = int(generator.integers(1, 40)), int(generator.integers(1, 300))
        kind = KINDS[seed % len(KINDS)]
        cost = torch.stack([make_cost(kind, n, 1000 * seed + p) for p in range(batch)]).cuda()
        result = auction(cost)
        # The kernel reports INEXACT unless the gap on the integers is exactly zero.
        assert not result.status_codes.any()
        spread = (cost.amax((1, 2)) - cost.amin((1, 2))).clamp_min(1e-300)
        assert bool((result.duality_gap <= 3e-9 * n * spread).all())
        assert torch.equal(result.col_ind.sort(1).values, torch.arange(n).cuda().expand(batch, n))


@pytest.mark.parametrize("n", [32, 100, 400, 2500])
def test_twice_is_bitwise_the_same(n):
    cost = torch.stack([make_cost("dead_units", n, seed) for seed in range(3)]).cuda()
    first, second = auction(cost), auction(cost)
    for name, tensor in vars(first).items():
        assert torch.equal(tensor, getattr(second, name)), name


@pytest.mark.skipif(COMPILER is None, reason="needs g++")
@pytest.mark.parametrize("n", [17, 47, 65, 257])
def test_the_device_computes_what_the_host_does(n, tmp_path, monkeypatch):
    """Same matching, same duals, same rounds; only sums in float64 may round differently."""
    cost = torch.stack([make_cost(kind, n) for kind in KINDS])
    found = to_cpu(auction(cost.cuda()))
    HostDevice(build(tmp_path)).install(monkeypatch)
    expected = auction(cost)
    for name in ("col_ind", "row_dual", "col_dual", "status_codes", "stats"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("limit", [40_000, 1_000], ids=["block", "grid"])
def test_all_kernels_compute_the_same(force, limit):
    cost = torch.stack([make_cost(kind, 65) for kind in KINDS]).cuda()
    expected = auction(cost)
    force(limit)
    found = auction(cost)
    for name in ("col_ind", "row_dual", "col_dual", "status_codes", "stats"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_100_000_small_problems():
    generator = torch.Generator("cuda").manual_seed(0)
    cost = torch.rand(100_000, 32, 32, device="cuda", generator=generator)
    result = auction(cost)
    assert not result.status_codes.any()
    assert bool((result.duality_gap <= 3e-9 * 32).all())
    sample = to_cpu(AuctionResult(**{k: t[::10_007] for k, t in vars(result).items()}))
    for p, one in enumerate(cost[::10_007].cpu()):
        check(one, sample, p)


def test_ragged_and_failing_problems():
    sizes = torch.tensor([70, 0, 1, 67, 5])
    cost = torch.full((5, 70, 70), math.nan, dtype=torch.float64)
    for p, size in enumerate(sizes.tolist()):
        cost[p, :size, :size] = make_cost("aligned", size, p)
    cost[4, 2, 2] = math.inf
    result = to_cpu(auction(cost.cuda(), sizes=sizes.cuda()))
    for p, size in enumerate(sizes.tolist()[:4]):
        if size:
            check(cost[p, :size, :size], result, p)
    assert statuses(result)[4] is Status.NOT_FINITE
    assert torch.equal(result.col_ind[4], torch.arange(70))


@pytest.mark.parametrize("n", [32, 300])
def test_warm_start(n):
    cost, noise = make_cost("aligned", n).cuda(), make_cost("aligned", n, 1).cuda()
    cold = auction(cost[None])
    for change in (0.0, 0.001, 0.01, 0.2):
        moved = cost + change * noise
        warm = auction(moved[None], warm_start=(cold.col_dual, cold.col_ind))
        check(moved.cpu(), to_cpu(warm), 0)
        if change == 0:
            assert warm.stats[0, :3].tolist() == [0, 0, 0]


def test_nothing_waits_for_the_device(no_waits):
    costs = [torch.randn(4, n, n, device="cuda") for n in (20, 100, 300, 2500)]
    for cost in costs:
        auction(cost)  # compiles
    codes = []
    with no_waits():
        for cost in costs:
            sizes = torch.full((4,), cost.shape[1], device="cuda")
            auction(cost, sizes=sizes)
            queued = AuctionAssignment().enqueue(AssignmentProblem(cost, sizes=sizes))
            warm_start = (queued.col_dual, queued.col_ind)
            warm = AuctionAssignment().enqueue(AssignmentProblem(cost), warm_start)
            codes.append(warm.status_codes)
    assert not torch.cat(codes).any()


def test_k_best_by_torch_stays_on_the_device(monkeypatch, no_waits):
    """The same matchings as on the CPU, and no wait between two ranks."""
    monkeypatch.setattr(_k_best, "fits", lambda n, device: False)

    def run(ranking):
        with no_waits():
            return original(ranking)

    original = _k_best._Ranking.run
    monkeypatch.setattr(_k_best._Ranking, "run", run)
    for kind in ("aligned", "integers", "few_integers", "planted", "rank_one"):
        for n, k in ((1, 3), (5, 130), (24, 12), (70, 5)):
            cost = torch.stack([make_cost(kind, n, seed) for seed in range(3)])
            col_ind, objective = k_best(AssignmentProblem(cost.cuda()), k)
            expected = k_best(AssignmentProblem(cost), k)[1]
            lack = n * 2.0**-26 * float(cost.abs().max())
            assert col_ind.is_cuda
            torch.testing.assert_close(objective.cpu(), expected, rtol=0, atol=lack)


def test_the_current_stream_is_used():
    stream = torch.cuda.Stream()
    cost = torch.randn(64, 200, 200, device="cuda")
    expected = auction(cost)
    auction(cost)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late = cost * 1.0
        result = auction(late)
        done = torch.cuda.Event()
        done.record(stream)
        assert not done.query()
    stream.synchronize()
    assert torch.equal(result.col_ind, expected.col_ind)


def test_the_solver_class_and_auto():
    cost = torch.stack([make_cost("integers", 40), make_cost("aligned", 40)]).cuda()
    problem = AssignmentProblem(cost, maximize=True)
    solver, reason = AutoAssignment().select(problem)
    assert isinstance(solver, AuctionAssignment)
    assert "CUDA device" in reason
    solution = solve(problem, certify=True)
    assert solution.col_ind.is_cuda
    assert solution.status == (Status.OPTIMAL, Status.SOLVED)
    assert k_best(problem, 3)[0].shape == (2, 3, 40)
