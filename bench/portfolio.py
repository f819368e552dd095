"""The default search on one trained pair: a CUDA device beside all cores of the CPU, in one run.

    GPU_ALIGN_PAIRS=folder python -m bench.portfolio [--record] [--quick]

From two state dicts to the permutation, as `bench.whole`. Both ways run the same search with the
same seeds and take turns, the device first; what compiles there does so in a run before. A way is
not run again once it has spent its seconds, so each has at least one run.
"""

import sys
from collections.abc import Iterator

from bench.pairs import load_pair, random_pair, spec_of
from bench.record import record
from bench.searching import engines, gate, result_name
from bench.timing import quantiles, settle
from bench.whole import Clock, State
from gpu_align import AlignmentProblem, PermutationSpec, Portfolio, run_search
from gpu_align._device._backend import Engine

PAIR = "mnist_mlp_512x3"
TURNS = 5
ENOUGH, QUICK_ENOUGH = 20.0, 5.0
"""Seconds of one way after which it is not timed again."""


def run_once(
    source: State, target: State, spec: PermutationSpec, engine: Engine, seed: int
) -> dict[str, object]:
    """Align once on one engine, and check the answer."""
    clock = Clock()
    problem = AlignmentProblem(source, target, spec, engine=engine)
    form = clock.read()["ms"]
    outcome = run_search(Portfolio.for_problem(problem), problem, seed=seed)
    row = {"device": engine.device.type, **clock.read(), "form_ms": form, "seed": seed}
    row |= {"before": float(problem.identity().objective[0])}
    row |= {"distance": gate(problem, outcome)[1]}
    return row | {"assignments": outcome.assignments, "steps": len(outcome.history)}


def joined(runs: list[dict]) -> dict[str, object]:
    """Return one row for the runs of a way."""
    times = {key: quantiles([run[key] for run in runs]) for key in runs[0] if key.endswith("ms")}
    found = {key: [run[key] for run in runs] for key in ("distance", "assignments", "steps")}
    return {key: runs[0][key] for key in ("device", "before")} | times | found


def measure(
    pair: str, found: list[Engine], turns: int, enough: float
) -> Iterator[list[dict[str, object]]]:
    """Time the ways in turn, and yield their rows after each run."""
    loaded = load_pair(pair)
    source, target = loaded or random_pair(pair)
    spec = spec_of(pair)
    facts = {"pair": pair, "weights": "trained" if loaded else "random"}
    runs: dict[Engine, list[dict]] = {engine: [] for engine in reversed(found)}
    if len(found) > 1:
        run_once(source, target, spec, found[-1], seed=0)
    for seed in range(turns):
        for engine, done in runs.items():
            if sum(run["ms"] for run in done) < 1e3 * enough:
                settle()
                done.append(run_once(source, target, spec, engine, seed))
                rows = [facts | joined(done) for done in runs.values() if done]
                yield [row | ratio(row, rows) for row in rows]


def ratio(row: dict, rows: list[dict]) -> dict[str, float]:
    """Return how many times faster than the CPU a row of a device is."""
    cpu = [other["ms"]["median"] for other in rows if other["device"] == "cpu"]
    return {"times_cpu": cpu[0] / row["ms"]["median"]} if cpu and row["device"] != "cpu" else {}


def line(row: dict) -> str:
    """Format a row."""
    faster = f", {row['times_cpu']:.1f} times the CPU" if "times_cpu" in row else ""
    distances = ", ".join(f"{distance:.2f}" for distance in row["distance"])
    seconds = row["ms"]["median"] / 1e3
    what = f"default search, {row['pair']} ({row['weights']}), {row['device']}"
    return f"{what}: {seconds:.2f} s{faster}; {row['before']:.1f} -> {distances}"


def main() -> None:
    found = engines()
    enough = QUICK_ENOUGH if "--quick" in sys.argv else ENOUGH
    try:
        for rows in measure(PAIR, found, TURNS, enough):
            print(*map(line, rows), sep="\n", flush=True)
            if "--record" in sys.argv:
                record(result_name("portfolio", found), rows)
    except AssertionError as error:
        sys.exit(f"a wrong answer: {error}")


if __name__ == "__main__":
    main()
