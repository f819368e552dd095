"""Batches of assignment problems: the device's solver beside those of the CPU and its peers.

    python -m bench.assignment [--record]

Every answer is checked before it is timed: against the bound that the solver's own duals prove, or
against the best answer known. With a CUDA device n goes from 32 to 4096, batches from 1 to 4096,
and the device's solver starts cold and warm; without one only the solvers of the CPU run, on less.
Solvers of the CPU get the first problems of a large batch; compare the time per problem. After
each case --record writes what there is to results/assignment.json, or assignment_cpu.json.
"""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import CASES
from bench.record import record
from bench.timing import wall_clock
from gpu_align._assignment import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
    AuctionAssignment,
    LapxAssignment,
    ScipyAssignment,
)
from gpu_align._assignment._auction import find_cupy
from gpu_align._assignment._lapx import find_lapx

KINDS = ("uniform", "aligned", "planted", "dead units", "trained-like", "rank one")
CPU_ELEMENTS = 2**22
"""Largest batch * n * n that a solver of the CPU is given."""

SLOW = 1000.0
"""Milliseconds: a solver that takes longer is not tried on larger problems of the kind."""

EXCESS = 1e-8
"""Largest accepted excess over the optimum, in units of the range of the costs and row."""

PEERS_EXCESS = 1e-5
"""The same for peers, which compute in float32."""

Answer = tuple[Tensor, Tensor | None]
"""Columns [b, n], and duals of the columns [b, n] where the solver gives them."""


@dataclass(frozen=True)
class Task:
    """One batch of problems.

    Attributes:
        kind: of `KINDS`.
        n: rows.
        batch: problems.
        network: that has such groups, or nothing.
    """

    kind: str
    n: int
    batch: int
    network: str = ""

    def cost(self, device: str) -> Tensor:
        """Draw the costs [b, n, n], float32, the same in every run on a device."""
        torch.manual_seed(self.n)
        return make_cost(self.kind, self.batch, self.n, device)


@dataclass(frozen=True)
class Solver:
    """What is timed.

    Attributes:
        name: in the table.
        solve: costs to answer.
        device: where it wants the costs.
        excess: accepted, see `EXCESS`.
    """

    name: str
    solve: Callable[[Tensor], Answer]
    device: str = "cpu"
    excess: float = EXCESS


def tasks(device: str) -> Iterator[Task]:
    """Yield what is measured on a device: every kind, many batches, the groups of networks."""
    large = device == "cuda"
    elements = 2**27 if large else CPU_ELEMENTS
    for n in (32, 128, 512, 1024, 2048, 4096) if large else (32, 128, 512):
        for kind in KINDS:
            yield Task(kind, n, min(128 if large else 16, elements // n**2))
        for batch in (1, 8, 64, 512, 4096) if large else (1,):
            if batch * n * n <= 2 * elements:
                yield Task("aligned", n, batch)
    for case in CASES:
        n = max(n for n, _ in case.groups)
        count = Counter(n for n, _ in case.groups)[n] * case.batch
        if large or n <= 512:
            yield Task("trained-like", n, min(count, elements // n**2), case.name)


def make_cost(kind: str, batch: int, n: int, device: str) -> Tensor:
    """Return costs [b, n, n] of one of `KINDS`.

    All but two are minus the products of the rows of two networks: independent normal rows
    (aligned); the same rows in another order with noise (planted); rows of which a fifth is zero
    (dead units); rows of very different norms that share an eighth of their directions, a tenth
    of them nearly zero (trained-like). Rank one is a product of two positive vectors with noise
    of 2 %, as activations have it.
    """
    a, b = torch.randn(2, batch, n, n, device=device)
    if kind == "uniform":
        return torch.rand(batch, n, n, device=device)
    if kind == "rank one":
        return 0.02 * a - torch.rand_like(a[:, :, :1]) * torch.rand_like(a[:, :1])
    if kind == "planted":
        b = a[:, torch.randperm(n, device=device)] + 0.5 * b
    if kind == "dead units":
        a, b = (x * (torch.rand(batch, n, 1, device=device) > 0.2) for x in (a, b))
    if kind == "trained-like":
        shared = torch.randn(batch, n // 8, n, device=device)
        a, b = (_trained_like(x, shared) for x in (a, b))
    return -(a @ b.mT)


def _trained_like(noise: Tensor, shared: Tensor) -> Tensor:
    rows = torch.randn_like(noise[..., : shared.shape[1]]) @ shared / shared.shape[1] ** 0.5
    norms = torch.randn_like(noise[..., :1]).exp()
    alive = torch.rand_like(norms) > 0.1
    return (rows + 0.5 * noise) * norms * torch.where(alive, 1.0, 1e-3)


def solvers(device: str) -> list[Solver]:
    """Return what can run here, SciPy first: its answers are the reference of those after it."""
    found = [
        Solver("SciPy, one thread", _ours(ScipyAssignment(threads=1))),
        Solver("SciPy, all cores", _ours(ScipyAssignment())),
    ]
    if find_lapx() is not None:
        found.append(Solver("lapx, all cores", _ours(LapxAssignment())))
    if device == "cuda" and find_cupy():
        found.append(Solver("auction", _ours(AuctionAssignment()), device))
    if importlib.util.find_spec("torch_linear_assignment"):
        from torch_linear_assignment import batch_linear_assignment as linear

        peer = Solver("torch-linear-assignment", _peer(linear), device, PEERS_EXCESS)
        found.append(peer)
    if device == "cuda" and importlib.util.find_spec("torch_lap_cuda"):
        from torch_lap_cuda import solve_lap

        found.append(Solver("torch-lap-cuda", _peer(solve_lap), device, PEERS_EXCESS))
    return found


def _ours(solver: AbstractAssignmentSolver) -> Callable[[Tensor], Answer]:
    def run(cost: Tensor) -> Answer:
        solution = solver.solve(AssignmentProblem(cost))
        return solution.col_ind, solution.col_dual

    return run


def _peer(solve: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Answer]:
    return lambda cost: (solve(cost).long(), None)


def gate(cost: Tensor, answer: Answer, best: Tensor, allowed: float) -> float:
    """Return the worst excess of an answer, in units of the range of the costs and row.

    Args:
        cost: [b, n, n].
        answer: columns and, where the solver gives them, duals, which are then what it is
            compared with: sum_j v_j + sum_i min_j (c_ij - v_j) is a bound for any v.
        best: [b] or more; the best sums known on the CPU, infinite where there is none. Lowered.
        allowed: the excess.

    Raises:
        AssertionError: the answer is no permutation, or not good enough.
    """
    col, dual = answer
    batch, n = col.shape
    places = torch.arange(n, device=col.device).expand(batch, n)
    assert torch.equal(col.sort(1).values, places), "no permutation"
    total = cost.gather(2, col[:, :, None]).double().sum((1, 2)).cpu()
    bound = best[:batch].clone()
    if dual is not None:
        reduced = cost.double() - dual[:, None]
        bound = (reduced.amin(2).sum(1) + dual.sum(1)).cpu()
    spread = (cost.amax((1, 2)) - cost.amin((1, 2))).double().cpu() * n
    excess = max(0.0, float(((total - bound) / spread).max()))
    assert excess <= allowed, f"{excess:.1e} of range and row over the optimum"
    best[:batch] = torch.minimum(best[:batch], total)
    return excess


def measure(task: Task, solver: Solver, cost: Tensor, best: Tensor) -> dict[str, object]:
    """Check one solver on a task, then time it."""
    some = max(1, CPU_ELEMENTS // task.n**2) if solver.device == "cpu" else task.batch
    given = cost[:some].to(solver.device)
    excess = gate(given, solver.solve(given), best, solver.excess)
    time = wall_clock(lambda: solver.solve(given))
    return {"problems": len(given), "ms": time, "excess": excess}


def measure_warm(cost: Tensor) -> dict[str, object]:
    """Time a warm start on costs that moved by 1 % of each problem's standard deviation."""
    solver = AuctionAssignment()
    old = solver.solve(AssignmentProblem(cost))
    moved = cost + 0.01 * cost.std((1, 2), keepdim=True) * torch.randn_like(cost)

    def run() -> AssignmentSolution:
        return solver.solve(AssignmentProblem(moved), warm_start=old)

    found = run()
    best = torch.full((len(cost),), torch.inf, dtype=torch.float64)
    excess = gate(moved, (found.col_ind, found.col_dual), best, EXCESS)
    return {"problems": len(cost), "ms": wall_clock(run), "excess": excess}


def rows_of(task: Task, found: list[Solver], slow: dict[tuple[str, str], int]) -> Iterator[dict]:
    """Yield the rows of a task; a solver that fails the gate has a row that says how.

    Args:
        task: what is solved.
        found: what solves it.
        slow: solver and kind -> rows from which on it takes longer than `SLOW`; extended.
    """
    cost = task.cost("cuda" if torch.cuda.is_available() else "cpu")
    best = torch.full((task.batch,), torch.inf, dtype=torch.float64)
    jobs = [(solver, lambda s=solver: measure(task, s, cost, best)) for solver in found]
    jobs += [
        (Solver("auction, warm", solver.solve, solver.device), lambda: measure_warm(cost))
        for solver in found
        if solver.name == "auction"
    ]
    for solver, job in jobs:
        row = {**vars(task), "solver": solver.name}
        if task.n > slow.get((solver.name, task.kind), task.n):
            yield row | {"skipped": "took more than a second on smaller problems"}
            continue
        try:
            row |= job()
        except AssertionError as error:
            yield row | {"failed": str(error)}
            continue
        if row["ms"]["median"] > SLOW:
            slow[solver.name, task.kind] = task.n
        yield row


def line(row: dict) -> str:
    """Format a row."""
    what = f"{row['network'] or row['kind']:14} {row['batch']:5} x {row['n']:<5} {row['solver']:24}"
    if "ms" not in row:
        return f"{what} {row.get('failed') or row.get('skipped')}"
    each = 1e3 * row["ms"]["median"] / row["problems"]
    return f"{what} {row['ms']['median']:10.2f} ms {each:10.1f} us per problem"


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = solvers(device)
    if all(solver.name != "auction" for solver in found):
        print("no CUDA device with CuPy here: the device's figures are not yet measured")
    rows: list[dict] = []
    slow: dict[tuple[str, str], int] = {}
    for task in tasks(device):
        for row in rows_of(task, found, slow):
            rows.append(row)
            print(line(row), flush=True)
        if "--record" in sys.argv:
            record("assignment" if device == "cuda" else "assignment_cpu", rows)
    failed = sum("failed" in row for row in rows)
    if failed:
        sys.exit(f"{failed} of {len(rows)} answers are wrong")


if __name__ == "__main__":
    main()
