"""The figures of learning on weights: rows as bars, networks as points."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gpu_align._report._figures import AFTER, BEFORE, INK, QUIET, WIDTH

_MOST_IN_A_ROW = 2


def bars(rows: Sequence[Mapping[str, Any]], measure: str, unit: str) -> Figure:
    """Draw a measure of each row with its standard deviation over seeds.

    Args:
        rows: at least one, with "model", "form", "mean", "spread" and "listed_apart".
        measure: which.
        unit: "%" for shares.
    """
    figure = Figure(figsize=(WIDTH, 0.9 + 0.44 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        value, spread = row["mean"][measure], row["spread"][measure]
        axes.barh(
            *(place, value),
            height=0.62,
            color=BEFORE if row["listed_apart"] else AFTER,
            xerr=spread,
            error_kw={"ecolor": INK, "capsize": 2.5, "elinewidth": 1},
        )
        text = f"{100 * value:.1f} %" if unit == "%" else f"{value:.3g}"
        axes.annotate(
            text,
            (max(value, 0) + (spread or 0), place),
            xytext=(4, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(rows)), [f"{row['model']}\n{row['form']}".strip() for row in rows])
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    if unit == "%":
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(measure)
    return figure


def scatter(panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw scatter plots side by side.

    Args:
        panels: at least one, with "title", "x", "y", "labels", "color", "color_label" and
            "diagonal".
    """
    columns = min(len(panels), _MOST_IN_A_ROW)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 3.0 * rows), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(cells, panels, strict=False):
        _panel(figure, axes, panel)
    for axes in cells[len(panels) :]:
        axes.set_visible(False)
    return figure


def _panel(figure: Figure, axes: Axes, panel: Mapping[str, Any]) -> None:
    color = panel["color"]
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
        ends = [min(*panel["x"], *panel["y"]), max(*panel["x"], *panel["y"])]
        axes.plot(ends, ends, color=QUIET, linewidth=1, linestyle="--", zorder=0)
    if color is not None:
        bar = figure.colorbar(points, ax=axes, shrink=0.85, pad=0.02)
        bar.set_label(panel["color_label"])
        bar.outline.set_visible(False)
