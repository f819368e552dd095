"""The page: results in, one HTML file out that needs nothing else."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from gpu_align._checkpoint import atomic_write
from gpu_align._report._checks import Check, checks
from gpu_align._report._format import number, percent
from gpu_align._report._parse import ParsedResult, parse_results
from gpu_align._report._pictures import Picture, pictures
from gpu_align._report._tables import (
    Table,
    comparison_table,
    group_table,
    summary_table,
    width_table,
)

Results = Mapping[str, Any] | Sequence[Mapping[str, Any]]
TITLE = "Alignment report"


@dataclass(frozen=True)
class _Section:
    """What the template shows of one result, all numbers as text."""

    anchor: str
    name: str
    distance: str
    before: str
    bound: str
    reduction: str
    log10_symmetries: str
    signed_units: int
    status: str
    status_note: str
    checks: list[Check]
    pictures: list[Picture]
    comparison: Table | None
    tables: list[Table]
    settings: dict[str, str]
    versions: Mapping[str, str]


def render_report(data: Results, title: str = TITLE) -> str:
    """Return the HTML page of one result or several.

    Equal data gives equal text: nothing depends on the time or the place.

    Args:
        data: `AlignmentResult.to_json()`, what `read_result` returns, or a sequence of these. Each
            may have a "name". Its "studies" may have "beam_width" (see `beam_width_study`) and
            "comparison", a list of dicts with "search", "distance" and any of "gap_percent" (by
            default taken from the distances), "accuracy_before", "accuracy_after" (accuracies
            from 0 to 1) and "seconds".
        title: heading of the page.

    Raises:
        InputError: something is not a result.
    """
    results = parse_results(data)
    return template("report.html.j2").render(
        title=title,
        summary=summary_table(results),
        sections=[_section(result, f"result-{n}") for n, result in enumerate(results, 1)],
    )


def write_report(data: Results, path: str | os.PathLike[str], *, title: str = TITLE) -> None:
    """Write the page of `render_report` to a file, whole or not at all.

    Raises:
        InputError: something is not a result, or the file cannot be written.
    """
    text = render_report(data, title)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def template(name: str) -> Template:
    """Return a template of the report."""
    environment = Environment(
        loader=PackageLoader("gpu_align._report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _section(result: ParsedResult, anchor: str) -> _Section:
    symmetries = result.log10_symmetries
    tables = (width_table(result.widths), group_table(result.groups))
    return _Section(
        anchor=anchor,
        name=result.name,
        distance=number(result.distance),
        before=number(result.before),
        bound="" if result.bound is None else number(result.bound),
        reduction=percent(result.reduction),
        log10_symmetries="" if symmetries is None else f"{symmetries:.1f}",
        signed_units=0 if result.outline is None else result.outline.signed_units,
        status=result.texts.get("status", "").replace("_", " "),
        status_note=result.texts.get("status_note", ""),
        checks=checks(result),
        pictures=pictures(result),
        comparison=comparison_table(result.comparison),
        tables=[table for table in tables if table is not None],
        settings=_settings(result),
        versions=result.versions,
    )


def _settings(result: ParsedResult) -> dict[str, str]:
    named = {
        "found by": result.texts.get("search"),
        "seconds": None if result.seconds is None else number(result.seconds, 3),
        "assignment problems": result.texts.get("assignments"),
        "metric": result.texts.get("metric"),
        "seed": result.texts.get("seed"),
        "device": result.texts.get("device"),
        "symmetries": result.texts.get("origin"),
    }
    return {name: text for name, text in named.items() if text}
