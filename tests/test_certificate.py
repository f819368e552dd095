"""Certificates where the search was: what a device proves is what the host proves."""

import pytest
import torch
from marks import each_once, slow
from pretend_device import DEVICE, ENGINE, PretendDevice, solve_elsewhere
from scipy.optimize import linear_sum_assignment
from test_many import assert_equal_results, zoo
from torch import Tensor

from gpu_align import AlignmentProblem, CoordinateDescent, align, run_search
from gpu_align._align import _settings as module
from gpu_align._align._certificate import Certificate, certificates
from gpu_align._assignment import AssignmentProblem, AuctionAssignment, exact_duals
from gpu_align._problem import dual_match, lower_bound

CERTIFIED = ("mlp", "cnn", "recurrent", "trilinear", "heads", "gqa", "signed")
"""Every kind of term, groups inside others and signs."""


def near_ties(n: int) -> Tensor:
    """Many matchings that 28 bits cannot tell apart."""
    rows = torch.randn(4, n, 3, dtype=torch.float64)
    return rows @ rows.transpose(1, 2) + 1e-11 * torch.randn(4, n, n, dtype=torch.float64)


def outlier(n: int) -> Tensor:
    """One similarity so large that 28 bits of the range say little about the others."""
    similarity = torch.randn(4, n, n, dtype=torch.float64)
    similarity[:, 0, -1] = 1e7
    return similarity


SIMILARITIES = {
    "drawn": lambda n: torch.randn(4, n, n, dtype=torch.float64),
    "near_ties": near_ties,
    "outlier": outlier,
    "integers": lambda n: torch.randint(-3, 4, (4, n, n)).double(),
    "equal": lambda n: torch.full((4, n, n), 2.5, dtype=torch.float64),
    "zero": lambda n: torch.zeros(4, n, n, dtype=torch.float64),
    "tiny": lambda n: 1e-200 * torch.randn(4, n, n, dtype=torch.float64),
}


def assert_exact(similarity: Tensor, columns: Tensor, row: Tensor, column: Tensor) -> None:
    """Assert optimal matchings, and feasible duals that prove it, to the rounding of float64."""
    size, peak = similarity.shape[1], similarity.abs().amax((1, 2))
    for number, matrix in enumerate(similarity.numpy()):
        rows, best = linear_sum_assignment(matrix, maximize=True)
        expected = matrix[rows, best].sum()
        rounding = 1e-14 * size * float(peak[number])
        assert sorted(columns[number].tolist()) == list(range(size))
        assert matrix[rows, columns[number].numpy()].sum() == pytest.approx(expected, abs=rounding)
        bound = float(row[number].sum() + column[number].sum())
        assert bound == pytest.approx(expected, abs=rounding)
    slack = row[:, :, None] + column[:, None, :] - similarity
    assert (slack.amin((1, 2)) >= -1e-14 * peak).all()


@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize("n", [1, 2, 7, 32, 45])
@pytest.mark.parametrize("kind", SIMILARITIES)
def test_duals_of_a_device_are_exact_in_float64(kind: str, n: int) -> None:
    similarity = SIMILARITIES[kind](n)
    assert_exact(similarity, *exact_duals(similarity))


@pytest.mark.usefixtures("auction_on_host")
def test_one_auction_alone_would_leave_a_gap() -> None:
    similarity = outlier(32)
    once = AuctionAssignment().solve(AssignmentProblem(similarity, maximize=True))
    assert once.duality_gap is not None
    exact = exact_duals(similarity)
    gap = exact[1].sum(1) + exact[2].sum(1) - similarity.gather(2, exact[0][..., None]).sum((1, 2))
    assert (gap <= 1e-3 * once.duality_gap).all()
    torch.testing.assert_close(exact[1].sum(1) + exact[2].sum(1), dual_match(similarity)[1])


def assert_certified_alike(found: list[Certificate], expected: list[Certificate]) -> None:
    """Assert the same numbers to the rounding of float64."""
    for one, other in zip(found, expected, strict=True):
        assert one.distance == pytest.approx(other.distance, rel=1e-12)
        assert one.distance_before == pytest.approx(other.distance_before, rel=1e-12)
        for mine, theirs in zip(one.groups, other.groups, strict=True):
            rounding = 1e-12 * (1 + abs(theirs.dual))
            same = (theirs.name, theirs.inside, theirs.moved)
            assert (mine.name, mine.inside, mine.moved) == same
            assert mine.primal == pytest.approx(theirs.primal, abs=rounding)
            assert mine.dual == pytest.approx(theirs.dual, abs=rounding)
            assert mine.gap == pytest.approx(theirs.gap, abs=rounding)


@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize("name", slow(CERTIFIED, but=("mlp", "recurrent", "heads", "signed")))
def test_a_device_certifies_as_the_host_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solve_elsewhere(monkeypatch)
    spec, sources, target = zoo(name, 3)
    host = AlignmentProblem(sources, target, spec, dtype=torch.float64)
    best = run_search(CoordinateDescent(order="forward"), host).best
    with PretendDevice():
        there = AlignmentProblem(sources, target, spec, dtype=torch.float64, engine=ENGINE)
        found = certificates(there, best.to(DEVICE))
        bounds = lower_bound(there).cpu()
    torch.testing.assert_close(bounds, lower_bound(host), rtol=1e-9, atol=1e-9)
    assert_certified_alike(found, certificates(host, best))


@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize(("name", "count"), each_once(["mlp", "signed"], [1, 4]))
def test_results_of_a_device_are_those_of_the_host(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve_elsewhere(monkeypatch)
    spec, sources, target = zoo(name, count)
    options = {"spec": spec, "search": CoordinateDescent(order="forward")}
    expected = align(sources, target, **options)
    monkeypatch.setattr(module, "choose_engine", lambda device: ENGINE)
    with PretendDevice():
        found = align(sources, target, **options)
    for one, other in zip(found, expected, strict=True):
        assert_equal_results(one, other)
        assert (one.cost_matrix is None) == (other.cost_matrix is None)
        assert all(type(tensor) is Tensor for tensor in one.state_dict.values())
