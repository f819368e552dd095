"""The page of a barrier: headline, curves, table, plane and diagnosis."""

import math
from collections.abc import Iterator

import matplotlib.style
import numpy as np

from gpu_align._merge import BarrierResult, LossPlane
from gpu_align._report._barrier_figures import plane, segment
from gpu_align._report._figures import STYLE
from gpu_align._report._format import aligned, number, percent, plural
from gpu_align._report._pictures import Picture, png, svg
from gpu_align._report._tables import Table
from gpu_align._report._template import template


def render_barrier(result: BarrierResult, title: str) -> str:
    """Return the HTML page of a barrier; equal results give equal text."""
    after = result.curve(aligned=True)
    accuracy = after.accuracies[after.midpoint] if after.accuracies else None
    with matplotlib.style.context(["default", STYLE]):
        pictures = [*barrier_pictures(result), *_plane(result.plane)]
    return template("barrier.html.j2").render(
        title=title,
        before=number(result.barrier_before, 4),
        after=number(result.barrier, 4),
        accuracy="" if accuracy is None else percent(accuracy, 2),
        loss=number(after.losses[after.midpoint], 4),
        sentences=[*_measured(result), *result.findings, *result.notes],
        pictures=pictures,
        table_content=_table(result),
        settings=_settings(result),
    )


def _measured(result: BarrierResult) -> Iterator[str]:
    part = {"test": "test", "held": "held-back"}[result.part]
    yield f"Measured on {plural(result.examples, f'{part} example')}."
    if result.has_norms:
        yield (
            "The numbers above are with the statistics of the batch norms re-estimated at each "
            f"point, on {plural(result.statistics_examples, 'training example')}."
        )


def barrier_pictures(result: BarrierResult) -> Iterator[Picture]:
    """Yield the figure of the curves; none without finite losses."""
    curves = [curve for curve in result.curves if np.isfinite(curve.losses).any()]
    if not curves:
        return
    dashes = " Dashed: with interpolated statistics of the batch norms." if result.has_norms else ""
    yield Picture(
        title="Between the two networks",
        source=svg(segment(curves)),
        alt=f"Loss and accuracy along the segment from A to B; the barrier is "
        f"{number(result.barrier_before, 4)} as given and {number(result.barrier, 4)} aligned",
        caption="Loss, with a band of two standard errors, and accuracy of the networks between A "
        "and B. The barrier is the most by which a curve exceeds the line between its ends: good "
        f"is a curve without a hump.{dashes}",
    )


def _plane(found: LossPlane | None) -> Iterator[Picture]:
    if found is None or not np.isfinite(found.losses).any():
        return
    yield Picture(
        title="The plane through A, B and B aligned",
        source=png(plane(found)),
        alt="Contours of the loss on the plane through the three networks",
        caption="The loss on the plane through the weights of the three networks (Garipov et al. "
        "2018), on a logarithmic scale. Distances are those of the weights. Good is a valley "
        "that holds both A and B aligned.",
    )


def _table(result: BarrierResult) -> Table:
    rows = result.rows()
    columns = {
        "network": [row["network"] for row in rows],
        "barrier": aligned([round(row["barrier"], 6) for row in rows]),
        "± s.e.": [number(row["error"], 2) for row in rows],
        "at t": [number(row["at"], 3) for row in rows],
        "midpoint loss": [number(row["loss"], 4) for row in rows],
        "accuracy": [percent(row["accuracy"], 2) for row in rows],
        "ECE": [number(row["ece"], 3) for row in rows],
    }
    if rows[0]["accuracy"] is None:
        del columns["accuracy"], columns["ECE"]
    barriers = [row["barrier"] for row in rows]
    best = barriers.index(min(barriers)) if any(map(math.isfinite, barriers)) else None
    return Table(
        title="Barrier and midpoint",
        note="Midpoint: the plain average of both networks. ECE: expected calibration error. The "
        "standard error is from the spread of the batches.",
        columns=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        best=best,
    )


def _settings(result: BarrierResult) -> dict[str, str]:
    named = {
        "loss": result.loss,
        "squared distance before": number(result.distance_before),
        "squared distance aligned": number(result.distance),
        "metric": result.metric,
        "found by": result.search,
        "seconds to measure": number(result.seconds, 3),
        "seed": str(result.seed),
        "device": result.device,
        "versions": ", ".join(f"{name} {text}" for name, text in result.versions.items()),
    }
    if result.distance is None:
        del named["squared distance before"], named["squared distance aligned"]
    return {name: text for name, text in named.items() if text}
