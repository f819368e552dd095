"""Where the time of one step goes: sweeps of weight matching and of a beam, a step of annealing.

    GPU_ALIGN_PAIRS=folder python -m bench.profile_step [--record]
    python -m bench.profile_step --count [--record]    operations of a sweep, without a device

The device comes first; there ResNet50 has a sweep too. Each step is run again and again on the same
state: for its time, and under torch's profiler, which gives the time of each operation by itself
and the number of launches (calls, on the CPU). In a sweep every group of every hypothesis is looked
at once and from nothing. Beside it stands a floor: the matrix products from their shapes, every
weight read and every similarity written once, at the rates of a matrix product and a copy measured
in the same run. What it leaves out is the assignment problems of the sweep and the Sinkhorn
iterations of the annealing.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench import count
from bench.large import NETWORKS
from bench.pairs import load_pair, random_pair
from bench.record import record
from bench.searching import engines, result_name
from bench.timing import quantiles, synchronize
from bench.whole import make_pair
from gpu_align import AlignmentProblem, Annealing, BeamDescent, CoordinateDescent, chain_spec
from gpu_align._assignment import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
    AutoAssignment,
)
from gpu_align._device._backend import Engine
from gpu_align._device._random import RandomStream
from gpu_align._search import Run
from gpu_align._search._annealing_step import AnnealingStep
from gpu_align._search._loop import compute_threads

PAIRS = ("mnist_mlp_128x3", "mnist_mlp_512x3")
LARGE = "ResNet50"
"""Network with planted weights, on a device only."""

HYPOTHESES = 16
SHOWN = 8
TURNS = 5
WARM_UP = 4
"""Runs before the first that is timed: the third on a device is captured as a graph."""

RATE_TURNS = 20
ASSIGNMENT = "assignment problems"
"""What the host's solvers are called among the operations."""


@dataclass(frozen=True)
class Named(AbstractAssignmentSolver):
    """The solver of the host, as one operation of a profile."""

    name = "named"

    def solve(self, problem: AssignmentProblem) -> AssignmentSolution:
        with record_function(ASSIGNMENT):
            return AutoAssignment().solve(problem)


def rates(engine: Engine) -> dict[str, float]:
    """Measure matrix products in FLOP/s and copies in bytes/s, float32: the best of some."""
    size, length = (4096, 2**28) if engine.device.type == "cuda" else (1024, 2**24)
    a, b = torch.randn(2, size, size, device=engine.device)
    out = torch.empty_like(a)
    memory = torch.randn(length, device=engine.device)
    copy = torch.empty_like(memory)
    product = min(_milliseconds(lambda: torch.mm(a, b, out=out)) for _ in range(RATE_TURNS))
    copied = min(_milliseconds(lambda: copy.copy_(memory)) for _ in range(RATE_TURNS))
    return {"flops": 2e3 * size**3 / product, "copy": 2e3 * memory.nbytes / copied}


def floor_of_sweep(problem: AlignmentProblem, batch: int) -> dict[str, float]:
    """Return operations and bytes of the similarities of all groups, once for each hypothesis."""
    flops = moved = 0
    for group in problem.order:
        size = problem.sizes[group]
        weights = sum(term.target.numel() for term in problem.terms_of(group))
        flops += 2 * batch * size * weights
        moved += 2 * weights + (problem.models + batch) * size**2
    return {"flops": flops, "bytes": moved * problem.dtype.itemsize}


def floor_of_annealing(problem: AlignmentProblem, batch: int) -> dict[str, float]:
    """Return operations and bytes of all similarities at soft matrices, which are updated."""
    found = floor_of_sweep(problem, batch)
    entries = batch * sum(problem.sizes[group] ** 2 for group in problem.order)
    for term in problem.terms:
        for place in range(len(term.variables)):
            others = sum(problem.sizes[name] for name in term.others(place))
            found["flops"] += 2 * batch * others * term.target.numel()
    found["bytes"] += 2 * entries * problem.dtype.itemsize
    return found


def sweep_of(problem: AlignmentProblem) -> Callable[[], object]:
    """Return one sweep of BeamDescent, from random hypotheses that all are to be looked at."""
    run = _run(problem)
    search = BeamDescent(HYPOTHESES)
    start = problem.random(HYPOTHESES, RandomStream(1))
    state = search.init(run, start)
    return lambda: search.step(run, search.init(run, state.hypotheses))


def matching_of(problem: AlignmentProblem) -> Callable[[], object]:
    """Return one sweep of CoordinateDescent, from one random hypothesis."""
    run, search = _run(problem), CoordinateDescent()
    start = problem.random(1, RandomStream(1))
    return lambda: search.step(run, search.init(run, start))


def annealing_of(problem: AlignmentProblem) -> Callable[[], object]:
    """Return one step of Annealing, after it has begun."""
    run = _run(problem)
    search = Annealing(starts=HYPOTHESES)
    present = search.begin(run, torch.arange(HYPOTHESES, device=problem.device))
    step = AnnealingStep(run, present, search.damping, search.iterations)
    return lambda: step.take(search.hot, run.heartbeat)


def _run(problem: AlignmentProblem) -> Run:
    solver = Named() if problem.engine.waits else AutoAssignment()
    return Run(problem, RandomStream(0), solver)


STEPS = {
    "sweep of weight matching": (matching_of, floor_of_sweep, 1),
    "sweep of BeamDescent": (sweep_of, floor_of_sweep, HYPOTHESES),
    "step of Annealing": (annealing_of, floor_of_annealing, HYPOTHESES),
}


def jobs(found: list[Engine]) -> Iterator[tuple[str, str, Engine]]:
    """Yield step, pair or network, and engine of each row, the device first."""
    for engine in reversed(found):
        yield from ((step, pair, engine) for pair in reversed(PAIRS) for step in STEPS)
        if engine.device.type == "cuda":
            yield next(iter(STEPS)), LARGE, engine


def problem_of(pair: str, engine: Engine) -> tuple[AlignmentProblem, str]:
    """Return a problem, and where its weights are from."""
    if pair == LARGE:
        (network,) = (network for network in NETWORKS if network.name == LARGE)
        spec = network.spec()
        source, target, _ = make_pair(network, spec)
        return AlignmentProblem(source, target, spec, engine=engine), "planted"
    loaded = load_pair(pair)
    source, target = loaded or random_pair(pair)
    problem = AlignmentProblem(source, target, chain_spec(target), engine=engine)
    return problem, "trained" if loaded else "random"


def measure(step: str, pair: str, engine: Engine, limits: dict[str, float]) -> dict[str, object]:
    """Time and profile one step; the row has its floor and its longest operations."""
    problem, weights = problem_of(pair, engine)
    make, floor, hypotheses = STEPS[step]
    cuda = engine.device.type == "cuda"
    with compute_threads(problem):
        run = make(problem)
        for _ in range(WARM_UP if cuda else 1):
            run()  # lays out the terms, compiles on a device
        times = [_milliseconds(run) for _ in range(TURNS)]
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]
        with profile(activities=activities) as profiler:
            profiled = statistics.mean(_milliseconds(run) for _ in range(TURNS))
    needs = floor(problem, hypotheses)
    parts = {"products_ms": 1e3 * needs["flops"] / limits["flops"]}
    parts["memory_ms"] = 1e3 * needs["bytes"] / limits["copy"]
    row = {"step": step, "pair": pair, "weights": weights, "device": engine.device.type}
    row |= {"hypotheses": hypotheses, "ms": quantiles(times), "profiled_ms": profiled}
    row |= {**needs, **parts, "floor_ms": max(parts.values())}
    return row | operations(profiler, profiled, engine.device.type)


def operations(profiler: profile, profiled: float, device: str) -> dict[str, object]:
    """Return the longest operations by the time they take themselves, and how many there were.

    Both are means of `TURNS` runs. On a device they are those of its kernels and copies.
    """
    cuda = device == "cuda"
    events = [
        event
        for event in profiler.key_averages()
        if not cuda or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    spent = {
        event.key: (
            (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3 / TURNS,
            event.count / TURNS,
        )
        for event in events
    }
    ordered = sorted(spent.items(), key=lambda item: -item[1][0])
    total = sum(own for own, _ in spent.values())
    found = [{"operation": k, "self_ms": own, "calls": n} for k, (own, n) in ordered[:SHOWN]]
    found.append(
        {"operation": "other operations", "self_ms": total - sum(o["self_ms"] for o in found)}
    )
    found.append({"operation": "between operations", "self_ms": max(profiled - total, 0.0)})
    return {"launches": sum(count for _, count in spent.values()), "operations": found}


def _milliseconds(run: Callable[[], object]) -> float:
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return 1e3 * (time.perf_counter() - started)


def show(row: dict) -> None:
    """Print a row and its operations."""
    print(f"{row['step']}, {row['pair']} ({row['weights']}), {row['device']}:", end=" ")
    print(f"{row['ms']['median']:.2f} ms, floor {row['floor_ms']:.2f} ms,", end=" ")
    print(f"{row['launches']:.0f} launches")
    for entry in row["operations"]:
        share = 100 * entry["self_ms"] / row["profiled_ms"]
        calls = f"{entry['calls']:.0f}" if "calls" in entry else ""
        print(
            f"  {entry['operation'][:60]:60} {entry['self_ms']:9.3f} ms {share:5.1f} % {calls:>6}"
        )


def main() -> None:
    if "--count" in sys.argv:
        count.main()
        return
    found = engines()
    rows: list[dict] = []
    limits: dict[Engine, dict[str, float]] = {}
    for step, pair, engine in jobs(found):
        if engine not in limits:
            limits[engine] = rates(engine)
            rows.append({"step": "rates", "device": engine.device.type, **limits[engine]})
            print(rows[-1])
        rows.append(measure(step, pair, engine, limits[engine]))
        show(rows[-1])
        if "--record" in sys.argv:
            record(result_name("profile_step", found), rows)


if __name__ == "__main__":
    main()
