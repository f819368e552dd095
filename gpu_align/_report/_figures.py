"""The figures of the report, drawn without pyplot."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

from gpu_align._align import CostMatrix, GroupReport
from gpu_align._report._format import number, percent
from gpu_align._report._parse import WidthRow
from gpu_align._search import Progress

INK, QUIET, GRID = "#1f2733", "#6b7685", "#e3e7ed"
BEFORE, AFTER = "#bccadb", "#1f5fa6"
# Okabe and Ito's colours, told apart by most colour-blind readers, darkened for white ground.
STAGES = ("#0072b2", "#d55e00", "#009e73", "#b0588f", "#b8860b", "#3a9bd1", "#5b5b5b")
WIDTH = 7.0  # inches; the page shows it at about its natural size
LONGEST_LABEL = 42
STYLE = {
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.hashsalt": "gpu-align",
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
}
"""rcParams on top of matplotlib's defaults, to be set around drawing and saving."""


def convergence(
    history: Sequence[Progress], found: float, before: float | None, bound: float | None
) -> Figure:
    """Draw the best distance after each step, coloured by stage.

    A second panel enlarges what comes after the first complete solution, where that is flat in
    the first one.

    Args:
        history: at least two entries.
        found: the distance at the end, written there.
        before: distance without alignment, a line; None leaves it out.
        bound: lower bound, a line; None leaves it out.
    """
    if before is not None:
        first = replace(history[0], step=0, best_distance=before)
        history = [first, *history]
    values = [entry.best_distance for entry in history]
    zoom = _zoom(values, before, bound)
    figure = Figure(figsize=(WIDTH, 5.6 if zoom else 3.5), layout="constrained")
    rows = figure.subplots(2 if zoom else 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes in rows:
        _draw_stages(axes, history)
    for value, name, line in ((before, "as given", "--"), (bound, "lower bound", ":")):
        if value is not None:
            label = f"{name} {number(value)}"
            rows[0].axhline(value, color=QUIET, linestyle=line, linewidth=1.3, label=label)
    rows[0].set_ylabel("best distance")
    if zoom:
        rows[1].set_ylim(zoom)
        rows[1].set_ylabel("the same, enlarged")
    _note_under_end(rows[-1], values[-1], f"found {number(found)}")
    rows[-1].set_xlabel("step of the search")
    figure.align_ylabels(rows)
    legend_above(figure, rows[0])
    return figure


def _draw_stages(axes: Axes, history: Sequence[Progress]) -> None:
    """Draw one stepped line per run of a stage; each begins where the one before it ended."""
    names: list[str] = []
    number = 0
    for stage, run in groupby(history, key=lambda entry: entry.stage):
        part = list(run)
        drawn = [*history[max(number - 1, 0) : number], *part]
        number += len(part)
        is_new = stage not in names
        if is_new:
            names.append(stage)
        axes.step(
            [entry.step for entry in drawn],
            [entry.best_distance for entry in drawn],
            where="post",
            color=STAGES[names.index(stage) % len(STAGES)],
            linewidth=2,
            marker="o" if len(history) <= 30 else None,
            markersize=3.5,
            label=_label(stage) if is_new else None,
        )
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01, y=0.1)


def _zoom(
    values: Sequence[float], before: float | None, bound: float | None
) -> tuple[float, float] | None:
    """Return the range of values after the first fall, if it is hard to see in the whole one."""
    top = next((value for value in values if value < values[0] * (1 - 1e-6)), values[-1])
    last = values[-1]
    whole = max(values[0], before or 0) - min(last, bound if bound is not None else last)
    if not 0 < top - last < 0.25 * whole:
        return None
    return last - 0.2 * (top - last), top + 0.1 * (top - last)


def _note_under_end(axes: Axes, value: float, text: str) -> None:
    """Write under the right end of a line that never rises, so that nothing is in the way."""
    axes.annotate(
        text,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -4),
        textcoords="offset points",
        horizontalalignment="right",
        verticalalignment="top",
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
    )


def legend_above(figure: Figure, axes: Axes) -> None:
    """Put the legend above the panels, in as many columns as its longest name allows."""
    handles, labels = axes.get_legend_handles_labels()
    inches = 0.45 + 0.075 * max(len(label) for label in labels)
    columns = max(1, min(int(WIDTH / inches), len(labels)))
    rows = -(-len(labels) // columns)
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=-(-len(labels) // rows),
        handlelength=1.5,
        columnspacing=1.5,
    )


def improvement(groups: Sequence[GroupReport]) -> Figure:
    """Draw the distance of each group before and after, in the given order from the top."""
    figure = Figure(figsize=(WIDTH, 1.15 + 0.23 * len(groups)), layout="constrained")
    axes = figure.subplots()
    places = range(len(groups))
    before = [group.distance_before for group in groups]
    after = [group.distance_after for group in groups]
    axes.barh(places, before, height=0.78, color=BEFORE, label="before")
    axes.barh(places, after, height=0.42, color=AFTER, label="after")
    for place, old, new in zip(places, before, after, strict=True):
        if old > 0:
            axes.annotate(
                percent(new / old - 1, 0),
                (max(old, new), place),
                xytext=(4, 0),
                textcoords="offset points",
                verticalalignment="center",
                color=QUIET,
                fontsize=8.5,
            )
    axes.set_yticks(places, [_label(group.name) for group in groups], parse_math=False)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max(*before, *after) or 1)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_xlabel("squared distance over the group's tensors")
    legend_above(figure, axes)
    return figure


def cost_matrices(matrix: CostMatrix) -> Figure:
    """Draw the cost matrix before and after on one colour scale."""
    before, after = np.asarray(matrix.before), np.asarray(matrix.after)
    # What matters is how low the diagonal is; units with large weights, whose rows and columns
    # are high throughout, would otherwise take most of the scale for themselves.
    lowest, highest = np.percentile(np.stack([before, after]), (0.5, 85))
    figure = Figure(figsize=(WIDTH, 3.75), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, values, title in zip(panels, (before, after), ("before", "after"), strict=True):
        # Where only every k-th unit is there, the axes still count the units of the group.
        image = axes.imshow(
            values,
            vmin=lowest,
            vmax=highest,
            cmap="viridis",
            interpolation="nearest",
            extent=(-0.5, matrix.units - 0.5, matrix.units - 0.5, -0.5),
        )
        axes.set_title(title, fontsize=10.5, color=INK)
        axes.set_xlabel("unit of the source")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, prune="upper"))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    panels[0].set_ylabel("unit of the target")
    bar = figure.colorbar(image, ax=panels, shrink=0.86, pad=0.02, extend="both")
    bar.set_label("squared distance of the rows")
    bar.outline.set_visible(False)
    return figure


def beam_width(rows: Sequence[WidthRow]) -> Figure:
    """Draw distance and time against the width of the beam, equally spaced."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, 2)
    series = (
        ("distance", [row.distance for row in rows], AFTER),
        ("seconds", [row.seconds for row in rows], STAGES[1]),
    )
    for axes, (name, values, color) in zip(panels, series, strict=True):
        axes.plot(range(len(rows)), values, color=color, marker="o", linewidth=2)
        axes.set_xticks(range(len(rows)), [str(row.width) for row in rows])
        axes.set_xlabel("width of the beam")
        axes.set_title(name, loc="left", fontsize=10, color=INK)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(0.08, 0.12)
    panels[1].set_ylim(bottom=0)
    return figure


@cache
def _letters() -> frozenset[int]:
    return frozenset(FT2Font(findfont("DejaVu Sans")).get_charmap())


def drawable(text: str) -> str:
    """Return a text with only the letters of the figures' font."""
    return "".join(c if c.isprintable() and ord(c) in _letters() else "?" for c in text)


def _label(text: str) -> str:
    """Return a name as the figures can show it: not too long, only with letters of their font."""
    shown = drawable(text)
    if len(shown) <= LONGEST_LABEL:
        return shown
    half = (LONGEST_LABEL - 1) // 2
    return f"{shown[:half]}…{shown[-half:]}"
