"""The page of an aligned zoo: how far its models were, how near they are, and what failed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from gpu_align._checkpoint import atomic_write
from gpu_align._errors import InputError
from gpu_align._report._figures import AFTER, BEFORE, STAGES, STYLE, WIDTH, drawable, legend_above
from gpu_align._report._format import number, percent, plural
from gpu_align._report._pictures import Picture, svg
from gpu_align._report._tables import Table
from gpu_align._report._template import template

_MOST_PICTURED = 4  # families
_MOST_TENSORS = 24


def render_zoo(data: Mapping[str, Any], title: str = "Zoo report") -> str:
    """Return the HTML page of an aligned zoo.

    Args:
        data: `ZooAlignment.data`, or what its summary.json holds.
        title: heading of the page.

    Raises:
        InputError: it is something else.
    """
    try:
        return _render(data, title)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"this is not the summary of an aligned zoo ({type(error).__name__}: {error}); "
            "expected summary.json of the output of `gpu-align zoo align`"
        ) from error


def write_zoo_report(
    data: Mapping[str, Any], path: str | os.PathLike[str], *, title: str = "Zoo report"
) -> None:
    """Write the page of `render_zoo` to a file, whole or not at all.

    Raises:
        InputError: the data are something else, or the file cannot be written.
    """
    text = render_zoo(data, title)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _render(data: Mapping[str, Any], title: str) -> str:
    families = data["families"]
    largest = sorted(families, key=lambda name: -families[name]["aligned"])
    with matplotlib.style.context(["default", STYLE]):
        pictures = [
            picture
            for name in largest[:_MOST_PICTURED]
            for picture in (*_distances(name, families[name]), *_spreads(name, families[name]))
        ]
        pictures += list(_failures(data["failed"]))
    before, after = (_overall(families, name) for name in ("mean_distance_before", "mean_distance"))
    return template("zoo.html.j2").render(
        title=title,
        aligned=f"{data['aligned']:,}",
        models=f"{data['models']:,}",
        before=number(before, 4),
        after=number(after, 4),
        speed=number(data["models_per_second"], 3) if data["models_now"] else "",
        sentences=list(_sentences(data)),
        pictures=pictures,
        tables=[table for table in (_family_table(families), _failure_table(data)) if table],
        settings=_settings(data),
    )


def _overall(families: Mapping[str, Any], name: str) -> float | None:
    """Return a mean over all models that were aligned."""
    known = [(f["aligned"], f[name]) for f in families.values() if f[name] is not None]
    total = sum(count for count, _ in known)
    return sum(count * value for count, value in known) / total if total else None


def _sentences(data: Mapping[str, Any]) -> Iterator[str]:
    failed = sum(data["failed"].values())
    if failed:
        yield f"{plural(failed, 'model')} could not be aligned; the index says why for each."
    checked = [f for f in data["families"].values() if f["checked"]]
    worst = [f["largest_function_difference"] for f in checked]
    known = [value for value in worst if value is not None]
    if known:
        yield (
            "The functions were compared before and after: the outputs differ by at most "
            f"{number(max(known), 2)} relative."
        )
    if len(checked) < len(data["families"]):
        yield (
            "Functions were not compared where no model was given: there the names were read as a "
            "plain chain of layers, or a spec was trusted."
        )


def _distances(name: str, family: Mapping[str, Any]) -> Iterator[Picture]:
    histogram = family["histogram"]
    if not histogram:
        return
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    edges = np.asarray(histogram["edges"])
    for key, color in (("before", BEFORE), ("after", AFTER)):
        axes.stairs(histogram[key], edges, fill=True, color=color, alpha=0.85, label=key)
    bound = family["mean_lower_bound"]
    if bound is not None and bound > 0:
        axes.axvline(bound, color=STAGES[1], linestyle=":", label="mean lower bound")
    axes.set_xlim(left=0)
    axes.set_xlabel("squared distance to the target")
    axes.set_ylabel("models")
    legend_above(figure, axes)
    before, after = number(family["mean_distance_before"], 4), number(family["mean_distance"], 4)
    yield Picture(
        title=f"Distances of {name}",
        source=svg(figure),
        alt=f"Histogram of the distances: on average {before} before and {after} after alignment",
        caption="How many models are how far from their target, before and after. Good is a second "
        "hill far to the left of the first; no order of units is closer than the lower bound.",
    )


def _spreads(name: str, family: Mapping[str, Any]) -> Iterator[Picture]:
    spread = family["spread"]
    total = {side: sum(entry[side] for entry in spread.values()) for side in ("before", "after")}
    if not total["before"]:
        return
    shown = sorted(spread, key=lambda tensor: -spread[tensor]["before"])[:_MOST_TENSORS]
    shown = [tensor for tensor in spread if tensor in shown]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.26 * len(shown)), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    for side, height, color in (("before", 0.78, BEFORE), ("after", 0.42, AFTER)):
        values = [spread[tensor][side] for tensor in shown]
        axes.barh(places, values, height=height, color=color, label=side)
    axes.set_yticks(places, [drawable(tensor) for tensor in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_xlabel("mean squared distance to the mean network")
    legend_above(figure, axes)
    share = percent(total["after"] / total["before"] - 1)
    yield Picture(
        title=f"Distance of {name} to its mean network",
        source=svg(figure),
        alt=f"Bars for each tensor; in all {number(total['before'], 4)} before and "
        f"{number(total['after'], 4)} after alignment",
        caption="How far the models are from the mean of all, tensor by tensor: in all "
        f"{number(total['before'], 4)} before and {number(total['after'], 4)} after alignment "
        f"({share}). What is left is what models differ in, not the names of their units.",
    )


def _failures(failed: Mapping[str, int]) -> Iterator[Picture]:
    if not failed:
        return
    names = sorted(failed, key=lambda name: -failed[name])
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(names)), [failed[name] for name in names], color=STAGES[1])
    axes.bar_label(bars, padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("models")
    yield Picture(
        title="What could not be aligned",
        source=svg(figure),
        alt=", ".join(f"{failed[name]} {name}" for name in names),
        caption="damaged: cannot be read; foreign: of another architecture, or of none that is "
        "known; unusable: weights that are not finite numbers; changed: another function; "
        "unsolved: an assignment failed; lost: its worker died.",
    )


def _family_table(families: Mapping[str, Any]) -> Table | None:
    if not families:
        return None
    names = list(families)
    known = [families[name] for name in names]
    columns: dict[str, Sequence[str]] = {
        "family": names,
        "models": [f"{f['models']:,}" for f in known],
        "aligned": [f"{f['aligned']:,}" for f in known],
        "before": [number(f["mean_distance_before"], 4) for f in known],
        "after": [number(f["mean_distance"], 4) for f in known],
        "bound": [number(f["mean_lower_bound"], 4) for f in known],
        "function": [number(f["largest_function_difference"], 2) for f in known],
    }
    return Table(
        title="Families",
        note="Mean squared distances to the target; function: the largest relative difference of "
        "outputs.",
        columns=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
    )


def _failure_table(data: Mapping[str, Any]) -> Table | None:
    rows = [
        (str(name), kind, str(reason))
        for kind, some in data["examples"].items()
        for name, reason in some
    ]
    if not rows:
        return None
    return Table(
        title="Some that failed",
        note="All of them are in the index.",
        columns=("model", "kind", "reason"),
        rows=tuple(rows),
        words=(1, 2),
    )


def _settings(data: Mapping[str, Any]) -> dict[str, str]:
    settings = data["settings"]
    named = {
        "source": settings["source"],
        "target": settings["target"],
        "found by": settings["search"],
        "metric": settings["metric"],
        "seed": settings["seed"],
        "layout": settings["layout"],
        "engine": data.get("engine"),
        "workers": data.get("workers"),
        "seconds": number(data["seconds"], 4),
        "seconds of processors": number(data["cpu_seconds"], 4),
        "versions": ", ".join(f"{name} {text}" for name, text in data["versions"].items()),
    }
    return {name: str(value) for name, value in named.items() if value not in (None, "")}
