"""The pictures of the README and of the pages.

    python -m docs.generate.pictures [NAME ...]

Writes `docs/images/*.svg`. For `alignment` it trains two small networks on scikit-learn's digits.
"""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from docs.generate.training import flat_digits, mlp, trained
from gpu_align import activation_evidence, align, barrier, discover
from gpu_align._report._figures import AFTER, BEFORE, INK, QUIET, STAGES, STYLE

IMAGES = Path(__file__).parents[1] / "images"
WIDTH = 64
_ALIKE = LinearSegmentedColormap.from_list("alike", ["#d55e00", "white", AFTER])


def alignment() -> Figure:
    """Draw how alike the units of two networks are, and the loss between, before and after."""
    torch.set_num_threads(1)
    a, b = (trained(lambda: mlp(WIDTH), seed) for seed in (1, 2))
    data, inputs = flat_digits(), torch.zeros(2, 64)
    result = align(b, a, example_inputs=inputs, data=data)
    alike = activation_evidence(a, b, discover(a, inputs), data, model=a)["0"].numpy()
    order = result.permutation["0"].numpy()
    measured = barrier(a, b, data, align=result)
    rows = np.argsort(-alike[np.arange(WIDTH), order])  # the best matched units first
    rows = rows[alike[rows, order[rows]] > 0]  # without those that never fire
    figure = Figure(figsize=(9, 3.0), layout="constrained")
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 1.25))
    columns = order[rows]
    for place, shown, title in ((0, np.sort(columns), "as trained"), (1, columns, "after align")):
        axes = figure.add_subplot(grid[0, place])
        axes.imshow(
            alike[np.ix_(rows, shown)], cmap=_ALIKE, vmin=-1, vmax=1, interpolation="nearest"
        )
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("units of B")
        axes.set_ylabel("units of A")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
    axes = figure.add_subplot(grid[0, 2])
    for aligned, color, name in ((False, BEFORE, "as trained"), (True, AFTER, "after align")):
        curve = measured.curve(aligned=aligned)
        axes.plot(curve.points, curve.losses, color=color, linewidth=2.2, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xticks([0, 0.5, 1], ["A", "halfway", "B"])
    axes.set_title("loss from A to B", loc="left", fontsize=10)
    axes.legend()
    return figure


def order() -> Figure:
    """Draw a network of five hidden units, and the same network with its units reordered."""
    figure = Figure(figsize=(7, 2.9))
    left, right = figure.subplots(1, 2)
    permutation = [2, 0, 4, 1, 3]
    _draw_network(left, [0, 1, 2, 3, 4], "B")
    _draw_network(right, permutation, "B, reordered by perm = [2, 0, 4, 1, 3]")
    figure.subplots_adjust(0.01, 0.02, 0.99, 0.9, 0.08)
    return figure


def _draw_network(axes: Axes, units: list[int], title: str) -> None:
    inputs, outputs = np.linspace(0.5, 3.5, 3), np.linspace(1, 3, 2)
    weights = np.random.default_rng(3).uniform(0.3, 2.6, (5, 5))
    for place, unit in enumerate(units):
        height, color = 4 - place, STAGES[unit]
        for number, end in enumerate(inputs):
            axes.plot([0, 1], [end, height], color=color, linewidth=weights[unit, number])
        for number, end in enumerate(outputs):
            axes.plot([1, 2], [height, end], color=color, linewidth=weights[unit, 3 + number])
        _dot(axes, 1, height, color)
        text = f"place {place}: unit {unit}"
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(1, height + 0.3, text, ha="center", va="bottom", fontsize=8, bbox=ground)
    for x, heights in ((0, inputs), (2, outputs)):
        for height in heights:
            _dot(axes, x, height, QUIET)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_axis_off()
    axes.set_xlim(-0.1, 2.1)
    axes.set_ylim(-0.3, 4.7)


def _dot(axes: Axes, x: float, y: float, color: str) -> None:
    axes.plot(x, y, marker="o", markersize=10, color=color, markeredgecolor="white", zorder=3)


def groups() -> Figure:
    """Draw what a group is: one order for all axes that a residual stream ties together."""
    figure = Figure(figsize=(7, 2.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 14)
    axes.set_ylim(0, 5)
    stream, inner = STAGES[0], STAGES[1]
    axes.plot([0.6, 13.4], [1, 1], color=stream, linewidth=3)
    for x, name in ((1.6, "stem"), (12, "head")):
        _box(axes, x, 1, name, stream)
    for x in (3.6, 7.8):
        axes.plot([x, x, x + 2.9, x + 2.9], [1, 3.4, 3.4, 1], color=stream, linewidth=1.5)
        axes.plot([x + 0.6, x + 2.3], [3.4, 3.4], color=inner, linewidth=3)
        _box(axes, x + 0.4, 3.4, "conv 1", inner)
        _box(axes, x + 2.5, 3.4, "conv 2", inner)
        axes.text(x + 1.45, 4.25, "its own group", color=inner, ha="center", fontsize=8.5)
        axes.text(
            x + 2.9,
            1,
            "+",
            color=stream,
            ha="center",
            va="center",
            fontsize=13,
            bbox={"boxstyle": "circle,pad=0.12", "facecolor": "white", "edgecolor": stream},
        )
    axes.text(
        7, 0.25, "one group: every sum ties what it adds", color=stream, ha="center", fontsize=8.5
    )
    return figure


def heads() -> Figure:
    """Draw groups inside a group: heads move as wholes, dimensions inside each."""
    figure = Figure(figsize=(7, 2.0))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 14)
    axes.set_ylim(0, 4)
    for row, (name, order_) in enumerate((("A", (0, 1, 2)), ("B", (2, 0, 1)))):
        y = 2.6 - 1.9 * row
        axes.text(0.4, y + 0.4, name, fontsize=11, va="center", color=INK)
        for place, head in enumerate(order_):
            inside = np.arange(4) if row == 0 else np.random.default_rng(head).permutation(4)
            for spot, dimension in enumerate(inside):
                x = 1.3 + 4.2 * place + 0.95 * spot
                shade = 0.25 + 0.25 * (3 - dimension)
                axes.add_patch(_square(x, y, STAGES[head], shade))
                axes.text(x + 0.43, y + 0.4, str(dimension), ha="center", va="center", fontsize=8)
            axes.text(
                1.3 + 4.2 * place + 1.9,
                y + 0.95,
                f"head {head}",
                ha="center",
                fontsize=8,
                color=STAGES[head],
            )
    return figure


CLOSE = 1e-3
"""A search has solved an instance when it is above the best known value by no more than this."""


def instances() -> Figure:
    """Draw how many instances the searches solve within some time, and how close they end."""
    path = Path(__file__).parents[2] / "bench" / "instances" / "records.json"
    known = json.loads(path.read_text(encoding="utf-8"))["instances"].values()
    searches = list(next(iter(known))["entries"]) if known else []
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    times, ends = figure.subplots(1, 2, sharey=True)
    for number, search in enumerate(searches):
        solved, gaps = [], []
        for instance in known:
            best, entry = instance["best"]["value"], instance["entries"][search]
            close = [t for t, value in entry["events"] if value <= best * (1 + CLOSE)]
            solved += [max(close[0], 1e-3)] if close else []
            gaps.append(max(entry["value"] / best - 1, 1e-6))
        style = {
            "color": STAGES[number % len(STAGES)],
            "linestyle": "-" if number < len(STAGES) else "--",
            "linewidth": 1.8,
        }
        _draw_shares(times, solved, len(known), 100.0, style | {"label": search})
        _draw_shares(ends, gaps, len(known), 1.0, style)
    times.set_xlabel("CPU seconds")
    times.set_ylabel("share of the instances")
    times.set_title("within 0.1 % of the best known", loc="left", fontsize=10)
    ends.set_xlabel("above the best known, at the end")
    ends.set_title("at most so far above", loc="left", fontsize=10)
    for axes in (times, ends):
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _draw_shares(axes: Axes, values: list[float], count: int, last: float, style: dict) -> None:
    """Draw what share of all instances has a value of at most x."""
    ordered = sorted(values)
    shares = np.arange(1, len(ordered) + 1) / count
    end = max([*ordered, last])
    axes.step([*ordered, end], [*shares, shares[-1] if len(shares) else 0], where="post", **style)


def _square(x: float, y: float, color: str, shade: float) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 0.86, 0.8, facecolor=color, alpha=shade, edgecolor=color)


def _box(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    axes.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        fontsize=8.5,
        color="white",
        bbox={"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "none"},
    )


PICTURES: dict[str, Callable[[], Figure]] = {
    "alignment": alignment,
    "order": order,
    "groups": groups,
    "heads": heads,
    "instances": instances,
}


def main() -> None:
    """Draw the pictures that are named, or all."""
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        with matplotlib.style.context(["default", STYLE]):
            held = io.StringIO()
            PICTURES[name]().savefig(held, format="svg", metadata={"Date": None})
        lines = (line.rstrip() for line in held.getvalue().splitlines())
        (IMAGES / f"{name}.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(IMAGES / f"{name}.svg")


if __name__ == "__main__":
    main()
