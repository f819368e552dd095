"""Batches of assignment problems: the device's solver beside those of the CPU and its peers.

    GPU_ALIGN_PAIRS=folder python -m bench.assignment [--record] [--quick]

Every answer is checked before it is timed: against the bound that the solver's own duals prove, or
against the best answer known. Beside a CUDA device: 128 problems of 512 and 1024 rows of every kind
and of trained layers, 100,000 of 32, one of 8192 and 16384, and 208 of 300, a peer's own case.
Without one only the solvers of the CPU run, on less. Solvers of the CPU get a few problems of a
batch; compare the time per problem. A solver whose loops have no bound runs after all others.
After each row --record writes what there is to results/assignment.json, or assignment_cpu.json.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.costs import Task, device_tasks, host_tasks
from bench.record import record
from bench.timing import quantiles, synchronize, wall_clock
from gpu_align._assignment import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AuctionAssignment,
    AuctionResult,
    LapxAssignment,
    ScipyAssignment,
    raise_failures,
)
from gpu_align._assignment._auction import find_cupy
from gpu_align._assignment._lapx import find_lapx
from gpu_align._errors import AssignmentError

CORE_ELEMENTS = 2**19
"""Elements of the costs that a solver of the CPU is given for each of its threads."""

SLOW = 1000.0
"""Milliseconds: a solver that takes longer is timed once, and not tried on larger problems."""

SECONDS = 0.2
"""How long a faster one is timed again and again."""

EXCESS = 1e-8
"""Largest accepted excess over the optimum, in units of the range of the costs and row."""

PEERS_EXCESS = 1e-5
"""The same for peers, which compute in float32."""

WARM = ("aligned", "trained-like")
"""Kinds on which the device's solver is started warm too."""

Answer = tuple[Tensor, Tensor | None]
"""Columns [b, n], and duals of the columns [b, n] where the solver gives them."""

Clock = Callable[[Callable[[], object], float], dict[str, float]]
"""Takes a function and for how many seconds it is timed, and returns `quantiles`."""


@dataclass(frozen=True)
class Solver:
    """What is timed.

    Attributes:
        name: in the table.
        solve: costs to answer.
        device: where it wants the costs.
        excess: accepted, see `EXCESS`.
        ours: whether a wrong answer fails the bench.
        threads: of the CPU.
        largest: rows, and why no more.
    """

    name: str
    solve: Callable[[Tensor], Answer]
    device: str = "cpu"
    excess: float = EXCESS
    ours: bool = True
    threads: int = 1
    largest: tuple[int, str] = (2**20, "")

    def problems(self, task: Task) -> int:
        """Return how many problems of a task it is given."""
        if self.device != "cpu":
            return task.batch
        return min(task.batch, self.threads * max(1, CORE_ELEMENTS // task.n**2))


def solvers(device: str) -> list[Solver]:
    """Return what can run here, SciPy first: its answers are the reference of those after it."""
    cores = os.cpu_count() or 1
    minutes = (2048, "takes minutes on more than 2048 rows")
    found = [
        Solver("SciPy, one thread", _ours(ScipyAssignment(threads=1)), largest=minutes),
        Solver("SciPy, all cores", _ours(ScipyAssignment()), threads=cores, largest=minutes),
    ]
    if find_lapx() is not None:
        solve = _ours(LapxAssignment())
        found.append(Solver("lapx, all cores", solve, threads=cores, largest=minutes))
    if device == "cuda" and find_cupy():
        found.append(Solver("auction", auction, device))
    if importlib.util.find_spec("torch_linear_assignment"):
        from torch_linear_assignment import batch_linear_assignment as linear

        warp = (1024, "one warp holds all columns in registers: not tried on more than 1024")
        name = "torch-linear-assignment"
        found.append(Solver(name, _peer(linear), device, PEERS_EXCESS, False, 1, warp))
    return found


def unbounded(device: str) -> list[Solver]:
    """Return torch-lap-cuda: nothing bounds its rounds, so what rounds badly may never end."""
    if device != "cuda" or not importlib.util.find_spec("torch_lap_cuda"):
        return []
    from torch_lap_cuda import solve_lap

    block = (2048, "one block for each problem: not tried on more than 2048 rows")
    return [Solver("torch-lap-cuda", _peer(solve_lap), device, PEERS_EXCESS, False, 1, block)]


def _ours(solver: AbstractAssignmentSolver) -> Callable[[Tensor], Answer]:
    def run(cost: Tensor) -> Answer:
        solution = solver.solve(AssignmentProblem(cost))
        return solution.col_ind, solution.col_dual

    return run


def _queued(cost: Tensor, warm_start: tuple[Tensor, Tensor] | None = None) -> AuctionResult:
    """Solve on the device as the searches do: queued, and the statuses read back once."""
    found = AuctionAssignment().enqueue(AssignmentProblem(cost), warm_start)
    raise_failures(found.status_codes)
    return found


def auction(cost: Tensor) -> Answer:
    """Solve on the device, cold."""
    found = _queued(cost)
    return found.col_ind, found.col_dual


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


def measure(
    task: Task, solver: Solver, cost: Tensor, best: Tensor, clock: Clock = wall_clock
) -> dict[str, object]:
    """Check one solver on a task, then time it; a slow one by the run that is checked."""
    given = cost[: solver.problems(task)].to(solver.device)
    if solver.device != "cpu":
        solver.solve(given[:1])  # compiles
    synchronize()
    started = time.perf_counter()
    answer = solver.solve(given)
    synchronize()
    first = 1e3 * (time.perf_counter() - started)
    excess = gate(given, answer, best, solver.excess)
    slow = first > SLOW
    spent = quantiles([first]) if slow else clock(lambda: solver.solve(given), SECONDS)
    return {"problems": len(given), "ms": spent, "excess": excess}


def measure_warm(cost: Tensor, clock: Clock = wall_clock) -> dict[str, object]:
    """Time a warm start on costs that moved by 1 % of each problem's standard deviation."""
    old = _queued(cost)
    warm_start = (old.col_dual, old.col_ind)
    moved = cost + 0.01 * cost.std((1, 2), keepdim=True) * torch.randn_like(cost)
    found = _queued(moved, warm_start)
    best = torch.full((len(cost),), torch.inf, dtype=torch.float64)
    excess = gate(moved, (found.col_ind, found.col_dual), best, EXCESS)
    spent = clock(lambda: _queued(moved, warm_start), SECONDS)
    return {"problems": len(cost), "ms": spent, "excess": excess}


def rows_of(
    task: Task,
    found: list[Solver],
    slow: dict[tuple[str, str], int],
    best: Tensor,
    clock: Clock = wall_clock,
) -> Iterator[dict]:
    """Yield the rows of a task; a solver that fails has a row that says how.

    Args:
        task: what is solved.
        found: what solves it.
        slow: solver and kind -> rows from which on it takes longer than `SLOW`; extended.
        best: [b], the best sums known; lowered.
        clock: what times them.
    """
    cost = task.cost("cuda" if torch.cuda.is_available() else "cpu")
    jobs = [(solver, lambda s=solver: measure(task, s, cost, best, clock)) for solver in found]
    jobs += [
        (Solver("auction, warm", solver.solve, solver.device), lambda: measure_warm(cost, clock))
        for solver in found
        if solver.name == "auction" and task.kind in WARM and task.n < 2048
    ]
    for solver, job in jobs:
        row = {**vars(task), "solver": solver.name, "ours": solver.ours}
        most, why = solver.largest
        if task.n > slow.get((solver.name, task.kind), task.n):
            why = "took more than a second on smaller problems"
        elif task.n <= most:
            why = ""
        if why:
            yield row | {"skipped": why}
            continue
        try:
            row |= job()
        except AssertionError as error:
            yield row | {"failed": str(error)}
            continue
        except (AssignmentError, RuntimeError) as error:
            yield row | {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        if row["ms"]["median"] > SLOW:
            slow[solver.name, task.kind] = task.n
        yield row


def line(row: dict) -> str:
    """Format a row."""
    what = f"{row['network'] or row['kind']:16} {row['batch']:6} x {row['n']:<5}"
    what += f" {row['solver']:24}"
    if "ms" not in row:
        return f"{what} {row.get('failed') or row.get('skipped')}"
    each = 1e3 * row["ms"]["median"] / row["problems"]
    return f"{what} {row['ms']['median']:10.2f} ms {each:10.1f} us per problem"


def all_rows(device: str, quick: bool) -> Iterator[dict]:
    """Yield the rows of all tasks, those of an unbounded solver after all others."""
    tasks = list(device_tasks(quick) if device == "cuda" else host_tasks())
    best = {task: torch.full((task.batch,), torch.inf, dtype=torch.float64) for task in tasks}
    slow: dict[tuple[str, str], int] = {}
    for found in (solvers(device), unbounded(device)):
        for task in tasks if found else ():
            yield from rows_of(task, found, slow, best[task])
            if device == "cuda":
                torch.cuda.empty_cache()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" or not find_cupy():
        print("no CUDA device with CuPy here: the device's figures are not yet measured")
    rows: list[dict] = []
    for row in all_rows(device, "--quick" in sys.argv):
        rows.append(row)
        print(line(row), flush=True)
        if "--record" in sys.argv:
            record("assignment" if device == "cuda" else "assignment_cpu", rows)
    failed = sum("failed" in row and row["ours"] for row in rows)
    if failed:
        sys.exit(f"{failed} of {len(rows)} answers are wrong")


if __name__ == "__main__":
    main()
