"""Beam width against run time and distance, on the CPU and on a CUDA device in the same run.

    GPU_ALIGN_PAIRS=folder python -m bench.beam_width [--record] [--quick] [--large]

Only the width varies: each hypothesis has the same number of candidates at all widths. Widths take
turns, and their ratio to width 1 is that of the same turn. Without GPU_ALIGN_PAIRS the networks
have random weights, and the record says so. A width that would take too long is left out; --quick
leaves out more, and ends the turns earlier. --large adds MLP 3x512. The coursework's seconds are
those of its report, for other networks.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.pairs import load_pair, random_pair
from bench.record import record
from bench.searching import engines, gate, result_name
from bench.timing import quantiles, synchronize
from gpu_align import (
    AlignmentProblem,
    BeamDescent,
    KBest,
    LayerwiseBeam,
    Rounding,
    Search,
    chain_spec,
    run_search,
)
from gpu_align._device._backend import Engine

WIDTHS = (1, 10, 50, 100, 1000)
REPORTED = {1: 11, 10: 102, 50: 445, 100: 876}
"""Width -> seconds, from the report of the coursework."""

TURNS = 7
ENOUGH, QUICK_ENOUGH = 3.0, 0.5
"""Seconds of one width after which its turns end."""

LIMIT, QUICK_LIMIT = 90.0, 8.0
"""Seconds that one search may be expected to take."""


@dataclass(frozen=True)
class Case:
    """A search of any width on a pair.

    Attributes:
        name: of the case.
        pair: see `load_pair`.
        make: width -> search.
        metric: of the distance.
        reported: whether it is what the coursework does.
    """

    name: str
    pair: str
    make: Callable[[int], Search]
    metric: str = "l2"
    reported: bool = False


def rounding(width: int) -> Search:
    """Return the coursework's search, its cost and 1000 candidates of each hypothesis."""
    return LayerwiseBeam(
        width,
        Rounding(1000, unit=1.0),
        rule="incoming",
        row_distance="euclidean",
        cost_metric="standardized",
    )


CASES = (
    Case("coursework, rounding", "coursework", rounding, "normalized", reported=True),
    Case("coursework, k-best", "coursework", lambda w: LayerwiseBeam(w, KBest(100)), "normalized"),
    Case("coursework, descent", "coursework", lambda w: BeamDescent(w, rounds=8, patience=8)),
)
LARGE_CASES = (
    Case("MLP 3x512, rounding", "mnist_mlp_512x3", lambda w: LayerwiseBeam(w, Rounding(100))),
    Case("MLP 3x512, descent", "mnist_mlp_512x3", lambda w: BeamDescent(w, rounds=6, patience=6)),
)


def measure(
    case: Case, engine: Engine, limit: float = LIMIT, enough: float = ENOUGH, turns: int = TURNS
) -> list[dict[str, object]]:
    """Check and time all widths of a case on one device; one row for each width.

    Args:
        case: what is searched.
        engine: of the search.
        limit: seconds that one search may be expected to take.
        enough: seconds of one width after which its turns end.
        turns: at most.
    """
    pair = load_pair(case.pair)
    source, target = pair or random_pair(case.pair)
    problem = AlignmentProblem(
        source, target, chain_spec(target), metric=case.metric, engine=engine
    )
    rows = {width: _facts(case, width, engine, trained=pair is not None) for width in WIDTHS}
    times: dict[int, list[float]] = {}
    for width in (1, WIDTHS[-2]) if engine.device.type == "cuda" else (1,):
        run_search(case.make(width), problem)  # warm-up, compiles on a device
    for turn in range(turns):
        for width in WIDTHS if turn == 0 else list(times):
            last = max(times, default=1)
            if turn == 0 and times and times[last][0] * width / last > 1e3 * limit:
                skipped = f"expected to take more than {limit:.0f} s, from width {last}"
                rows[width]["skipped"] = skipped
            elif sum(times.get(width, [])) < 1e3 * enough:
                milliseconds = _timed(case, problem, rows[width])
                times.setdefault(width, []).append(milliseconds)
    for width, row in rows.items():
        if width in times:
            ratios = [t / one for t, one in zip(times[width], times[1], strict=False)]
            row |= {"ms": quantiles(times[width]), "times_width_1": statistics.median(ratios)}
    return list(rows.values())


def _facts(case: Case, width: int, engine: Engine, trained: bool) -> dict[str, object]:
    row = {"case": case.name, "pair": case.pair, "weights": "trained" if trained else "random"}
    row |= {"metric": case.metric, "search": str(case.make(width)), "width": width}
    if case.reported and width in REPORTED:
        row["reported_seconds"] = REPORTED[width]
    return row | {"device": engine.device.type}


def _timed(case: Case, problem: AlignmentProblem, row: dict[str, object]) -> float:
    """Run one search, check it, and return its milliseconds."""
    synchronize()
    started = time.perf_counter()
    outcome = run_search(case.make(int(str(row["width"]))), problem)
    synchronize()
    milliseconds = 1e3 * (time.perf_counter() - started)
    row["before"] = float(problem.identity().objective[0])
    row["distance"] = gate(problem, outcome)[1]
    row["distinct"] = len(outcome.hypotheses.fingerprint().unique())
    row["assignments"] = outcome.assignments
    return milliseconds


def line(row: dict) -> str:
    """Format a row."""
    what = f"{row['case']:22} {row['device']:5} {row['width']:5}"
    if "ms" not in row:
        return f"{what}  {row.get('failed') or row['skipped']}"
    text = f"{what} {row['ms']['median']:10.1f} ms {row['times_width_1']:6.1f} x width 1"
    return f"{text}  {row['before']:.3f} -> {row['distance']:.4f}, {row['distinct']} distinct"


def main() -> None:
    found, quick = engines(), "--quick" in sys.argv
    limits = (QUICK_LIMIT, QUICK_ENOUGH) if quick else (LIMIT, ENOUGH)
    rows: list[dict] = []
    for case in (*CASES, *LARGE_CASES) if "--large" in sys.argv else CASES:
        for engine in reversed(found):
            try:
                measured = measure(case, engine, *limits)
            except AssertionError as error:
                row = {"case": case.name, "device": engine.device.type, "width": "all"}
                measured = [row | {"failed": str(error)}]
            rows += measured
            print(*map(line, measured), sep="\n", flush=True)
            if "--record" in sys.argv:
                record(result_name("beam_width", found), rows)
    if any("failed" in row for row in rows):
        sys.exit("some answers are wrong")


if __name__ == "__main__":
    main()
