"""Whole alignments by weight matching, beside the plain loop in SciPy and the published times.

    GPU_ALIGN_PAIRS=folder python -m bench.whole [--record] [--quick] [NAME ...]

From two state dicts to the permutation: the form of the problem and CoordinateDescent, on the CPU
and on a CUDA device in the same run; tracing the model is not in it, and takes seconds. A network
without trained checkpoints is a planted one: random weights, and the same with noise, its
units shuffled. What runs longer than the limit stops there, and its row
says so. --quick has a short limit and fewer turns, runs the plain loop on the trained network only,
and the largest one on one device only.
"""

import math
import sys
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from bench.large import NETWORKS, Network
from bench.pairs import load_pair
from bench.plain import squared_distance, weight_matching
from bench.planted import plant
from bench.record import record
from bench.searching import engines, gate, result_name
from bench.timing import quantiles, settle, synchronize
from gpu_align import (
    AlignmentProblem,
    Budget,
    CoordinateDescent,
    Permutation,
    PermutationSpec,
    Status,
    run_search,
)
from gpu_align._device._backend import Engine

LIMIT, QUICK_LIMIT = 300.0, 20.0
"""Seconds after which a descent stops; looked at after a sweep, in the plain loop after a group."""

ENOUGH, QUICK_ENOUGH = 30.0, 2.0
"""Seconds of one way after which it is not timed again."""

TURNS, WARM_UP = 3, 3
"""Runs of a way, and sweeps of a run before that, in which the device's kernels are compiled."""

LARGE = 10**8
"""Parameters from which on --quick leaves out all that takes long."""

State = dict[str, torch.Tensor]


def make_pair(network: Network, spec: PermutationSpec) -> tuple[State, State, Permutation | None]:
    """Return source, target, and the planted permutation or None for trained checkpoints."""
    pair = load_pair(network.pair) if network.pair else None
    if pair is not None:
        return *pair, None
    return plant(network.make, spec, network.noise, seed=0)


def run_plain(source: State, target: State, spec: PermutationSpec, limit: float, seed: int) -> dict:
    """Run the loop in NumPy and SciPy once."""
    a, b = ({name: tensor.numpy() for name, tensor in s.items()} for s in (target, source))
    clock = Clock()
    perms = weight_matching(a, b, spec, np.random.default_rng(seed), limit)
    row = {"way": "plain", "device": "cpu", **clock.read()}
    row["stopped"] = row["ms"] > 1e3 * limit
    return row | {"distance": squared_distance(a, b, spec, perms)}


def run_ours(
    source: State,
    target: State,
    spec: PermutationSpec,
    limit: float,
    seed: int,
    engine: Engine,
    sweeps: int | None = None,
) -> dict:
    """Run CoordinateDescent once on one device, and check it."""
    clock = Clock()
    problem = AlignmentProblem(source, target, spec, engine=engine)
    form = clock.read()["ms"]
    budget = Budget(sweeps, limit)
    outcome = run_search(CoordinateDescent(), problem, seed=seed, budget=budget)
    row = {"way": "gpu-align", "device": engine.device.type, **clock.read(), "form_ms": form}
    row |= {"stopped": outcome.status is not Status.CONVERGED, "sweeps": len(outcome.history)}
    row |= {"before": float(problem.identity().objective[0])}
    return row | {"distance": gate(problem, outcome)[1], "splits": dict(outcome.splits)}


class Clock:
    """Reads the milliseconds since it was made, of the wall and of this process's processors."""

    def __init__(self) -> None:
        synchronize()
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        return {"ms": 1e3 * (wall - self.wall), "processor_ms": 1e3 * (processor - self.processor)}


def joined(runs: list[dict]) -> dict:
    """Return one row for several runs: quantiles of their times, and what the first one found."""
    times = {key: quantiles([run[key] for run in runs]) for key in runs[0] if key.endswith("ms")}
    return {**runs[0], **times}


def line(row: dict) -> str:
    """Format a row."""
    what = f"{row['network']:13} {row['way']:9} {row['device']:5}"
    seconds, stopped = row["ms"]["median"] / 1e3, ", stopped at the limit" * row["stopped"]
    return f"{what} {seconds:9.2f} s  {row['before']:.1f} -> {row['distance']:.1f}{stopped}"


def facts_of(
    network: Network, large: float = math.inf
) -> tuple[dict, State, State, PermutationSpec]:
    """Return what all rows of a network begin with, and source, target and spec.

    Of more parameters than `large` the distances are left out.
    """
    started = time.perf_counter()
    spec = network.spec()
    traced = time.perf_counter() - started
    source, target, planted = make_pair(network, spec)
    facts = {
        "network": network.name,
        "weights": "trained" if planted is None else f"planted, noise {network.noise:g}",
        "parameters": sum(target[n].numel() for n, t in spec.tensors.items() if t.counted),
        "published_seconds": network.published,
        "tracing_seconds": traced,
    }
    if facts["parameters"] <= large:
        facts |= distances_of(source, target, spec, planted)
    return facts, source, target, spec


def distances_of(
    source: State, target: State, spec: PermutationSpec, planted: Permutation | None
) -> dict[str, float]:
    """Return the distance before, and at the planted permutation, by the plain way in float64."""
    a, b = ({name: tensor.numpy() for name, tensor in s.items()} for s in (target, source))
    found = {"before": Permutation.identity(spec)} | ({"planted": planted} if planted else {})
    return {
        key: squared_distance(a, b, spec, {n: p.numpy() for n, p in permutation.perms.items()})
        for key, permutation in found.items()
    }


def rows_of(
    network: Network, found: list[Engine], limit: float, quick: bool, large: float = LARGE
) -> Iterator[dict]:
    """Yield the row of a way after each of its runs; the ways take turns, the device first."""
    facts, *pair = facts_of(network, large if quick else math.inf)
    ways = [partial(run_ours, *pair, limit, engine=engine) for engine in reversed(found)]
    if quick and facts["parameters"] > large:
        ways = ways[:1]
    elif not quick or facts["weights"] == "trained":
        ways.append(partial(run_plain, *pair, limit))
    if len(found) > 1:
        ways[0](seed=0, sweeps=WARM_UP)
    enough = QUICK_ENOUGH if quick else ENOUGH
    runs: list[list[dict]] = [[] for _ in ways]
    for seed in range(TURNS):
        for way, done in zip(ways, runs, strict=True):
            if sum(run["ms"] for run in done) < 1e3 * enough:
                settle()
                done.append(way(seed=seed))
                yield joined(done) | facts


def main() -> None:
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    quick = "--quick" in sys.argv
    found = engines()
    rows: dict[tuple[str, str, str], dict] = {}
    failed = False
    for network in NETWORKS:
        if names and network.name not in names:
            continue
        try:
            for row in rows_of(network, found, QUICK_LIMIT if quick else LIMIT, quick):
                rows[row["network"], row["way"], row["device"]] = row
                print(line(row), flush=True)
                if "--record" in sys.argv:
                    record(result_name("whole", found), list(rows.values()))
        except AssertionError as error:
            failed = True
            print(f"{network.name}: {error}")
    if failed:
        sys.exit("some answers are wrong")


if __name__ == "__main__":
    main()
