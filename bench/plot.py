"""Draw the recorded results of kernels, assignment solvers and beams; measures nothing.

    python -m bench.plot

Reads results/*.json and writes results/*.png. What has not been recorded is named and left out.
"""

from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bench import record, targets
from gpu_align._checkpoint._atomic import atomic_write
from gpu_align._report._figures import INK, QUIET, STAGES, STYLE, WIDTH

SOLVERS = (
    "SciPy, one thread",
    "SciPy, all cores",
    "lapx, all cores",
    "auction",
    "torch-linear-assignment",
    "torch-lap-cuda",
)
"""Each has its colour, whatever else is drawn; `auction, warm` is a dashed `auction`."""

MARKERS = "osD^vP"
"""One for each solver, so that nothing is told by its colour alone."""

DEVICES = {"cpu": ("CPU", "-", "o"), "cuda": ("GPU", "--", "s")}
"""Name, line and marker of a device; its colour is that of its place here."""


def load(name: str) -> dict | None:
    """Return a recorded run, or None, and say so, where there is none."""
    run = targets.load(name)
    if run is None:
        print(f"{name}: not yet measured, nothing to draw")
    return run


def assignment_times(run: dict) -> Figure:
    """Draw the time per problem against its size, one panel per kind of cost."""
    rows = [row for row in run["rows"] if not row["network"] and "ms" in row]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, -(-len(kinds) // 2), sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(panels.flat, kinds, strict=False):
        lines: dict[str, dict[int, dict]] = defaultdict(dict)
        for row in rows:
            if row["kind"] == kind:
                lines[row["solver"]].setdefault(row["n"], row)
        _draw_lines(axes, lines)
        axes.set_title(kind, loc="left", fontsize=10, color=INK)
    for axes in panels[-1]:
        axes.set_xlabel("rows of a problem")
    figure.supylabel("milliseconds per problem", fontsize=9.5, color=INK)
    _legend(figure, panels[0, 0], run)
    return figure


def assignment_cases(run: dict) -> Figure:
    """Draw the time per problem of every solver, one line of dots per case."""
    rows = sorted((row for row in run["rows"] if "ms" in row), key=lambda row: row["n"])
    cases: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        cases[f"{row['network'] or row['kind']}, {row['batch']:,} × {row['n']}"].append(row)
    figure = Figure(figsize=(WIDTH, 1.3 + 0.26 * len(cases)), layout="constrained")
    axes = figure.subplots()
    for solver in dict.fromkeys(row["solver"] for row in run["rows"] if "ms" in row):
        points = [
            (row["ms"]["median"] / row["problems"], place)
            for place, found in enumerate(cases.values())
            for row in found
            if row["solver"] == solver
        ]
        warm = solver.endswith(", warm")
        number = SOLVERS.index(solver.removesuffix(", warm"))
        style = {"markerfacecolor": "none"} if warm else {}
        marker = MARKERS[number]
        axes.plot(
            *zip(*points, strict=True), marker, color=STAGES[number], label=solver, ms=5.5, **style
        )
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds per problem")
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="both")
    axes.tick_params(axis="y", length=0)
    _legend(figure, axes, run)
    return figure


def _draw_lines(axes: Axes, lines: dict[str, dict[int, dict]]) -> None:
    """Draw medians per problem, with bars from the 20 % to the 80 % quantile."""
    for solver, points in lines.items():
        name = solver.removesuffix(", warm")
        warm = solver.endswith(", warm")
        places = sorted(points)
        low, middle, high = (
            [points[x]["ms"][key] / points[x]["problems"] for x in places]
            for key in ("q20", "median", "q80")
        )
        axes.errorbar(
            places,
            middle,
            [
                [m - x for m, x in zip(middle, low, strict=True)],
                [x - m for m, x in zip(middle, high, strict=True)],
            ],
            color=STAGES[SOLVERS.index(name)],
            linestyle="--" if warm else "-",
            marker="o",
            markersize=3.5,
            linewidth=1.6,
            label=solver,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")


def roofline(run: dict) -> Figure:
    """Draw how much of the machine's own limits the cost kernels reach, and what torch takes."""
    rows = [row for row in run["rows"] if "roof_fraction" in row]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(cases)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    quantities = (
        ("roof_fraction", "of the matrix roof"),
        ("copy_fraction", "of the copy rate"),
        ("times_torch", "times faster than torch"),
    )
    for axes, (key, title) in zip(panels, quantities, strict=True):
        found = [row[key] for row in rows]
        axes.barh(range(len(cases)), found, height=0.6, color=STAGES[0])
        axes.axvline(1, color=QUIET, linestyle=":", linewidth=1.3)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", length=0)
        if key != "times_torch":
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_yticks(range(len(cases)), cases)
    panels[0].invert_yaxis()
    _legend(figure, panels[0], run)
    return figure


def beam_width(run: dict) -> Figure:
    """Draw run time and distance against the width of the beam, a column of panels per case."""
    rows = [row for row in run["rows"] if "ms" in row]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = figure.subplots(2, len(cases), sharex=True, sharey="row", squeeze=False)
    for (time, distance), case in zip(panels.T, cases, strict=True):
        _draw_case(time, distance, [row for row in rows if row["case"] == case])
        time.set_title(case.replace(", ", "\n"), loc="left", fontsize=10, color=INK)
        distance.set_xscale("log")
        distance.set_xticks([1, 10, 100, 1000])
        distance.xaxis.set_major_formatter("{x:.0f}")
        distance.tick_params(axis="x", labelsize=7.5)
        distance.minorticks_off()
    panels[1, len(cases) // 2].set_xlabel("width of the beam")
    panels[0, 0].set_yscale("log")
    panels[0, 0].yaxis.set_major_formatter("{x:g}")
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[1, 0].set_ylabel("distance, of the unaligned")
    _legend(figure, panels[0, 0], run)
    return figure


def _draw_case(time: Axes, distance: Axes, rows: list[dict]) -> None:
    for number, (device, (name, line, marker)) in enumerate(DEVICES.items()):
        points = [row for row in rows if row["device"] == device]
        if not points:
            continue
        style = {"color": STAGES[number], "linestyle": line, "marker": marker, "markersize": 4}
        style |= {"linewidth": 1.6, "label": name}
        widths = [row["width"] for row in points]
        middle, below, above = zip(*(_seconds(row["ms"]) for row in points), strict=True)
        time.errorbar(widths, middle, (below, above), **style)
        distance.plot(widths, [row["distance"] / row["before"] for row in points], **style)
    reported = {row["width"]: row["reported_seconds"] for row in rows if "reported_seconds" in row}
    if reported:
        label = "the coursework's report (other networks)"
        time.plot(*zip(*sorted(reported.items()), strict=True), ":.", color=QUIET, label=label)


def _seconds(ms: dict[str, float]) -> tuple[float, float, float]:
    """Return the median, and how far the 20 % and the 80 % quantile are from it."""
    low, middle, high = (ms[key] / 1e3 for key in ("q20", "median", "q80"))
    return middle, max(middle - low, 0.0), max(high - middle, 0.0)


def _legend(figure: Figure, axes: Axes, run: dict, columns: int = 3) -> None:
    """Put the legend above the panels and the machine below."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns)
    machine = run["machine"]
    on_host = any(row.get("device") == "cpu" or "solver" in row for row in run["rows"])
    named = [machine["gpu"]] if machine["gpu"] else []
    if on_host or not named:
        named.append(f"{machine['cores']} cores of {machine['processor']}")
    where = " and ".join(named)
    where += f", torch {run['versions']['torch']}"
    where += f", commit {run['commit'][:7]}" if run["commit"] else ""
    figure.supxlabel(where, x=0.99, horizontalalignment="right", fontsize=7.5, color=QUIET)


def save(name: str, figure: Figure) -> Path:
    """Write results/NAME.png."""
    path = record.RESULTS / f"{name}.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    print(f"{name}: {path}")
    return path


def main() -> None:
    with matplotlib.rc_context(STYLE):
        if run := load("row_distance"):
            save("row_distance", roofline(run))
        for name in ("beam_width", "beam_width_cpu"):
            if run := load(name):
                save(name, beam_width(run))
        for name in ("assignment", "assignment_cpu"):
            run = load(name)
            if run is None:
                continue
            save(name, assignment_times(run) if name.endswith("cpu") else assignment_cases(run))


if __name__ == "__main__":
    main()
