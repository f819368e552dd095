"""The section of a proof: its bound over time, what is left, and what that says."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from gpu_align._proof import ProofRecord
from gpu_align._report._figures import AFTER, QUIET, STAGES, WIDTH
from gpu_align._report._format import number, percent


def bound_over_time(proof: ProofRecord) -> Figure:
    """Draw the lower bound, and the number of pairs that are left, over the seconds."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, 2)
    seconds = [step.seconds for step in proof.history]
    marker = "." if len(seconds) <= 30 else None
    panels[0].axhline(proof.distance, color=QUIET, linestyle="--", linewidth=1.3)
    series = (
        ("lower bound, and the distance found", [step.bound for step in proof.history], AFTER),
        ("pairs of units left", [step.candidates for step in proof.history], STAGES[1]),
    )
    for axes, (title, values, color) in zip(panels, series, strict=True):
        axes.step(seconds, values, where="post", color=color, linewidth=2, marker=marker)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("seconds")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(0.04, 0.1)
    panels[1].set_ylim(bottom=0)
    return figure


def alternative(proof: ProofRecord) -> str:
    """Return the figure in words."""
    first, last = proof.history[0], proof.history[-1]
    return (
        f"Lower bound from {number(first.bound)} to {number(last.bound)}, distance "
        f"{number(proof.distance)}; {last.candidates} of {proof.pairs} pairs of units left"
    )


def caption(proof: ProofRecord) -> str:
    """Say what one sees, and what it does and does not mean."""
    return " ".join(_sentences(proof))


def _sentences(proof: ProofRecord) -> Iterator[str]:
    yield f"By {proof.method} ({proof.note})."
    if proof.is_optimal:
        yield (
            "No permutation whatever is closer, up to a rounding of "
            f"{number(proof.tolerance, 2)}: the search need not go on."
        )
    else:
        yield (
            f"A better permutation could be closer by at most {percent(proof.gap, 2)}, and has "
            f"{proof.candidates} of {proof.pairs} pairs of units to choose from. The gap may be "
            "that of the bound: it does not say that there is a better one."
        )
