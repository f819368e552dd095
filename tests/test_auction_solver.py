"""The auction's launcher and solver: arguments, choice, queued calls, forms of a warm start."""

import math
import re
import types

import pytest
import torch
from test_auction import make_cost, needs_compiler

from gpu_align._assignment import (
    AssignmentProblem,
    AuctionAssignment,
    AutoAssignment,
    _auction,
    exact_duals,
    raise_failures,
    solve,
)
from gpu_align._errors import GpuAlignError, InputError, UnavailableError
from gpu_align.kernels import auction as launcher
from gpu_align.kernels._cuda import source
from gpu_align.kernels.auction import STATS, STATUS_OF_CODE, auction


def test_the_source_is_whole():
    text = source("auction.cu")
    assert "#include" not in text
    for name in launcher.KERNELS:
        assert text.count(f" {name}(PARAMETERS") == 1


@pytest.mark.usefixtures("auction_on_host")
@needs_compiler
@pytest.mark.parametrize("shape", [(0, 0, 0), (0, 4, 4), (3, 0, 0)])
def test_nothing_to_solve(shape):
    result = auction(torch.zeros(shape))
    assert result.col_ind.shape == shape[:2]
    assert not result.status_codes.any()
    assert not result.objective.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": torch.zeros(3, 3)}, r"cost: expected shape \[b, n, n\]"),
        ({"cost": torch.zeros(1, 3, 3)}, "on a CUDA device; got torch.float32 on cpu"),
    ],
)
def test_the_launcher_checks_its_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        auction(**arguments)


WRONG = torch.zeros(3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sizes", {"sizes": WRONG}),
        ("col_dual", {"warm_start": (WRONG, None)}),
        ("col_ind", {"warm_start": (torch.zeros(1, 3).double(), WRONG)}),
    ],
)
def test_the_launcher_checks_its_options(monkeypatch, name, options):
    monkeypatch.setattr(launcher, "_DEVICE", "cpu")
    with pytest.raises(InputError, match=f"{name}: expected torch"):
        auction(torch.zeros(1, 3, 3), **options)


def test_an_explicit_choice_never_falls_back():
    problem = AssignmentProblem(make_cost("aligned", 5)[None])
    with pytest.raises(UnavailableError, match=r"not on a CUDA device.*\.cuda\(\)"):
        solve(problem, AuctionAssignment())
    with pytest.raises(InputError, match="max_rounds: expected at least 1"):
        AuctionAssignment(max_rounds=0)
    assert AutoAssignment().select(problem)[0].name in ("scipy", "lapx")


@pytest.mark.parametrize("there", [True, False], ids=["with CuPy", "without"])
def test_auto_says_why(monkeypatch, there):
    monkeypatch.setattr(_auction, "find_cupy", lambda: there)
    cost = types.SimpleNamespace(device=torch.device("cuda", 0))
    problem = types.SimpleNamespace(cost=cost, n=64, batch=10)
    solver, reason = AutoAssignment().select(problem)
    assert isinstance(solver, AuctionAssignment) == there
    assert AutoAssignment().exact_bits(problem) == solver.exact_bits(problem)
    assert (AutoAssignment().exact_bits(problem) < 28) == there
    assert ("on a CUDA device" in reason) == there
    assert there or "pip install 'gpu-align[cuda]'" in reason


@needs_compiler
def test_the_solver_class(auction_on_host):
    cost = torch.stack([make_cost("aligned", 40), make_cost("integers", 40)])
    cost = torch.cat([cost, torch.full((1, 40, 40), math.nan)])
    problem = AssignmentProblem(cost)
    solution = solve(problem, AuctionAssignment(), certify=True, throw=False)
    assert [status.name for status in solution.status] == ["SOLVED", "OPTIMAL", "NOT_FINITE"]
    assert solution.stats["solver"] == "auction"
    again = AuctionAssignment().solve(problem, warm_start=(solution.col_dual, solution.col_ind))
    assert again.stats["auction_rounds"].tolist()[:2] == [0, 0]
    assert torch.equal(again.col_ind, solution.col_ind)
    hard = AssignmentProblem(make_cost("sorted_products", 90)[None])
    stopped = AuctionAssignment(max_rounds=1).solve(hard)
    assert [status.name for status in stopped.status] == ["ROUND_LIMIT"]


QUEUED = ("col_ind", "row_dual", "col_dual", "objective", "duality_gap", "status_codes", "stats")


@needs_compiler
def test_a_queued_call_computes_what_solve_does(auction_on_host):
    cost = torch.stack([make_cost(kind, 40) for kind in ("aligned", "integers", "uniform")])
    problem = AssignmentProblem(cost, maximize=True, sizes=torch.tensor([40, 0, 33]))
    queued = AuctionAssignment().enqueue(problem)
    assert set(vars(queued)) == set(QUEUED)
    solution = AuctionAssignment().solve(problem)
    for name in QUEUED[:5]:
        assert torch.equal(getattr(queued, name), getattr(solution, name)), name
    assert queued.status_codes.tolist() == [0, 0, 0]
    assert torch.equal(queued.col_ind[1], torch.arange(40))
    for name, counts in queued.named_stats().items():
        assert torch.equal(counts, solution.stats[name])
    dual = queued.col_dual.clone()
    dual[2, 0] = math.nan
    again = AuctionAssignment().enqueue(problem, (dual, queued.col_ind))
    assert again.stats[0, :3].tolist() == [0, 0, 0]
    assert torch.equal(again.stats[2], queued.stats[2])


@needs_compiler
def test_a_queued_call_does_not_wait(auction_on_host, monkeypatch):
    """Nothing that reads a value back is called; on a GPU torch itself watches."""

    def refuse(*args, **kwargs):
        raise AssertionError("waits for the device")

    problem = AssignmentProblem(make_cost("aligned", 40)[None], sizes=torch.tensor([40]))
    names = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__")
    with monkeypatch.context() as watched:
        for name in names:
            watched.setattr(torch.Tensor, name, refuse)
        queued = AuctionAssignment().enqueue(problem, (torch.zeros(1, 40).double(), None))
    assert queued.status_codes.tolist() == [0]
    assert sorted(queued.col_ind[0].tolist()) == list(range(40))


@needs_compiler
def test_failures_are_raised_in_one_place(auction_on_host):
    broken = torch.stack([make_cost("aligned", 40)] * 3)
    broken[1, 2, 3] = math.inf
    first = AuctionAssignment().enqueue(AssignmentProblem(broken)).status_codes
    hard = AssignmentProblem(torch.stack([make_cost("sorted_products", 90)] * 3))
    second = AuctionAssignment(max_rounds=1).enqueue(hard).status_codes
    raise_failures(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(GpuAlignError, match=r"1 of 3 .*\n.*problem 1 of the batch: .*NaN"):
        raise_failures(first)
    with pytest.raises(GpuAlignError, match=r"3 of 3 .*\n.*problem 0 of the batch: .*rounds"):
        raise_failures(torch.maximum(first, second))


@needs_compiler
def test_exact_duals_name_the_problem_that_failed(auction_on_host):
    similarity = torch.stack([make_cost("aligned", 20)] * 3)
    similarity[1, 2, 3] = math.nan
    with pytest.raises(GpuAlignError, match=r"1 of 3 .*\n.*problem 1 of the batch: .*NaN"):
        exact_duals(similarity)


@needs_compiler
def test_former_forms_of_a_warm_start_warn(auction_on_host):
    solver, problem = AuctionAssignment(), AssignmentProblem(make_cost("aligned", 40)[None])
    cold = solver.enqueue(problem)
    dual, col = cold.col_dual, cold.col_ind
    warm = solver.enqueue(problem, (dual, col)).named_stats()
    assert not torch.equal(warm["row_scans"], cold.named_stats()["row_scans"])
    for former in (
        lambda: solver.solve(problem, warm_start=solver.solve(problem)).stats,
        lambda: solver.enqueue(problem, dual, col).named_stats(),
        lambda: solver.enqueue(problem, warm_start_dual=dual, warm_start_col=col).named_stats(),
        lambda: solver.prepare(problem, dual, col).launch().named_stats(),
    ):
        with pytest.warns(DeprecationWarning, match=r"warm_start=\(col_dual, col_ind\)") as caught:
            found = former()
        assert caught[0].filename == __file__
        assert torch.equal(found["row_scans"], warm["row_scans"])


def enumerators(name: str) -> list[str]:
    (found,) = re.findall(rf"enum {name} {{(.*?)}}", source("auction.cu"), re.DOTALL)
    return [each.strip() for each in found.split(",")]


def test_the_kernels_count_and_end_as_the_launcher_says():
    assert enumerators("Status") == [status.name for status in STATUS_OF_CODE]
    assert enumerators("Stat")[len(STATS) :] == ["STATS"]
    (box,) = re.findall(r"constexpr int BOX_BYTES = (\d+);", source("auction.cu"))
    assert int(box) == launcher._BOX_BYTES
