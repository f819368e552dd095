"""The page of an experiment of learning on weights: rows, figures, checks and settings."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.style

from gpu_align._checkpoint import atomic_write
from gpu_align._report._figures import STYLE
from gpu_align._report._format import number, percent, plural
from gpu_align._report._learning_figures import bars, scatter
from gpu_align._report._pictures import Picture, png, svg
from gpu_align._report._tables import Table
from gpu_align._report._template import template


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


def _pictures(document: Mapping[str, Any]) -> Iterator[Picture]:
    (measure, unit), *_ = document["measures"].items()
    rows = document["rows"]
    apart = " Pale: may do more than read weights." if any(r["listed_apart"] for r in rows) else ""
    yield Picture(
        title=f"Model by model: {measure}",
        source=svg(bars(rows, measure, unit)),
        alt="; ".join(f"{_name(row)}: {_written(row['mean'][measure], unit)}" for row in rows),
        caption="On networks of examples that no training has seen, with the standard deviation "
        f"over {plural(len(rows[0]['runs']), 'seed')} where there are several.{apart}",
    )
    for plot in document["plots"]:
        yield Picture(
            title=plot["title"],
            source=png(scatter(plot["panels"])),
            alt=f"{plot['title']}: {', '.join(panel['title'] for panel in plot['panels'])}",
            caption=plot["caption"],
        )


def _table(document: Mapping[str, Any], best: Mapping[str, Any]) -> Table:
    measures, rows = document["measures"], document["rows"]
    columns: dict[str, list[str]] = {
        "model": [_name(row) for row in rows],
    }
    for name, unit in measures.items():
        columns[name] = [_with_spread(row, name, unit) for row in rows]
    columns["parameters"] = [f"{row['parameters']:,}" if row["parameters"] else "" for row in rows]
    columns["CPU s"] = [number(row["seconds"], 3) if row["seconds"] else "" for row in rows]
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
    return f"{text} ± {100 * spread:.1f}" if unit == "%" else f"{text} ± {number(spread, 2)}"


def _written(value: float, unit: str) -> str:
    return percent(value) if unit == "%" else number(value, 3)


def _settings(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{before}{name}, ")
        else:
            yield f"{before}{name}", str(value)
