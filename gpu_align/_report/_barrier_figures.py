"""The figures of a barrier: curves on the segment, and the plane through three networks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from gpu_align._merge import LossCurve, LossPlane
from gpu_align._report._figures import INK, QUIET, STAGES, WIDTH, legend_above

_LEVELS = 24
_DECADES = 1.5
"""Powers of ten on either side of the middle loss of a plane that have colours of their own."""


def segment(curves: Sequence[LossCurve]) -> Figure:
    """Draw loss and accuracy along the segment, with bands of two standard errors of the loss.

    Args:
        curves: each with finite losses somewhere.
    """
    has_classes = all(curve.accuracies for curve in curves)
    figure = Figure(figsize=(WIDTH, 5.4 if has_classes else 3.4), layout="constrained")
    rows = figure.subplots(2 if has_classes else 1, 1, sharex=True, squeeze=False)[:, 0]
    dashed = any(curve.reestimated for curve in curves)
    for curve in curves:
        look = _look(curve, dashed=dashed and not curve.reestimated)
        _draw_losses(rows[0], curve, look)
        if has_classes:
            rows[1].plot(curve.points, curve.accuracies, **look)
    rows[0].set_ylabel("loss")
    rows[0].set_ylim(bottom=0)
    if has_classes:
        rows[1].set_ylabel("accuracy")
        rows[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    rows[-1].set_xlabel("t in (1 - t) A + t B")
    rows[-1].set_xlim(0, 1)
    figure.align_ylabels(rows)
    legend_above(figure, rows[0])
    return figure


def plane(found: LossPlane) -> Figure:
    """Draw the losses on a plane as contours, on a logarithmic scale, and the three networks."""
    losses = np.asarray(found.losses)
    low, high = _range(losses)
    levels = np.geomspace(low, high, _LEVELS)
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots()
    shown = np.clip(np.nan_to_num(losses, nan=high, posinf=high), low, high)
    filled = axes.contourf(
        *(found.x, found.y, shown), levels=levels, norm=LogNorm(low, high), cmap="viridis_r"
    )
    axes.contour(found.x, found.y, shown, levels=levels[::3], colors="white", linewidths=0.5)
    for name, (x, y) in found.places.items():
        _mark(axes, name, x, y)
    axes.grid(visible=False)
    axes.set_aspect("equal")
    axes.set_xlabel("distance along A to B aligned")
    axes.set_ylabel("distance from that line")
    bar = figure.colorbar(filled, ax=axes, shrink=0.9, pad=0.02)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label("loss")
    bar.outline.set_visible(False)
    return figure


def _draw_losses(axes: Axes, curve: LossCurve, look: dict[str, Any]) -> None:
    axes.plot(curve.points, curve.losses, label=curve.name, **look)
    if None in curve.standard_errors:
        return
    losses = np.asarray(curve.losses)
    band = 2 * np.asarray(curve.standard_errors, float)
    axes.fill_between(
        curve.points, losses - band, losses + band, color=look["color"], alpha=0.18, linewidth=0
    )


def _look(curve: LossCurve, *, dashed: bool) -> dict[str, Any]:
    """Return colour by alignment; dashes tell interpolated statistics from others."""
    color = STAGES[0] if curve.aligned else STAGES[1]
    return {"color": color, "linewidth": 2, "linestyle": "--" if dashed else "-"}


def _range(losses: np.ndarray) -> tuple[float, float]:
    """Return the losses that colours begin and end with; beyond them lies little of interest."""
    known = losses[np.isfinite(losses) & (losses > 0)]
    if len(known) == 0:
        return 0.5, 1.0  # a plane without loss
    middle = float(np.median(known))
    low = max(float(known.min()), middle / 10**_DECADES)
    return low, max(min(float(known.max()), middle * 10**_DECADES), low * 1.01)


def _mark(axes: Axes, name: str, x: float, y: float) -> None:
    axes.plot([x], [y], marker="o", color="white", markeredgecolor=INK, markersize=7)
    axes.annotate(
        name,
        (x, y),
        xytext=(0, 9),
        textcoords="offset points",
        horizontalalignment="center",
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": QUIET, "pad": 1.5, "alpha": 0.85, "linewidth": 0},
    )
