"""Assignment: every matching is judged by brute force, by SciPy or by its certificate."""

import math
import sys
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import each_once
from scipy.optimize import linear_sum_assignment

from gpu_align._assignment import (
    AssignmentProblem,
    AssignmentSolution,
    AuctionAssignment,
    AutoAssignment,
    LapxAssignment,
    ScipyAssignment,
    certify,
    solve,
)
from gpu_align._assignment._lapx import find_lapx
from gpu_align._errors import GpuAlignError, InputError, UnavailableError
from gpu_align._status import Status

KINDS = ("gaussian", "ties", "constant_rows", "tied", "rank_one", "dead_units", "planted")
LAPX = [LapxAssignment(), LapxAssignment(threads=1)] if find_lapx() else []
SOLVERS = [ScipyAssignment(), ScipyAssignment(threads=1), ScipyAssignment(threads=3)]
SOLVERS += [*LAPX, AutoAssignment()]


def make_cost(kind: str, batch: int, n: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, batch, n, 2 * n + 1))
    match kind:
        case "gaussian":
            cost = -(a @ b.swapaxes(1, 2))
        case "ties":
            cost = rng.integers(0, 4, (batch, n, n)).astype(float)
        case "constant_rows":
            cost = np.broadcast_to(a[:, :, :1], (batch, n, n))
        case "tied":
            cost = a[:, :, :1] + 0.1 * b[:, None, :, 0]  # all matchings tie, up to rounding
        case "rank_one":
            cost = a[:, :, :1] * b[:, None, :, 0]
        case "dead_units":
            alive = rng.random((2, batch, n, 1)) > 0.4
            cost = -((a * alive[0]) @ (b * alive[1]).swapaxes(1, 2))
        case "planted":
            order = rng.permutation(n)
            cost = -(a @ (a[:, order] + 0.1 * b).swapaxes(1, 2))
        case _:
            raise AssertionError(kind)
    return torch.from_numpy(np.array(cost))


def make_ragged(sizes: list[int], padding: float, maximize: bool) -> AssignmentProblem:
    n = max(sizes)
    cost = torch.full((len(sizes), n, n), padding, dtype=torch.float64)
    for p, size in enumerate(sizes):
        cost[p, :size, :size] = make_cost("gaussian", 1, size, seed=p)[0]
    return AssignmentProblem(cost, maximize, torch.tensor(sizes))


def all_objectives(cost: torch.Tensor) -> list[float]:
    """Objectives of all n! matchings of one matrix, ascending."""
    rows, n = cost.double().tolist(), len(cost)
    return sorted(
        math.fsum(rows[i][j] for i, j in enumerate(order)) for order in permutations(range(n))
    )


def size_of(problem: AssignmentProblem, p: int) -> int:
    return problem.n if problem.sizes is None else int(problem.sizes[p])


def scipy_objective(cost: torch.Tensor, maximize: bool) -> float:
    matrix = cost.double().numpy()
    return float(matrix[linear_sum_assignment(matrix, maximize=maximize)].sum())


def check_matching(problem: AssignmentProblem, solution: AssignmentSolution) -> None:
    """The matchings are permutations that leave padding in place; the objectives are theirs."""
    rows = torch.arange(problem.n)
    assert torch.equal(solution.col_ind.sort(1).values, rows.expand(problem.batch, -1))
    assert len(solution.status) == problem.batch
    for p in range(problem.batch):
        size = size_of(problem, p)
        col = solution.col_ind[p]
        assert torch.equal(col[size:], rows[size:])
        total = problem.cost[p, rows[:size], col[:size]].double().sum()
        torch.testing.assert_close(solution.objective[p], total, rtol=1e-12, atol=1e-12)


def check_certificate(problem: AssignmentProblem, solution: AssignmentSolution) -> None:
    """The duals are feasible, and the gap is what separates their sum from the objective."""
    sign = -1.0 if problem.maximize else 1.0
    for p in range(problem.batch):
        size = size_of(problem, p)
        cost = sign * problem.cost[p, :size, :size].double()
        row, col = sign * solution.row_dual[p], sign * solution.col_dual[p]
        assert not torch.cat([row[size:], col[size:]]).any()
        scale = 1e-12 * max(1, problem.n) * max(1.0, float(cost.abs().amax()) if size else 0.0)
        assert bool((row[:size, None] + col[:size] <= cost + scale).all())
        gap = float(solution.duality_gap[p])
        assert gap >= 0
        bound = float(row.sum() + col.sum())
        assert float(sign * solution.objective[p]) - bound == pytest.approx(gap, abs=scale)


def matching(col_ind: torch.Tensor, objective: torch.Tensor) -> AssignmentSolution:
    """A solution that claims to be optimal."""
    status = (Status.OPTIMAL,) * len(col_ind)
    return AssignmentSolution(col_ind=col_ind, objective=objective, status=status, stats={})


problems = st.builds(
    lambda kind, batch, n, seed, maximize, dtype: AssignmentProblem(
        make_cost(kind, batch, n, seed).to(dtype), maximize
    ),
    st.sampled_from(KINDS),
    st.integers(0, 3),
    st.integers(0, 5),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)


@settings(deadline=None, max_examples=60)
@given(problem=problems)
def test_solution_is_the_best_of_all_permutations(problem):
    solution = solve(problem, certify=True)
    check_matching(problem, solution)
    check_certificate(problem, solution)
    assert all(status is Status.OPTIMAL for status in solution.status)
    for p in range(problem.batch):
        ranked = all_objectives(problem.cost[p])
        best = ranked[-1 if problem.maximize else 0]
        assert float(solution.objective[p]) == pytest.approx(best, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize(("solver", "kind"), each_once(SOLVERS, KINDS), ids=str)
@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_solvers_reach_scipys_objective(solver, kind, maximize):
    for batch, n, dtype in ((1, 63, torch.float64), (9, 40, torch.float32), (70, 7, torch.float64)):
        problem = AssignmentProblem(make_cost(kind, batch, n, seed=n).to(dtype), maximize)
        solution = solve(problem, solver, certify=True)
        check_matching(problem, solution)
        check_certificate(problem, solution)
        assert set(solution.status) == {Status.OPTIMAL}
        assert {"solver", "threads"} <= set(solution.stats)
        for p in range(batch):
            expected = scipy_objective(problem.cost[p], maximize)
            assert float(solution.objective[p]) == pytest.approx(expected, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
@pytest.mark.parametrize("padding", [float("nan"), -1e30, 1e30])
def test_padding_has_no_influence(solver, maximize, padding):
    problem = make_ragged([30, 0, 1, 17, 30, 5], padding, maximize)
    solution = solve(problem, solver, certify=True)
    check_matching(problem, solution)
    check_certificate(problem, solution)
    assert set(solution.status) == {Status.OPTIMAL}
    for p in range(problem.batch):
        size = size_of(problem, p)
        expected = scipy_objective(problem.cost[p, :size, :size], maximize)
        assert float(solution.objective[p]) == pytest.approx(expected)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
@pytest.mark.parametrize("padded", [False, True])
def test_problems_of_size_0_change_nothing(solver, maximize, padded):
    """The others are solved as if they were alone; those without rows get the identity."""
    cost, sizes = make_cost("gaussian", 5, 30, seed=3), torch.tensor([0, 30, 0, 30, 0])
    if padded:
        sizes[3] = 21
    cost[sizes == 0] = math.nan
    some = torch.tensor([1, 3])
    found = solve(AssignmentProblem(cost, maximize, sizes), solver, certify=True)
    alone = solve(AssignmentProblem(cost[some], maximize, sizes[some]), solver, certify=True)
    for name in ("col_ind", "objective", "row_dual", "col_dual", "duality_gap"):
        assert torch.equal(getattr(found, name)[some], getattr(alone, name)), name
    assert torch.equal(found.col_ind[::2], torch.arange(30).expand(3, -1))
    assert not torch.cat([found.objective[::2], found.row_dual[::2].flatten()]).any()
    assert set(found.status) == {Status.OPTIMAL}


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("shape", [(0, 0, 0), (0, 4, 4), (3, 0, 0), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_empty_and_single(solver, shape, ragged):
    cost = make_cost("gaussian", shape[0], shape[1], seed=0)
    sizes = torch.full((shape[0],), shape[1]) if ragged else None
    problem = AssignmentProblem(cost, sizes=sizes)
    solution = solve(problem, solver, certify=True)
    check_matching(problem, solution)
    check_certificate(problem, solution)
    assert set(solution.status) <= {Status.OPTIMAL}


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e308])
@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_a_failed_problem_leaves_the_others_alone(solver, bad, maximize):
    cost = make_cost("gaussian", 4, 20, seed=1)
    cost[1, 3, 5] = bad
    cost[1, 4, 5] = -bad
    problem = AssignmentProblem(cost, maximize)
    with pytest.raises(GpuAlignError, match=r"problem 1 of the batch: .*NaN or overflow"):
        solve(problem, solver)
    solution = solve(problem, solver, throw=False, certify=True)
    assert solution.status == (Status.OPTIMAL, Status.NOT_FINITE, Status.OPTIMAL, Status.OPTIMAL)
    assert torch.equal(solution.col_ind[1], torch.arange(20))
    for value in (solution.objective, solution.duality_gap, solution.row_dual, solution.col_dual):
        assert bool(value[1].isnan().all())
        assert not bool(value[[0, 2, 3]].isnan().any())


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1e200])
def test_certificate_is_relative_to_the_costs(scale):
    cost = make_cost("gaussian", 1, 12, seed=3) * scale
    problem = AssignmentProblem(cost)
    assert solve(problem, certify=True).status == (Status.OPTIMAL,)
    claim = matching(solve(problem).col_ind.roll(1, 1), solve(problem).objective)
    assert certify(problem, claim).status == (Status.SOLVED,)


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
@pytest.mark.parametrize(
    ("lacking", "status"), [(1e-12, Status.OPTIMAL), (1e-7, Status.SOLVED), (1e-4, Status.SOLVED)]
)
def test_only_rounding_counts_as_no_gap(lacking, status, scale):
    """The identity lacks a share of the largest cost."""
    cost = scale * torch.tensor([[[1.0, 0.0], [0.0, lacking - 1.0]]], dtype=torch.float64)
    identity = matching(torch.tensor([[0, 1]]), cost.diagonal(dim1=1, dim2=2).sum(1))
    assert certify(AssignmentProblem(cost), identity).status == (status,)


@pytest.mark.parametrize("failure", [Status.ROUND_LIMIT, Status.INEXACT, Status.NOT_FINITE])
def test_certify_keeps_a_failure(failure):
    problem = AssignmentProblem(make_cost("gaussian", 2, 6, seed=0))
    failed = replace(solve(problem), status=(failure, Status.SOLVED))
    assert certify(problem, failed).status == (failure, Status.OPTIMAL)


@settings(deadline=None, max_examples=40)
@given(problem=problems, seed=st.integers(0, 1000))
def test_gap_of_any_matching_is_what_it_lacks(problem, seed):
    rng = np.random.default_rng(seed)
    col_ind = torch.from_numpy(
        np.array([rng.permutation(problem.n) for _ in range(problem.batch)], dtype=np.int64)
    ).reshape(problem.batch, problem.n)
    objective = problem.cost.double().gather(2, col_ind[:, :, None]).sum((1, 2))
    guess = matching(col_ind, objective)
    solution = certify(problem, guess)
    check_certificate(problem, solution)
    lacking = (objective - solve(problem).objective).abs()
    torch.testing.assert_close(solution.duality_gap, lacking, rtol=1e-10, atol=1e-10)
    for p in range(problem.batch):
        assert (solution.status[p] is Status.OPTIMAL) == bool(lacking[p] < 1e-9)


@pytest.mark.parametrize(
    "col_ind", [[[0, 0, 2]], [[1, 2, 0]], [[0, 1, 3]], [[0, 1]]], ids=["twice", "padding", "3", "n"]
)
def test_certify_refuses_what_is_no_matching(col_ind):
    problem = AssignmentProblem(torch.zeros(1, 3, 3), sizes=torch.tensor([2]))
    solution = replace(solve(problem), col_ind=torch.tensor(col_ind))
    with pytest.raises(InputError, match="col_ind: expected"):
        certify(problem, solution)


@pytest.mark.parametrize(
    ("cost", "sizes", "message"),
    [
        (torch.zeros(3, 3), None, r"shape \[b, n, n\]; got shape \[3, 3\]"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), None, "float32 or float64; got torch.int64"),
        (torch.zeros(1, 3, 3, dtype=torch.float16), None, "float16"),
        (torch.zeros(2, 3, 3), torch.tensor([3]), "sizes: expected one int64 per problem"),
        (torch.zeros(1, 3, 3), torch.tensor([3.0]), "sizes: expected one int64 per problem"),
        (torch.zeros(2, 3, 3), torch.tensor([3, 4]), "got 4 for problem 1"),
        (torch.zeros(2, 3, 3), torch.tensor([-1, 4]), "got -1 for problem 0"),
    ],
)
def test_a_problem_checks_its_arguments(cost, sizes, message):
    with pytest.raises(InputError, match=message):
        AssignmentProblem(cost, sizes=sizes)


@pytest.mark.parametrize("solver", [ScipyAssignment, LapxAssignment])
def test_threads_are_checked(solver):
    with pytest.raises(InputError, match="threads: expected at least 1"):
        solver(threads=0)


def test_solvers_say_what_solves_on_a_device():
    limited = AuctionAssignment(max_rounds=7)
    assert limited.device_solver() is limited
    assert AutoAssignment().device_solver() == AuctionAssignment()
    assert ScipyAssignment().device_solver() is None
    assert LapxAssignment().device_solver() is None


def test_costs_may_require_gradients_and_stay_untouched():
    cost = make_cost("gaussian", 2, 20, seed=0).transpose(1, 2).requires_grad_()
    before = cost.detach().clone()
    for solver in SOLVERS:
        solution = solve(AssignmentProblem(cost), solver, certify=True)
        assert not solution.objective.requires_grad
    assert torch.equal(cost.detach(), before)


@pytest.fixture
def without_lapx(monkeypatch):
    monkeypatch.setitem(sys.modules, "lap", None)
    find_lapx.cache_clear()
    yield
    find_lapx.cache_clear()


@pytest.mark.usefixtures("without_lapx")
def test_without_lapx_auto_takes_scipy_and_an_explicit_choice_raises():
    problem = AssignmentProblem(make_cost("gaussian", 2, 30, seed=0))
    solver, reason = AutoAssignment().select(problem)
    assert isinstance(solver, ScipyAssignment)
    assert "pip install gpu-align[fast]" in reason
    assert {"solver": "scipy", "reason": reason}.items() <= solve(problem).stats.items()
    with pytest.raises(UnavailableError, match=r"pip install gpu-align\[fast\]"):
        solve(problem, LapxAssignment())


@pytest.mark.skipif(not LAPX, reason="lapx is not installed")
@pytest.mark.parametrize(
    ("batch", "n", "expected"),
    [(1, 8, "scipy"), (1, 64, "lapx"), (100, 8, "lapx"), (0, 0, "scipy")],
)
def test_with_lapx_auto_follows_the_measurements(batch, n, expected):
    problem = AssignmentProblem(torch.zeros(batch, n, n))
    solver, reason = AutoAssignment().select(problem)
    assert solver.name == expected
    assert "lapx is installed" in reason
    assert solve(problem).stats["solver"] == expected
