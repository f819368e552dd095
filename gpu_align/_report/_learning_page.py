"""The page of an experiment of learning on weights: rows, figures, checks and settings."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.style

from gpu_align._checkpoint import atomic_write
from gpu_align._report._figures import STYLE
from gpu_align._report._format import number, percent, plural
from gpu_align._report._learning_figures import bars, scatter
from gpu_align._report._pictures import png, svg
from gpu_align._report._tables import Table
from gpu_align._report._template import template

_SMALL = 5e-4
"""Below it three decimals say nothing."""


@dataclass(frozen=True)
class Pictures:
    """A figure of the page in one or more parts, side by side where there is room.

    Attributes:
        title: heading.
        parts: data URI of each, and what it shows for those who do not see it.
        caption: what one sees, and what is good.
    """

    title: str
    parts: tuple[tuple[str, str], ...]
    caption: str


def render_learning(document: Mapping[str, Any], title: str) -> str:
    """Return the HTML page of a study's JSON form; equal documents give equal text.

    Args:
        document: `Study.to_json()` of `gpu_align.learn`.
        title: heading of the page.
    """
    (measure, unit), *_ = document["measures"].items()
    reading = [row for row in document["rows"] if not row["listed_apart"]]
    best = max(reading, key=lambda row: row["mean"][measure])
    with matplotlib.style.context(["default", STYLE]):
        pictures = list(_pictures(document))
    return template("learning.html.j2").render(
        title=title,
        measure=measure,
        best=_written(best["mean"][measure], unit),
        model=_name(best),
        notes=document["notes"],
        pictures=pictures,
        table_content=_table(document, best),
        checks=_checks(document["checks"]),
        settings=dict(_settings(document["settings"])),
    )


def write_learning(document: Mapping[str, Any], path: str | os.PathLike[str], title: str) -> None:
    """Write the page of `render_learning` to a file, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    text = render_learning(document, title)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _pictures(document: Mapping[str, Any]) -> Iterator[Pictures]:
    (measure, unit), *_ = document["measures"].items()
    rows = document["rows"]
    apart = " Pale: may do more than read weights." if any(r["listed_apart"] for r in rows) else ""
    values = "; ".join(f"{_name(row)}: {_written(row['mean'][measure], unit)}" for row in rows)
    most = max(len(row["runs"]) for row in rows)
    yield Pictures(
        f"Model by model: {measure}",
        ((svg(bars(rows, measure, unit)), values),),
        "On networks of examples that no training has seen, with the standard deviation "
        f"over {plural(most, 'seed')} where there are several.{apart}",
    )
    for plot in document["plots"]:
        parts = tuple((png(scatter(panel)), _shown(panel)) for panel in plot["panels"])
        yield Pictures(plot["title"], parts, plot["caption"])


def _shown(panel: Mapping[str, Any]) -> str:
    """Say what a panel shows."""
    count = plural(len(panel["x"]), "network")
    across, up = panel["labels"]
    axes = f": {up} over {across}" if up else ""
    color = f", coloured by {panel['color_label']}" if panel["color"] is not None else ""
    return f"{panel['title']}, {count}{axes}{color}"


def _table(document: Mapping[str, Any], best: Mapping[str, Any]) -> Table:
    measures, rows = document["measures"], document["rows"]
    columns: dict[str, list[str]] = {
        "model": [_name(row) for row in rows],
    }
    for name, unit in measures.items():
        columns[name] = [_with_spread(row, name, unit) for row in rows]
    columns["parameters"] = [f"{row['parameters']:,}" if row["parameters"] else "" for row in rows]
    columns["CPU\u00a0s"] = [number(row["seconds"], 3) if row["seconds"] else "" for row in rows]
    return Table(
        title="Model by model",
        note="± standard deviation over the seeds. CPU s: of one training. Settings and epochs are "
        "chosen by held-back networks, never by those that the table is about.",
        columns=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        best=rows.index(best),
    )


def _checks(checks: Mapping[str, float]) -> Table | None:
    """Tabulate the checks of the data; None without any."""
    if not checks:
        return None
    rows = tuple((name, number(value, 4)) for name, value in checks.items())
    return Table(title="Checks of the data", note="", columns=("check", "value"), rows=rows)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['model']}: {row['form']}" if row["form"] else str(row["model"])


def _with_spread(row: Mapping[str, Any], name: str, unit: str) -> str:
    spread = row["spread"][name]
    text = _written(row["mean"][name], unit)
    if spread is None:
        return text
    return f"{text} ± {100 * spread:.1f}" if unit == "%" else f"{text} ± {_written(spread, unit)}"


def _written(value: float, unit: str) -> str:
    if unit == "%":
        return percent(value)
    return number(value, 2) if 0 < abs(value) < _SMALL else f"{value:.3f}".replace("-", "−")


def _settings(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{before}{name}, ")
        else:
            yield f"{before}{name}", str(value)
