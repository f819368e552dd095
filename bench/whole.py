"""Whole alignments by weight matching, beside the plain loop in SciPy and the published times.

    GPU_ALIGN_PAIRS=folder python -m bench.whole [--record] [--quick] [NAME ...]

From two state dicts to the permutation: the form of the problem and CoordinateDescent, on the CPU
and on a CUDA device in the same run; tracing the model is not in it, and takes seconds. A network
without trained checkpoints is a planted one: random weights, and the same with noise of one
standard deviation, its units shuffled. What runs longer than the limit stops there, and its row
says so; --quick has a short limit, and runs planted networks on one device only.
"""

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

from bench.large import NETWORKS, Network
from bench.pairs import load_pair
from bench.plain import squared_distance, weight_matching
from bench.planted import plant
from bench.record import record
from bench.searching import engines, gate, result_name
from bench.timing import quantiles, synchronize
from gpu_align import (
    AlignmentProblem,
    Budget,
    CoordinateDescent,
    Permutation,
    PermutationSpec,
    Status,
    run_search,
)
from gpu_align._backend import Engine

LIMIT, QUICK_LIMIT = 300.0, 20.0
"""Seconds after which a descent stops; looked at after a sweep, in the plain loop after a group."""

ENOUGH = 10.0
"""Seconds of one way after which it is not timed again."""

TURNS = 3
NOISE = 1.0

State = dict[str, torch.Tensor]


def make_pair(network: Network, spec: PermutationSpec) -> tuple[State, State, Permutation | None]:
    """Return source, target, and the planted permutation or None for trained checkpoints."""
    pair = load_pair(network.pair) if network.pair else None
    if pair is not None:
        return *pair, None
    return plant(network.make, spec, NOISE, seed=0)


def measure_plain(source: State, target: State, spec: PermutationSpec, limit: float) -> dict:
    """Time the loop in NumPy and SciPy."""
    a, b = ({name: tensor.numpy() for name, tensor in s.items()} for s in (target, source))
    times: list[float] = []
    while len(times) < TURNS and sum(times) < ENOUGH:
        started = time.perf_counter()
        perms = weight_matching(a, b, spec, np.random.default_rng(len(times)), limit)
        times.append(time.perf_counter() - started)
    row = {"way": "plain", "device": "cpu", "stopped": max(times) > limit}
    distance = squared_distance(a, b, spec, perms)
    return row | {"ms": quantiles([1e3 * t for t in times]), "distance": distance}


def measure(
    source: State, target: State, spec: PermutationSpec, engine: Engine, limit: float
) -> dict:
    """Check and time CoordinateDescent on one device."""
    times: list[float] = []
    form: list[float] = []
    warm_up = engine.device.type == "cuda"  # what compiles does so before
    while len(times) < TURNS and sum(times) < ENOUGH:
        synchronize()
        started = time.perf_counter()
        problem = AlignmentProblem(source, target, spec, engine=engine)
        synchronize()
        ready = time.perf_counter()
        outcome = run_search(
            CoordinateDescent(), problem, seed=len(times), budget=Budget(seconds=limit)
        )
        synchronize()
        if warm_up:
            warm_up = False
            continue
        form.append(ready - started)
        times.append(time.perf_counter() - started)
    row = {"way": "gpu-align", "device": engine.device.type}
    row |= {"stopped": outcome.status is not Status.CONVERGED, "sweeps": len(outcome.history)}
    row |= {
        "ms": quantiles([1e3 * t for t in times]),
        "form_ms": quantiles([1e3 * t for t in form]),
    }
    return row | {"distance": gate(problem, outcome)[1], "splits": dict(outcome.splits)}


def line(row: dict) -> str:
    """Format a row."""
    what = f"{row['network']:13} {row['way']:9} {row['device']:5}"
    if "ms" not in row:
        return f"{what} {row['failed']}"
    seconds, stopped = row["ms"]["median"] / 1e3, ", stopped at the limit" * row["stopped"]
    return f"{what} {seconds:9.2f} s  {row['before']:.1f} -> {row['distance']:.1f}{stopped}"


def facts_of(network: Network) -> tuple[dict, State, State, PermutationSpec]:
    """Return what all rows of a network begin with, and source, target and spec."""
    started = time.perf_counter()
    spec = network.spec()
    traced = time.perf_counter() - started
    source, target, planted = make_pair(network, spec)
    a, b = ({name: tensor.numpy() for name, tensor in s.items()} for s in (target, source))
    identity = {name: perm.numpy() for name, perm in Permutation.identity(spec).perms.items()}
    facts = {
        "network": network.name,
        "weights": "trained" if planted is None else f"planted, noise {NOISE:g}",
        "parameters": sum(target[n].numel() for n, t in spec.tensors.items() if t.counted),
        "published_seconds": network.published,
        "tracing_seconds": traced,
        "before": squared_distance(a, b, spec, identity),
    }
    if planted is not None:
        perms = {name: perm.numpy() for name, perm in planted.perms.items()}
        facts["planted"] = squared_distance(a, b, spec, perms)
    return facts, source, target, spec


def rows_of(network: Network, found: list[Engine], limit: float, quick: bool) -> Iterator[dict]:
    """Yield the rows of a network, the device's first."""
    facts, source, target, spec = facts_of(network)
    large = quick and "planted" in facts
    for engine in found[:-2:-1] if large else found[::-1]:
        try:
            yield facts | measure(source, target, spec, engine, limit)
        except AssertionError as error:
            row = {"way": "gpu-align", "device": engine.device.type}
            yield facts | row | {"failed": str(error)}
    if not large:
        yield facts | measure_plain(source, target, spec, limit)


def main() -> None:
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    quick = "--quick" in sys.argv
    found = engines()
    rows: list[dict] = []
    for network in NETWORKS:
        if names and network.name not in names:
            continue
        for row in rows_of(network, found, QUICK_LIMIT if quick else LIMIT, quick):
            rows.append(row)
            print(line(row), flush=True)
            if "--record" in sys.argv:
                record(result_name("whole", found), rows)
    if any("failed" in row for row in rows):
        sys.exit("some answers are wrong")


if __name__ == "__main__":
    main()
