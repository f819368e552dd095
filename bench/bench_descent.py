"""Coordinate descent: 20 random-order starts as one batch, against 20 one by one in the plain way.

    GPU_ALIGN_PAIRS=... pytest bench/bench_descent.py

Both ways run in turn in one process, so their ratio holds when the machine's speed drifts. Trained
weights are harder than random ones; without GPU_ALIGN_PAIRS the case says that it is random.
"""

import statistics
import time

import numpy as np
import pytest

from bench.pairs import ARCHITECTURES, load_pair, random_pair, spec_of
from bench.plain import squared_distance, weight_matching
from gpu_align import AlignmentProblem, CoordinateDescent, run_search

STARTS = 20
ROUNDS = 3


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "mnist_mlp_512x3"])
def test_batched_descent(benchmark, name):
    pair = load_pair(name)
    source, target = pair or random_pair(name)
    spec = spec_of(name)
    problem = AlignmentProblem(source, target, spec)
    a = {key: tensor.numpy() for key, tensor in target.items()}
    b = {key: tensor.numpy() for key, tensor in source.items()}
    seconds: dict[str, list[float]] = {"plain": [], "batched": []}
    distances: dict[str, list[float]] = {}

    def plain() -> None:
        found = [weight_matching(a, b, spec, np.random.default_rng(k)) for k in range(STARTS)]
        distances["plain"] = [squared_distance(a, b, spec, perms) for perms in found]

    def batched() -> None:
        outcome = run_search(CoordinateDescent(starts=STARTS), problem)
        distances["batched"] = outcome.hypotheses.objective.tolist()

    def both() -> None:
        for label, run in (("plain", plain), ("batched", batched)):
            started = time.perf_counter()
            run()
            seconds[label].append(time.perf_counter() - started)

    both()  # warm-up, and the gate: both ways end in optima of the same range
    low, high = min(distances["plain"]), max(distances["plain"])
    assert low * 0.99 <= min(distances["batched"]) <= max(distances["batched"]) <= high * 1.01
    seconds = {"plain": [], "batched": []}
    benchmark.pedantic(both, rounds=ROUNDS)
    ratios = [p / q for p, q in zip(seconds["plain"], seconds["batched"], strict=True)]
    benchmark.extra_info |= {
        "weights": "trained" if pair else "random",
        "plain_seconds": seconds["plain"],
        "batched_seconds": seconds["batched"],
        "ratio_median": statistics.median(ratios),
        "distance_plain": sorted(distances["plain"]),
        "distance_batched": sorted(distances["batched"]),
    }
    print(
        f"\n{name}: batched is {statistics.median(ratios):.2f}x faster ({min(ratios):.2f} at worst)"
    )
