"""The beam-search coursework's table beside ours, on its own pair, cost and metric.

    GPU_ALIGN_PAIRS=folder python -m bench.coursework

Reads coursework_1 (source) and coursework_2 (target). The coursework's figures are those of its
report, section 4; they are of other networks, and its code loses the order of the rows it shuffles.
"""

import sys
import time

from rich.console import Console
from rich.table import Table

from bench.pairs import PAIRS, load_pair
from bench.record import record
from gpu_align import (
    AlignmentProblem,
    KBest,
    LayerwiseBeam,
    Portfolio,
    Rounding,
    chain_spec,
    run_search,
)

REPORTED = {1: (10.56, 9.68, 11), 10: (10.56, 7.39, 102), 50: (10.56, 6.54, 445)}
REPORTED |= {100: (10.56, 6.47, 876)}
OWN_COST = {"rule": "incoming", "cost_metric": "standardized"}


def main() -> None:
    pair = load_pair("coursework")
    if pair is None:
        sys.exit(f"set {PAIRS} to the folder with coursework_1.safetensors and coursework_2")
    source, target = pair
    spec = chain_spec(target)
    problem = AlignmentProblem(source, target, spec, metric="normalized")
    before = float(problem.identity().objective)
    searches = {
        "greedy, Euclidean rows": LayerwiseBeam(row_distance="euclidean", **OWN_COST),
        "greedy, squared rows": LayerwiseBeam(**OWN_COST),
    }
    for width in REPORTED:
        rounding = Rounding(count=2 * width, unit=1.0)
        searches[f"rounding, width {width}"] = LayerwiseBeam(
            width, rounding, row_distance="euclidean", **OWN_COST
        )
    for width in REPORTED:
        searches[f"k-best on the metric itself, width {width}"] = LayerwiseBeam(width, KBest(width))
    searches["default (Portfolio)"] = Portfolio.for_problem(problem)
    rows = []
    for label, search in searches.items():
        started = time.perf_counter()
        outcome = run_search(search, problem)
        seconds = time.perf_counter() - started
        distance = problem.distance(problem.permutation(outcome.best))
        distinct = len(outcome.hypotheses.fingerprint().unique())
        rows.append({"search": label, "width": getattr(search, "width", None)})
        rows[-1] |= {"before": before, "after": distance, "seconds": seconds, "distinct": distinct}
    _show(rows)
    record("coursework", rows)


def _show(rows: list[dict]) -> None:
    table = Table(
        title="coursework pair, its metric (sum of mean squared standardised differences)"
    )
    for column in ("search", "before", "after", "seconds", "reported: after", "reported: seconds"):
        table.add_column(column, justify="left" if column == "search" else "right")
    for row in rows:
        width = row["width"] if row["search"].startswith("rounding") else None
        reported = REPORTED.get(width)
        cells = [
            row["search"],
            f"{row['before']:.4f}",
            f"{row['after']:.4f}",
            f"{row['seconds']:.3f}",
        ]
        cells += [f"{reported[1]:.2f}", str(reported[2])] if reported else ["", ""]
        table.add_row(*cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
