"""The figures of learning on weights: rows as bars, networks as points."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gpu_align._report._figures import AFTER, BEFORE, INK, QUIET
from gpu_align._report._format import number

BARS, PANEL = 5.0, (3.4, 3.1)
"""Widths in inches that a telephone still shows at a legible size."""

_ROOM = 1.22
"""Of the longest bar, for the number behind it."""


def bars(rows: Sequence[Mapping[str, Any]], measure: str, unit: str) -> Figure:
    """Draw a measure of each row with its standard deviation over seeds.

    Args:
        rows: at least one, with "model", "form", "mean", "spread" and "listed_apart".
        measure: which.
        unit: "%" for shares.
    """
    figure = Figure(figsize=(BARS, 0.8 + 0.56 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ends = []
    for place, row in enumerate(rows):
        value, spread = row["mean"][measure], row["spread"][measure] or 0.0
        ends += [value - spread, value + spread]
        axes.barh(
            *(place, value),
            height=0.42,
            color=BEFORE if row["listed_apart"] else AFTER,
            xerr=spread or None,
            error_kw={"ecolor": INK, "capsize": 2.5, "elinewidth": 1},
        )
        text = f"{100 * value:.1f} %" if unit == "%" else number(value, 3)
        name = f"{row['model']}, {row['form']}" if row["form"] else row["model"]
        axes.text(0, place - 0.26, name, verticalalignment="bottom", fontsize=9)
        axes.annotate(
            *(text, (max(value + spread, 0), place)),
            xytext=(4, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=9,
        )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set_ylim(len(rows) - 0.6, -0.75)
    axes.set_xlim(min(0, *ends) * _ROOM, max(0, *ends) * _ROOM or 1)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    if unit == "%":
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(measure)
    return figure


def scatter(panel: Mapping[str, Any]) -> Figure:
    """Draw the points of a panel.

    Args:
        panel: "title", "x", "y", "labels", "color", "color_label" and "diagonal".
    """
    figure = Figure(figsize=PANEL, layout="constrained")
    axes, color = figure.subplots(), panel["color"]
    points = axes.scatter(
        *(panel["x"], panel["y"]),
        c=AFTER if color is None else color,
        s=9,
        linewidths=0,
        alpha=0.8,
        cmap=None if color is None else "viridis",
    )
    axes.set_title(panel["title"], loc="left", fontsize=9.5, color=INK)
    axes.grid(visible=False)
    if any(panel["labels"]):
        axes.set_xlabel(panel["labels"][0])
        axes.set_ylabel(panel["labels"][1])
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if panel["diagonal"]:
        ends = min(*panel["x"], *panel["y"]), max(*panel["x"], *panel["y"])
        axes.plot(ends, ends, color=QUIET, linewidth=1, linestyle="--", zorder=0)
        room = 0.04 * (ends[1] - ends[0]) or 1.0
        axes.set(xlim=(ends[0] - room, ends[1] + room), ylim=(ends[0] - room, ends[1] + room))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6))
        axes.set_aspect("equal")
    if color is not None:
        bar = figure.colorbar(points, ax=axes, shrink=0.85, pad=0.02)
        bar.set_label(panel["color_label"])
        bar.outline.set_visible(False)
    return figure
