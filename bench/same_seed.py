"""The same seed gives the same distance on the CPU and on a CUDA device, for every search.

    GPU_ALIGN_PAIRS=folder python -m bench.same_seed [--record]

Small pairs in float32; searches of moderate width, so that all of them take seconds. A row is met
where both distances, recomputed in float64 from the checkpoints, differ by at most 1e-6 of the
CPU's. `Rounding` is left out: where rounded costs tie the solver's order decides, and two solvers
differ. Without GPU_ALIGN_PAIRS the networks have random weights.
"""

import sys
import time

import torch

from bench.pairs import load_pair, random_pair, spec_of
from bench.record import record
from bench.searching import engines, gate
from gpu_align import (
    AlignmentProblem,
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    KBest,
    LayerwiseBeam,
    Noise,
    Portfolio,
    Recombination,
    Search,
    chain_spec,
    run_search,
)
from gpu_align._device._backend import Engine

ALLOWED = 1e-6
"""Difference of the two distances, relative to the CPU's."""

PAIRS = ("coursework", "mnist_mlp_128x3", "mnist_resnet_w16")
SEED = 1

SEARCHES: dict[str, Search] = {
    "layer-wise, k-best": LayerwiseBeam(width=8, candidates=KBest(4), lookahead=True),
    "layer-wise, noise": LayerwiseBeam(width=8, candidates=Noise(8)),
    "weight matching": CoordinateDescent(starts=8, initial="random"),
    "beam": BeamDescent(width=4, patience=2),
    "Frank-Wolfe": FrankWolfe(starts=4),
    "annealing": Annealing(starts=4),
    "recombination": Recombination(population=4, children=4, generations=2),
    "portfolio": Portfolio(
        (LayerwiseBeam(lookahead=True), CoordinateDescent(), Annealing(starts=2)),
        (Recombination(4, 4, 2), BeamDescent(width=4, patience=2)),
    ),
}


def problems(pair: str, found: list[Engine]) -> tuple[str, list[AlignmentProblem]]:
    """Return whether the weights are trained or random, and one problem for each engine."""
    loaded = load_pair(pair)
    source, target = loaded or random_pair(pair)
    spec = chain_spec(target) if pair == "coursework" else spec_of(pair)
    made = [
        AlignmentProblem(source, target, spec, engine=engine, dtype=torch.float32)
        for engine in found
    ]
    return "trained" if loaded else "random", made


def compare(search: Search, cpu: AlignmentProblem, device: AlignmentProblem) -> dict[str, object]:
    """Run a search on both and compare what they found."""
    distances, seconds = [], []
    for problem in (cpu, device):
        started = time.perf_counter()
        outcome = run_search(search, problem, seed=SEED)
        seconds.append(time.perf_counter() - started)
        distances.append(gate(problem, outcome)[1])
    difference = abs(distances[1] - distances[0]) / distances[0]
    row = {"cpu": distances[0], "cuda": distances[1], "difference": difference}
    row |= {"same": difference <= ALLOWED}
    return row | {"cpu_seconds": seconds[0], "cuda_seconds": seconds[1]}


def line(row: dict) -> str:
    """Format a row."""
    what = f"{row['pair']:18} {row['search']:20}"
    if "failed" in row:
        return f"{what} {row['failed']}"
    verdict = "same" if row["same"] else "DIFFERENT"
    return f"{what} {row['cpu']:.6f} {row['cuda']:.6f}  {row['difference']:.1e}  {verdict}"


def main() -> None:
    found = engines()
    if len(found) < 2:
        return
    rows: list[dict] = []
    for pair in PAIRS:
        weights, (cpu, device) = problems(pair, found)
        for name, search in SEARCHES.items():
            row: dict = {"pair": pair, "weights": weights, "search": name, "seed": SEED}
            try:
                row |= compare(search, cpu, device)
            except AssertionError as error:
                row |= {"failed": str(error), "same": False}
            rows.append(row)
            print(line(row), flush=True)
            if "--record" in sys.argv:
                record("same_seed", rows)
    different = sum(not row["same"] for row in rows)
    if different:
        sys.exit(f"{different} of {len(rows)} differ")


if __name__ == "__main__":
    main()
