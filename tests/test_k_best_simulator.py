"""The kernel of the k best matchings thread by thread in the simulator, as `test_simulator.py`."""

from pathlib import Path

import pytest
import torch
from auction_host import COMPILER, shared_folder
from auction_simulator import ADDR2LINE, Policy, Simulator, build
from k_best_host import HostRanking
from test_assignment import KINDS
from test_k_best_kernel import forbid, integers

from gpu_align._assignment import AssignmentProblem, solve
from gpu_align._assignment._k_best import _rank_by_torch
from gpu_align.kernels.k_best import rank_matchings

pytestmark = [
    pytest.mark.skipif(not (COMPILER and ADDR2LINE), reason="needs g++ and addr2line"),
    pytest.mark.slow,
]

SIZES = ((1, 3), (2, 5), (5, 125), (34, 6))
"""Rows, and how many matchings: some run out, one matrix is wider than a warp."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with shared_folder(tmp_path_factory) as folder:
        return build(folder, "k_best")


def make(kind: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Costs of two problems, some pairs forbidden, and their best matchings."""
    cost = integers(kind, 2, n)
    best = solve(AssignmentProblem(cost)).col_ind
    return forbid(cost, best, 0.2), best


@pytest.mark.parametrize("threads", [32, 64, 96])
@pytest.mark.parametrize("kind", KINDS)
def test_no_race_and_what_torch_finds(library, monkeypatch, kind, threads) -> None:
    """In every schedule."""
    HostRanking(library, threads).install(monkeypatch)
    simulator = Simulator(library)
    for n, k in SIZES:
        cost, best = make(kind, n)
        expected = _rank_by_torch(cost, best, k)
        for policy in Policy:
            simulator.set_options(policy, seed=policy + 1)
            found = rank_matchings(cost, best, k)
            assert simulator.reports() == []
            assert all(map(torch.equal, found, expected))


def test_every_missing_barrier_is_noticed(library, monkeypatch) -> None:
    HostRanking(library, threads=64).install(monkeypatch)
    simulator = Simulator(library)
    calls = [(*make("gaussian", n), k) for n, k in SIZES]
    sites: set[int] = set()
    simulator.set_options()
    for call in calls:
        rank_matchings(*call)
        sites.update(simulator.sites())
    assert len(sites) >= 9
    for site in sites:
        reports = set()
        for call in calls:
            simulator.set_options(limit=20_000_000, left_out=site)
            rank_matchings(*call)
            reports.update(simulator.reports())
        assert reports, simulator.caller(site)
