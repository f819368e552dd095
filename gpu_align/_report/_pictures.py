"""Which figures a result has, as data for the page: pictures, captions and alternative texts."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from gpu_align._align import CostMatrix, GroupReport, ResultRecord
from gpu_align._report._figures import (
    STYLE,
    beam_width,
    convergence,
    cost_matrices,
    improvement,
)
from gpu_align._report._format import number, percent, plural
from gpu_align._report._lane_chart import lane_chart
from gpu_align._report._lanes import Layout, layout
from gpu_align._report._parse import Entry, WidthRow
from gpu_align._symmetry import Outline

MOST_BARS = 40
_FEWEST_POINTS = 2


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        title: heading.
        source: data URI of the picture.
        alt: what it shows, for those who do not see it.
        caption: what one sees, and what is good.
    """

    title: str
    source: str
    alt: str
    caption: str


def pictures(entry: Entry) -> list[Picture]:
    """Return the figures for which the result has data."""
    result = entry.result
    # The caller's own matplotlib style must not reach the page, nor ours the caller's figures.
    with matplotlib.style.context(["default", STYLE]):
        return [
            *_convergence(result, entry.bound),
            *_improvement(result.groups),
            *_cost_matrices(result.cost_matrix, result.groups),
            *_beam_width(entry.widths),
            *_groups(result.outline),
        ]


def pictures_of_groups(outline: Outline) -> list[Picture]:
    """Return the figure of the groups of a spec; none if there are none."""
    with matplotlib.style.context(["default", STYLE]):
        return list(_groups(outline))


def _convergence(result: ResultRecord, bound: float | None) -> Iterator[Picture]:
    before = result.distance_before
    history = [entry for entry in result.history if np.isfinite(entry.best_distance)]
    if len(history) < _FEWEST_POINTS or before == 0:
        return
    last = history[-1].best_distance
    # The search counts in float32 and the result in float64, hence not equality.
    is_own = abs(last - result.distance) <= 1e-3 * max(before, result.distance)
    values = (result.distance, before, bound) if is_own else (last, None, None)
    shared = "" if is_own else " The distance is the mean over the models aligned together."
    if result.evidence != "weights":
        shared = " What activations say is taken off it, twice, as the search goes by both."
    yield Picture(
        title="Distance by step",
        source=svg(convergence(history, *values)),
        alt=f"Best distance from {number(history[0].best_distance)} to {number(values[0])} "
        f"over {len(history)} steps",
        caption="The best distance after each step, coloured by the stage of the search: lower is "
        "better, and a long flat end says that searching on in the same way finds nothing more."
        + shared,
    )


def _improvement(groups: tuple[GroupReport, ...]) -> Iterator[Picture]:
    known = [g for g in groups if np.isfinite([g.distance_before, g.distance_after]).all()]
    if not any(max(g.distance_before, g.distance_after) > 0 for g in known):
        return
    order = sorted(known, key=lambda g: g.distance_after - g.distance_before)
    most = {group.name for group in order[:MOST_BARS]}
    shown = [group for group in known if group.name in most]
    which = "every group"
    if len(shown) < len(known):
        which = f"the {len(shown)} of {len(known)} groups that gained most"
    yield Picture(
        title="Improvement by group",
        source=svg(improvement(shown)),
        alt=f"Distance before and after alignment of {which}; the table below has the numbers",
        caption=f"The squared distance of {which}, in the order of the network: the further the "
        "dark bar falls short of the light one, the better. A tensor between two groups counts in "
        "both.",
    )


def _cost_matrices(matrix: CostMatrix | None, groups: tuple[GroupReport, ...]) -> Iterator[Picture]:
    if matrix is None or not matrix.before:
        return
    before, after = np.asarray(matrix.before), np.asarray(matrix.after)
    if not np.isfinite([before, after]).all():
        return
    old, new = float(np.diag(before).mean()), float(np.diag(after).mean())
    thinned = ""
    if len(before) < matrix.units:
        thinned = f" {len(before)} of the {matrix.units} units are shown, equally spaced."
    inside = {child.name: group.name for group in groups for child in group.inside}
    which = "in the group that gained most"
    if matrix.group in inside:
        which = f"inside the units of {inside[matrix.group]}, the group that gained most"
    yield Picture(
        title=f"Costs in group {matrix.group}",
        source=png(cost_matrices(matrix)),
        alt=f"Cost matrix of group {matrix.group} before and after: the mean of the diagonal goes "
        f"from {number(old, 4)} to {number(new, 4)}",
        caption="The squared distance of each unit of the target (row) to each unit of the source "
        f"(column), {which}: a dark diagonal is good, for each unit then "
        f"lies on its partner. The mean of the diagonal goes from {number(old, 4)} to "
        f"{number(new, 4)}; over all pairs it is {number(float(before.mean()), 4)}.{thinned}",
    )


def _beam_width(rows: tuple[WidthRow, ...]) -> Iterator[Picture]:
    if len(rows) < _FEWEST_POINTS:
        return
    best = min(rows, key=lambda row: row.distance)
    first = rows[0]
    share = 1 - best.distance / first.distance if first.distance > 0 else 0.0
    yield Picture(
        title="Width of the beam",
        source=svg(beam_width(rows)),
        alt=f"Distance {number(first.distance)} at width {first.width}, {number(best.distance)} "
        f"at width {best.width}",
        caption="What the layer-wise beam alone finds at each width, and its time: good is the "
        "smallest width from which the distance stays flat. The best here is "
        f"{number(best.distance)} at width {best.width}, {percent(share, 2)} below width "
        f"{first.width}.",
    )


def _groups(outline: Outline | None) -> Iterator[Picture]:
    if outline is None or not outline.groups:
        return
    placed = layout(outline)
    if not placed.lanes:
        return
    count = plural(len(outline.groups), "group")
    yield Picture(
        title="Groups over the network",
        source=svg(lane_chart(placed)),
        alt=f"{count} drawn as lines over the {plural(len(outline.modules), 'layer')} of the "
        "network; the table below has them all",
        caption=" ".join(_reading(placed, len(outline.groups))),
    )


def _reading(placed: Layout, groups: int) -> Iterator[str]:
    """Yield the sentences that say how to read the picture of the groups."""
    spans = [lane.span for lane in placed.lanes]
    yield (
        "Layers from top to bottom, in the order of the checkpoint. Each coloured line is a group "
        "of units that are reordered together in every layer where it has a dot; groups that meet "
        "in a layer are joined. On the right, where a group begins, its number of units."
    )
    if any(span.parent for span in spans):
        yield "Thin lines are groups inside each unit of the group on their left."
    if any(span.gauge for span in spans):
        yield "Units of hollow dots may also change their sign or scale, as said on the right."
    if any(module is not None and module.fixed for module in placed.rows):
        yield "A grey square marks inputs or outputs of a layer that stay in their order."
    left_out = [
        (placed.vectors, "layer", "with vectors only, such as norms"),
        (placed.hidden, "layer", "in the middle"),
        (groups - len(spans), "group", "for want of room"),
    ]
    said = [f"{plural(count, noun)} {which}" for count, noun, which in left_out if count]
    if said:
        yield f"Left out: {'; '.join(said)}."


def svg(figure: Figure) -> str:
    """Return a figure as a data URI, in vectors."""
    # As an image and not inline: identifiers of several figures cannot meet on the page.
    return _encoded(figure, "svg", "image/svg+xml", {"Date": None, "Creator": None})


def png(figure: Figure) -> str:
    """Return a figure as a data URI, in pixels."""
    return _encoded(figure, "png", "image/png", {"Software": None})


def _encoded(figure: Figure, form: str, media: str, metadata: dict[str, None]) -> str:
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=170, facecolor="white", metadata=metadata)
    return f"data:{media};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
