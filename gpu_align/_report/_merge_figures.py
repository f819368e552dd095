"""The figure of a merge: the losses of what was tried."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gpu_align._merge import Trial
from gpu_align._report._figures import AFTER, BEFORE, INK, LONGEST_LABEL, QUIET, WIDTH
from gpu_align._report._format import number

_ROW = 0.27
"""Inches for each trial."""


def losses(trials: Sequence[Trial], chosen: Trial) -> Figure:
    """Draw losses as bars on a logarithmic scale, the networks grey, the chosen way dark.

    Args:
        trials: each with a finite loss above 0.
        chosen: one of them.
    """
    known = [trial.loss or 0.0 for trial in trials]
    figure = Figure(figsize=(WIDTH, 0.8 + _ROW * len(trials)), layout="constrained")
    axes = figure.subplots()
    low = min(known) / 2
    colors = [AFTER if t is chosen else BEFORE if t.is_merged else QUIET for t in trials]
    rows = range(len(trials))
    axes.barh(rows, [loss - low for loss in known], left=low, color=colors, height=0.72)
    for row, loss in zip(rows, known, strict=True):
        axes.text(loss, row, f" {number(loss, 3)}", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(rows, [_label(trial) for trial in trials])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(low, max(known) * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_xlabel("loss on held-back data")
    return figure


def _label(trial: Trial) -> str:
    text = f"{trial.order}: {trial.method}" if trial.is_merged else trial.order
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
