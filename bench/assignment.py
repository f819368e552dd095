"""Batches of assignment problems: the device's solver beside those of the CPU and its peers.

    python -m bench.assignment [--quick] [--record]

Cases: the kinds of cost that alignment meets and random ones, and batches of the shapes of real
networks. Every solver's answer is compared with SciPy's before it is timed (the gate); device
timings are synchronised; median, 20 % and 80 % of the repetitions are kept. Without a CUDA device
only the solvers of the CPU are timed, and the device's figures stay "not yet measured".
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.record import record
from gpu_align._assignment import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AuctionAssignment,
    LapxAssignment,
    ScipyAssignment,
)
from gpu_align._assignment._auction import find_cupy
from gpu_align._assignment._lapx import find_lapx

SHAPES = {"MLP 3x512": (512, 3), "ResNet20 x32": (64, 19 * 32), "VGG16": (512, 8)}
"""Network -> units of its largest layers, and how many problems one step solves."""

Solver = Callable[[Tensor], Tensor]


def cases(quick: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield labels and costs [b, n, n], float32."""
    sizes = (32, 128) if quick else (32, 128, 512, 1024, 2048, 4096)
    batches = (1, 8) if quick else (1, 128, 4096)
    for n in sizes:
        for batch in batches:
            if batch * n * n <= 2**28:
                for kind in ("uniform", "aligned", "planted", "dead"):
                    yield f"{kind} {batch} x {n}", make_cost(kind, batch, n)
    for network, (n, batch) in SHAPES.items():
        yield f"{network}: {batch} x {n}", make_cost("aligned", batch, n)


def make_cost(kind: str, batch: int, n: int) -> Tensor:
    """Return costs [b, n, n] of a kind; see kernels/README.md."""
    generator = torch.Generator().manual_seed(n)
    a, b = torch.randn(2, batch, n, n, generator=generator)
    if kind == "uniform":
        return torch.rand(batch, n, n, generator=generator)
    if kind == "planted":
        b = a[:, torch.randperm(n, generator=generator)] + 0.5 * b
    if kind == "dead":
        a, b = (x * (torch.rand(batch, n, 1, generator=generator) > 0.2) for x in (a, b))
    return -(a @ b.mT)


def solvers() -> dict[str, Solver]:
    """Return what can run here: SciPy first, its answer is the gate."""
    found: dict[str, Solver] = {"scipy, one thread": _through(ScipyAssignment(threads=1))}
    found["scipy, all cores"] = _through(ScipyAssignment())
    if find_lapx() is not None:
        found["lapx, all cores"] = _through(LapxAssignment())
    if not torch.cuda.is_available():
        return found
    if find_cupy():
        found["auction"] = _on_device(_auction)
    if importlib.util.find_spec("torch_linear_assignment"):
        from torch_linear_assignment import batch_linear_assignment

        found["torch-linear-assignment"] = _on_device(batch_linear_assignment)
    if importlib.util.find_spec("torch_lap_cuda"):
        from torch_lap_cuda import solve_lap

        found["torch-lap-cuda"] = _on_device(solve_lap)
    return found


def _through(solver: AbstractAssignmentSolver) -> Solver:
    return lambda cost: solver.solve(AssignmentProblem(cost)).col_ind


def _auction(cost: Tensor) -> Tensor:
    return AuctionAssignment().solve(AssignmentProblem(cost)).col_ind


def _on_device(solve: Solver) -> Solver:
    """Time only the solver: the costs lie on the device, as a search would have them."""

    def run(cost: Tensor) -> Tensor:
        found = solve(cost)
        torch.cuda.synchronize()
        return found

    run.on_device = True  # type: ignore[attr-defined]
    return run


def gate(cost: Tensor, found: Tensor, best: Tensor) -> float:
    """Return the worst excess over the optimum in units of the range and row; 1e-8 at most."""
    batch, n = found.shape
    assert torch.equal(found.sort(1).values, torch.arange(n).expand(batch, n)), "no permutation"
    total = cost.double().gather(2, found[:, :, None]).sum((1, 2))
    spread = (cost.amax((1, 2)) - cost.amin((1, 2))).double() * n
    excess = float(((total - best) / spread).max())
    assert excess <= 1e-8, f"worse than SciPy by {excess} of range and row"
    return excess


def measure(solve: Solver, cost: Tensor, best: Tensor) -> dict[str, object]:
    """Check one solver on a case, then time it for about a second."""
    given = cost.cuda() if getattr(solve, "on_device", False) else cost
    excess = gate(cost, solve(given).long().cpu(), best)
    seconds: list[float] = []
    while (sum(seconds) < 1 and len(seconds) < 20) or len(seconds) < 3:
        started = time.perf_counter()
        solve(given)
        seconds.append(time.perf_counter() - started)
    low, _, _, high = statistics.quantiles(seconds, n=5)
    return {"median": statistics.median(seconds), "low": low, "high": high, "excess": excess}


def warm_rounds(cost: Tensor) -> dict[str, object]:
    """Time a warm start on costs that moved by 1 % of their standard deviation."""
    given = cost.cuda()
    old = AuctionAssignment().solve(AssignmentProblem(given))
    moved = AssignmentProblem(given + 0.01 * given.std() * torch.randn_like(given))
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        solution = AuctionAssignment().solve(moved, warm_start=old)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {"median": statistics.median(seconds), "scans": solution.stats["row_scans"].tolist()}


def main() -> None:
    rows: list[dict] = []
    found = solvers()
    if "auction" not in found:
        print("no CUDA device with CuPy here: the device's figures are not yet measured")
    for label, cost in cases("--quick" in sys.argv):
        reference = ScipyAssignment().solve(AssignmentProblem(cost)).col_ind
        best = cost.double().gather(2, reference[:, :, None]).sum((1, 2))
        for name, solve in found.items():
            row = {"case": label, "solver": name, **measure(solve, cost, best)}
            rows.append(row)
            print(f"{label:24} {name:24} {1e3 * row['median']:10.2f} ms", flush=True)
        if "auction" in found:
            rows.append({"case": label, "solver": "auction, warm", **warm_rounds(cost)})
    if "--record" in sys.argv:
        record("assignment", rows)


if __name__ == "__main__":
    main()
