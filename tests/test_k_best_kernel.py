"""The kernel of the k best matchings, built for the host: what torch finds, ties too."""

import math

import pytest
import torch
from auction_host import COMPILER, build, shared_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from k_best_host import UNIT, HostRanking
from marks import each_once, slow
from test_assignment import KINDS, make_cost, make_ragged, problems
from test_k_best import Identity, check_k_best

from bench import k_best as k_best_bench
from gpu_align._assignment import AssignmentProblem, ScipyAssignment, k_best, solve
from gpu_align._assignment._k_best import _rank_by_torch
from gpu_align._errors import GpuAlignError, InputError
from gpu_align.kernels.k_best import fits, plan, rank_matchings

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")

HOPPER = 227 * 1024


@pytest.fixture(scope="session")
def library_of(tmp_path_factory):
    """Build the kernel for warps of so many threads, once for all workers of a session."""

    def make(warp: int):
        with shared_folder(tmp_path_factory) as folder:
            return build(folder, UNIT, warp)

    return make


@pytest.fixture
def host(library_of, monkeypatch):
    device = HostRanking(library_of(1))
    device.install(monkeypatch)
    return device


def integers(kind: str, batch: int, n: int, seed: int = 0) -> torch.Tensor:
    """Costs of a kind, scaled to integers of 40 bits."""
    cost = make_cost(kind, batch, n, seed)
    peak = cost.abs().amax((1, 2), keepdim=True).clamp_min(1e-9)
    return (cost * (2.0**40 / peak)).round()


def forbid(cost: torch.Tensor, best: torch.Tensor, share: float) -> torch.Tensor:
    """Forbid a share of the pairs, but none of the best matching."""
    forbidden = torch.rand_like(cost) < share
    forbidden.scatter_(2, best[:, :, None], False)
    return cost.masked_fill(forbidden, math.inf)


@pytest.mark.parametrize(("kind", "share"), each_once(KINDS, [0.0, 0.6]))
def test_the_kernel_finds_what_torch_does(host, kind, share):
    """Bit for bit, in ties the same one first; where none is left, too."""
    for batch, n, k in ((2, 1, 3), (2, 2, 5), (3, 5, 130), (2, 24, 40), (1, 64, 12)):
        cost = integers(kind, batch, n)
        best = solve(AssignmentProblem(cost)).col_ind
        cost = forbid(cost, best, share)
        found, expected = rank_matchings(cost, best, k), _rank_by_torch(cost, best, k)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert host.launches == 5


@pytest.mark.parametrize("kind", slow(["gaussian", "ties"], but=["ties"]))
def test_the_number_of_threads_changes_nothing(library_of, monkeypatch, kind):
    """Two warps of four threads, with barriers and shuffles that are real."""
    HostRanking(library_of(4), threads=8).install(monkeypatch)
    cost = integers(kind, 2, 7)
    best = solve(AssignmentProblem(cost)).col_ind
    found, expected = rank_matchings(cost, best, 25), _rank_by_torch(cost, best, 25)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@settings(deadline=None, max_examples=20)
@given(problem=problems, k=st.integers(1, 40))
def test_k_best_is_the_head_of_all_permutations(library_of, problem, k):
    with pytest.MonkeyPatch.context() as patch:
        host = HostRanking(library_of(1))
        host.install(patch)
        check_k_best(problem, k)
        assert host.launches == (1 if problem.batch and problem.n else 0)


@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_k_best_of_a_ragged_batch_with_nan_padding(host, maximize):
    check_k_best(make_ragged([4, 0, 1, 2, 5], math.nan, maximize), 30)
    assert host.launches == 1


@pytest.mark.parametrize("kind", KINDS)
def test_k_best_gives_the_same_with_and_without_the_kernel(host, kind):
    problem = AssignmentProblem(make_cost(kind, 40, 9, seed=3), maximize=True)
    found = k_best(problem, 30)
    assert host.launches == 1
    host.shared_limit = plan(9)[1] - 1  # of a device on which it doesn't fit
    expected = k_best(problem, 30)
    assert host.launches == 1
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_best_matching_that_is_not_is_noticed(host):
    with pytest.raises(GpuAlignError, match="exact solver"):
        k_best(AssignmentProblem(make_cost("gaussian", 2, 9, seed=0)), 3, Identity())
    assert host.launches == 1


def test_what_fits_the_shared_memory_of_a_block(host):
    for n, is_small in ((169, True), (170, False)):
        assert fits(n, torch.device("cpu")) is is_small
    for n in (1, 4, 5, 24, 64, 169):
        threads, shared_bytes = plan(n)
        assert threads % 32 == 0
        assert 32 <= threads <= 512
        assert 8 * n * n < shared_bytes <= HOPPER


def test_wrong_tensors_are_refused(host):
    cost, best = torch.zeros(2, 4, 4, dtype=torch.float64), torch.arange(4).repeat(2, 1)
    for wrong, message in (
        ((cost, best, 0), "k: expected at least 1; got 0"),
        ((cost[:, :3], best, 1), r"cost: expected shape \[b, n, n\].*got \[2, 3, 4\]"),
        ((cost.float(), best, 1), "cost: expected float64 .* got torch.float32"),
        ((cost, best.int(), 1), "best: expected torch.int64 .* got torch.int32"),
        ((cost, best[:, :3], 1), r"best: expected .*shape \[2, 4\] .*got .* \[2, 3\]"),
        ((torch.zeros(1, 170, 170).double(), torch.arange(170)[None], 1), "got 170 rows"),
    ):
        with pytest.raises(InputError, match=message):
            rank_matchings(*wrong)
    assert host.launches == 0
    nothing = rank_matchings(cost[:0], best[:0], 3)
    assert nothing[0].shape == (0, 3, 4)


def test_the_kernel_takes_the_matching_of_any_exact_solver(host):
    problem = AssignmentProblem(make_cost("gaussian", 3, 6, seed=1).float())
    check_k_best(problem, 20, ScipyAssignment(), 1e-5)
    assert host.launches == 1


@pytest.mark.usefixtures("host")
def test_the_bench():
    cpu = torch.device("cpu")
    row = k_best_bench.measure(6, 5, 8, cpu)
    assert row["same"]
    assert min(row["kernel_ms"]["median"], row["torch_ms"]["median"]) > 0
    assert k_best_bench.line(row).endswith(" ms, same")
    assert "does not fit" in k_best_bench.line(k_best_bench.measure(170, 1, 2, cpu))
