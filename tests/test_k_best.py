"""The k best assignments, against all permutations."""

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import each_once
from test_assignment import (
    KINDS,
    SOLVERS,
    all_objectives,
    check_matching,
    make_cost,
    make_ragged,
    matching,
    problems,
    scipy_objective,
    size_of,
)
from torch import Tensor

from gpu_align._assignment import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AuctionAssignment,
    ScipyAssignment,
    _k_best,
    k_best,
    solve,
)
from gpu_align._errors import GpuAlignError, InputError


def check_k_best(
    problem: AssignmentProblem,
    k: int,
    solver: AbstractAssignmentSolver | None = None,
    tolerance: float = 1e-10,
) -> None:
    """Check what `k_best` finds on the CPU."""
    check_found(problem, k, k_best(problem, k, solver), tolerance)


def check_found(
    problem: AssignmentProblem, k: int, found: tuple[Tensor, Tensor], tolerance: float
) -> None:
    """Objectives equal those of brute force; matchings are distinct, valid and in order."""
    sign = -1 if problem.maximize else 1
    col_ind, objective = (tensor.cpu() for tensor in found)
    assert col_ind.shape == (problem.batch, k, problem.n)
    for p in range(problem.batch):
        size = size_of(problem, p)
        expected = all_objectives(problem.cost[p, :size, :size])[::sign][:k]
        count = len(expected)
        np.testing.assert_allclose(objective[p, :count], expected, rtol=1e-10, atol=tolerance)
        assert bool((sign * objective[p, :count]).diff().ge(0).all())
        assert objective[p, count:].tolist() == [sign * math.inf] * (k - count)
        assert torch.equal(col_ind[p, count:], col_ind[p, :1].expand(k - count, -1))
        assert len({tuple(col) for col in col_ind[p, :count].tolist()}) == count
        sizes = torch.tensor([size] * count)
        one = AssignmentProblem(problem.cost[[p] * count], problem.maximize, sizes)
        check_matching(one, matching(col_ind[p, :count], objective[p, :count]))


@settings(deadline=None, max_examples=80)
@given(problem=problems, k=st.integers(1, 40))
def test_k_best_is_the_head_of_all_permutations(problem, k):
    check_k_best(problem, k)


@pytest.mark.parametrize("kind", KINDS)
def test_k_best_can_list_everything(kind):
    check_k_best(AssignmentProblem(make_cost(kind, 2, 5, seed=5)), 125)


def test_k_best_of_a_ragged_batch_with_nan_padding():
    for maximize in (False, True):
        check_k_best(make_ragged([4, 0, 1, 2, 5], math.nan, maximize), 30)


@pytest.mark.parametrize("solver", [None, *SOLVERS], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_k_best_of_larger_problems(solver, kind):
    """No brute force here: the second must be the best that avoids one pair of the first."""
    n, k = 24, 12
    problem = AssignmentProblem(make_cost(kind, 1, n, seed=2))
    col_ind, objective = k_best(problem, k, solver)
    assert bool(objective.diff().ge(0).all())
    assert len({tuple(col) for col in col_ind[0].tolist()}) == k
    first, cost = col_ind[0, 0], problem.cost[0]
    assert float(objective[0, 0]) == pytest.approx(scipy_objective(cost, False), abs=1e-10)
    forbidden = cost.repeat(n, 1, 1)
    forbidden[torch.arange(n), torch.arange(n), first] = 1e6
    second = min(scipy_objective(each, False) for each in forbidden)
    assert float(objective[0, 1]) == pytest.approx(second, rel=1e-10, abs=1e-10)


def test_batches_are_cut_without_a_trace():
    """A batch that is cut in two says of its last problems what they say alone."""
    batch, last = _k_best._CHUNK_ENTRIES // 36 + 3, slice(-7, None)
    cost = make_cost("gaussian", batch, 6, seed=8)
    problem, alone = AssignmentProblem(cost), AssignmentProblem(cost[last])
    assert torch.equal(k_best(problem, 3)[1][last], k_best(alone, 3)[1])
    row_dual = solve(problem, certify=True).row_dual
    torch.testing.assert_close(row_dual[last], solve(alone, certify=True).row_dual)


@pytest.fixture
def costly_reads(monkeypatch):
    """Let k_best work as on a device, and refuse to read a value back between two ranks."""

    def refuse(*args, **kwargs):
        raise AssertionError("waits for the device")

    def guarded(method):
        def run(self, rank):
            with pytest.MonkeyPatch.context() as patch:
                for name in ("item", "tolist", "nonzero", "cpu", "numpy"):
                    patch.setattr(torch.Tensor, name, refuse)
                for name in ("__bool__", "__int__", "__float__", "__index__"):
                    patch.setattr(torch.Tensor, name, refuse)
                method(self, rank)

        return run

    monkeypatch.setattr(_k_best, "_reads_are_free", lambda device: False)
    for name in ("expand", "take_best"):
        monkeypatch.setattr(_k_best._Ranking, name, guarded(getattr(_k_best._Ranking, name)))


@pytest.mark.parametrize(("kind", "few"), each_once(KINDS, [None, 0, 1]))
def test_k_best_does_not_wait_between_ranks(costly_reads, monkeypatch, few, kind):
    """Where the paths of a cycle were split too few times, that is noticed at the end."""
    if few is not None:
        monkeypatch.setattr(_k_best, "_few_splits", lambda n: few)
    if kind == "gaussian":
        check_k_best(AssignmentProblem(make_cost(kind, 3, 5, seed=4)), 120)
        check_k_best(make_ragged([4, 0, 1, 2, 5], math.nan, maximize=True), 30)
    else:
        check_k_best(AssignmentProblem(make_cost(kind, 3, 4, seed=4)), 24)


@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize(("kind", "dtype"), each_once(KINDS, [torch.float32, torch.float64]))
def test_k_best_of_the_auction(kind, dtype):
    """28 bits are exact for small integers; else they are what the objectives may lack."""
    for n, maximize in ((5, False), (4, True)):
        cost = make_cost(kind, 3, n, seed=6).to(dtype)
        lack = 1e-10 if kind == "ties" else n * 2.0**-26 * float(cost.abs().max())
        check_k_best(AssignmentProblem(cost, maximize), 20, AuctionAssignment(), lack)
    ragged = make_ragged([4, 0, 1, 2, 5], math.nan, True)
    check_k_best(ragged, 30, AuctionAssignment(), 1e-6)


@pytest.mark.usefixtures("auction_on_host")
def test_k_best_rounds_so_that_the_auction_is_exact():
    """Costs at both ends of the range, which leave the auction's integers no room."""
    rng = np.random.default_rng(0)
    for scale in (1.0, 2.0**-40, 1 - 2.0**-30):
        signs = rng.choice([-1.0, 1.0], (40, 7, 7)) * scale
        cost = torch.from_numpy(signs + 2.0**-27 * scale * rng.integers(-1, 2, signs.shape))
        problem = AssignmentProblem(cost)
        found = k_best(problem, 9, AuctionAssignment())[1]
        expected = k_best(problem, 9, ScipyAssignment())[1]
        torch.testing.assert_close(found, expected, rtol=0, atol=7 * 2.0**-26 * scale)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_k_best_at_the_ends_of_the_range(scale):
    cost = make_cost("gaussian", 1, 5, seed=8)
    plain, scaled = (k_best(AssignmentProblem(c), 20)[0] for c in (cost, cost * scale))
    assert torch.equal(plain, scaled)


def test_k_best_refuses_what_it_cannot_do():
    cost = make_cost("gaussian", 3, 4, seed=0)
    with pytest.raises(InputError, match="k: expected at least 1; got 0"):
        k_best(AssignmentProblem(cost), 0)
    cost[2, 0, 0] = math.nan
    with pytest.raises(GpuAlignError, match="problem 2 of the batch"):
        k_best(AssignmentProblem(cost), 2)


class Identity(AbstractAssignmentSolver):
    """Not exact: for the test that k_best notices."""

    name: ClassVar[str] = "identity"

    def solve(self, problem):
        best = ScipyAssignment().solve(problem)
        return replace(best, col_ind=torch.arange(problem.n).repeat(problem.batch, 1))


def test_k_best_notices_a_solver_that_is_not_exact():
    with pytest.raises(GpuAlignError, match="exact solver"):
        k_best(AssignmentProblem(make_cost("gaussian", 2, 9, seed=0)), 3, Identity())
