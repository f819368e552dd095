"""Targets beside the recorded figures: which are met, which are missed, which are not measured.

    python -m bench.targets

Reads results/*.json and measures nothing. A target of a ratio takes both figures from one run.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench import record

Rows = list[dict]


@dataclass(frozen=True)
class Target:
    """What a figure should be.

    Attributes:
        name: of the figure.
        result: recorded run that has it.
        figures: rows -> what it is of, and the figure; nothing where there is none.
        limit: at most, or at least.
        least: whether the limit is a lower one.
        unit: of the figure.
    """

    name: str
    result: str
    figures: Callable[[Rows], Iterator[tuple[str, float]]]
    limit: float
    least: bool = False
    unit: str = ""

    def met(self, figure: float) -> bool:
        """Say whether a figure is good enough."""
        return figure >= self.limit if self.least else figure <= self.limit

    def text(self, figure: float) -> str:
        """Format a figure."""
        return f"{figure:.3g} {self.unit}".rstrip() if figure < 1000 else f"{figure:,.0f}"


def median(row: dict) -> float:
    """Return the median of a row's milliseconds."""
    return row["ms"]["median"]


def operations(rows: Rows, network: str) -> Iterator[tuple[str, float]]:
    yield from (("", row["operations"]) for row in rows if row["network"] == network)


def profiled(rows: Rows, network: str) -> Iterator[tuple[str, float]]:
    """Yield the launches of one sweep on the device."""
    for row in rows:
        if (row.get("pair"), row["device"]) == (network, "cuda") and "weight" in row["step"]:
            yield "", row["launches"]


def widths(rows: Rows, width: int, key: str) -> Iterator[tuple[str, float]]:
    """Yield milliseconds of one width of each case on the device, or its ratio to width 1."""
    for row in rows:
        ours = row["case"].startswith("coursework") and row["device"] == "cuda"
        if ours and row["width"] == width and "ms" in row:
            yield row["case"], median(row) if key == "ms" else row[key]


def exact(rows: Rows) -> Iterator[tuple[str, float]]:
    """Yield how many answers of our own solvers were wrong."""
    yield f"{len(rows)} rows", sum("failed" in row and row["ours"] for row in rows)


def against_peers(rows: Rows) -> Iterator[tuple[str, float]]:
    """Yield for each case how much faster per problem than the fastest other solver we are."""
    each: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if "ms" in row and row["solver"] != "auction, warm":
            case = (row["kind"], row["batch"], row["n"])
            each.setdefault(case, {})[row["solver"]] = median(row) / row["problems"]
    for (kind, batch, n), found in each.items():
        ours = found.pop("auction", None)
        if ours is not None and found:
            fastest = min(found, key=lambda name: found[name])
            yield f"{kind}, {batch} x {n}, beside {fastest}", found[fastest] / ours


def against_torch(rows: Rows) -> Iterator[tuple[str, float]]:
    for row in rows:
        if row.get("dtype") == "torch.float32":
            yield row["case"], row["times_torch"]


def weight_matching(rows: Rows) -> Iterator[tuple[str, float]]:
    """Yield how much faster the device is than all cores of the CPU."""
    seconds = {(r["network"], r["device"]): median(r) for r in rows if r["way"] == "gpu-align"}
    for (network, device), time in seconds.items():
        if device == "cuda" and (network, "cpu") in seconds:
            yield network, seconds[network, "cpu"] / time


def seconds_of(rows: Rows, network: str) -> Iterator[tuple[str, float]]:
    """Yield the seconds of weight matching a network on the device, its form included."""
    for row in rows:
        if (row["network"], row["device"], row["way"]) == (network, "cuda", "gpu-align"):
            yield "", median(row) / 1e3


def batch_of(rows: Rows, n: int, batch: int) -> Iterator[tuple[str, float]]:
    """Yield the milliseconds of our solver on batches of one shape, of each kind."""
    for row in rows:
        if (row["solver"], row["n"], row["batch"]) == ("auction", n, batch) and "ms" in row:
            yield row["kind"], median(row)


def roof(rows: Rows) -> Iterator[tuple[str, float]]:
    """Yield the share of the rate of six bfloat16 products at n = 2048."""
    yield from (("", row["roof_fraction"]) for row in rows if row.get("case") == "square 2048")


def portfolio(rows: Rows) -> Iterator[tuple[str, float]]:
    yield from ((row["pair"], row["times_cpu"]) for row in rows if "times_cpu" in row)


def many(rows: Rows) -> Iterator[tuple[str, float]]:
    for row in rows:
        if row["models"] == 60_000:
            yield row["networks"], row["batch seconds"]["median"]


def seeds(rows: Rows) -> Iterator[tuple[str, float]]:
    for row in rows:
        yield f"{row['pair']}, {row['search']}", row.get("difference", float("inf"))


COUNTED, SWEEP = "operations a sweep, counted on meta", "launches a sweep, on the device"
TARGETS = (
    Target(f"{COUNTED}: MLP 3x512", "sweep_operations", lambda r: operations(r, "MLP 3x512"), 150),
    Target(f"{COUNTED}: ResNet50", "sweep_operations", lambda r: operations(r, "ResNet50"), 1500),
    Target(f"{SWEEP}: MLP 3x512", "profile_step", lambda r: profiled(r, "mnist_mlp_512x3"), 150),
    Target(f"{SWEEP}: ResNet50", "profile_step", lambda r: profiled(r, "ResNet50"), 1500),
    Target("same seed, CPU and GPU: relative difference", "same_seed", seeds, 1e-6),
    Target(
        "row distance: times faster than torch, float32", "row_distance", against_torch, 1, True
    ),
    Target("row distance: share of the roof, n = 2048", "row_distance", roof, 0.5, True),
    Target("assignment: 128 x 512", "assignment", lambda r: batch_of(r, 512, 128), 2.5, unit="ms"),
    Target("assignment: 128 x 1024", "assignment", lambda r: batch_of(r, 1024, 128), 8, unit="ms"),
    Target(
        "assignment: 100,000 x 32", "assignment", lambda r: batch_of(r, 32, 100_000), 20, unit="ms"
    ),
    Target("assignment: 1 x 16384", "assignment", lambda r: batch_of(r, 16384, 1), 2000, unit="ms"),
    Target("assignment: wrong answers", "assignment", exact, 0),
    Target("assignment: times faster than any other", "assignment", against_peers, 1, True),
    Target(
        "weight matching: MLP 3x512", "whole", lambda r: seconds_of(r, "MLP 3x512"), 0.02, unit="s"
    ),
    Target(
        "weight matching: ResNet50", "whole", lambda r: seconds_of(r, "ResNet50"), 0.5, unit="s"
    ),
    Target(
        "weight matching: ResNet20 x32",
        "whole",
        lambda r: seconds_of(r, "ResNet20 x32"),
        1.5,
        unit="s",
    ),
    Target("weight matching: times faster than all cores", "whole", weight_matching, 1, True),
    Target("default search: times faster than all cores", "portfolio", portfolio, 10, True),
    Target("60,000 SIRENs to one, certified", "many_models_cuda", many, 10, unit="s"),
    Target("beam: width 100", "beam_width", lambda r: widths(r, 100, "ms"), 50, unit="ms"),
    Target("beam: width 100 / width 1", "beam_width", lambda r: widths(r, 100, "times_width_1"), 3),
    Target(
        "beam: width 1000 / width 1", "beam_width", lambda r: widths(r, 1000, "times_width_1"), 20
    ),
)


def load(name: str) -> dict | None:
    """Return a recorded run, or None."""
    path = record.RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def judged() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield target, limit, worst figure, verdict, and what the worst figure is of, where known."""
    for target in TARGETS:
        run = load(target.result)
        figures = list(target.figures(run["rows"])) if run else []
        limit = f"{'at least' if target.least else 'at most'} {target.text(target.limit)}"
        if not figures or run is None:
            yield target.name, limit, "", "not measured", ""
            continue
        what, worst = (min if target.least else max)(figures, key=lambda figure: figure[1])
        met = sum(target.met(figure) for _, figure in figures)
        verdict = (
            "met" if met == len(figures) else f"missed in {len(figures) - met} of {len(figures)}"
        )
        commit = (run["commit"] or "no commit")[:7]
        gpu = run["machine"]["gpu"] or "no GPU"
        yield target.name, limit, target.text(worst), verdict, f"{what} ({gpu}, {commit})".strip()


def main() -> None:
    table = Table("target", "limit", "worst figure", "verdict", "of", title="Targets")
    for row in judged():
        table.add_row(*row)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
