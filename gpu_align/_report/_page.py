"""The page: results in, one HTML file out that needs nothing else."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.style

from gpu_align._align import ResultRecord, evidence_in_words, status_in_words
from gpu_align._checkpoint import atomic_write
from gpu_align._merge import BarrierResult, MergeResult
from gpu_align._report._barrier_page import barrier_pictures, render_barrier
from gpu_align._report._checks import Check, checks
from gpu_align._report._figures import STYLE
from gpu_align._report._format import number, percent
from gpu_align._report._merge_page import merge_pictures, merge_tables, render_merge
from gpu_align._report._parse import Entry, Results, finite, read_entries
from gpu_align._report._pictures import Picture, pictures
from gpu_align._report._tables import (
    Table,
    comparison_table,
    group_table,
    summary_table,
    width_table,
)
from gpu_align._report._template import template

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


@dataclass(frozen=True)
class Study:
    """What came after an alignment: the loss between both networks, and a merge of them."""

    barrier: BarrierResult
    merge: MergeResult


def render_report(
    data: Results | BarrierResult | MergeResult,
    title: str = TITLE,
    *,
    names: Sequence[str] = (),
    studies: Sequence[Study] = (),
) -> str:
    """Return the HTML page of one result or several, of a barrier or of a merge.

    Equal data gives equal text: nothing depends on the time or the place.

    Args:
        data: an `AlignmentResult`, its `to_json()`, what `read_result` returns, or a sequence of
            these. Its "studies" may have "beam_width" (see `beam_width_study`) and
            "comparison", a list of dicts with "search", "distance" and any of "gap_percent" (by
            default taken from the distances), "accuracy_before", "accuracy_after" (accuracies
            from 0 to 1) and "seconds". A `BarrierResult` and a `MergeResult` have pages of their
            own.
        title: heading of the page.
        names: headings of the results; a "name" in the JSON form goes before.
        studies: what came after each result; none by default.

    Raises:
        InputError: something is not a result.
    """
    if isinstance(data, BarrierResult):
        return render_barrier(data, title)
    if isinstance(data, MergeResult):
        return render_merge(data, title)
    entries = read_entries(data, names)
    known: list[Study | None] = [*studies] or [None] * len(entries)
    pairs = zip(entries, known, strict=True)
    return template("report.html.j2").render(
        title=title,
        summary=summary_table(entries),
        sections=[_section(*pair, f"result-{n}") for n, pair in enumerate(pairs, 1)],
    )


def write_report(
    data: Results | BarrierResult | MergeResult,
    path: str | os.PathLike[str],
    *,
    title: str = TITLE,
    names: Sequence[str] = (),
    studies: Sequence[Study] = (),
) -> None:
    """Write the page of `render_report` to a file, whole or not at all.

    Raises:
        InputError: something is not a result, or the file cannot be written.
    """
    text = render_report(data, title, names=names, studies=studies)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _section(entry: Entry, study: Study | None, anchor: str) -> _Section:
    result = entry.result
    symmetries, status = finite(result.log10_symmetries), result.status
    tables = [width_table(entry.widths), group_table(result.groups)]
    figures = pictures(entry)
    if study is not None:
        figures += _pictures_after(study)
        tables += merge_tables(study.merge)
    return _Section(
        anchor=anchor,
        name=entry.name,
        distance=number(result.distance),
        before=number(result.distance_before),
        bound="" if entry.bound is None else number(entry.bound),
        reduction=percent(entry.reduction),
        log10_symmetries="" if symmetries is None else f"{symmetries:.1f}",
        signed_units=0 if result.outline is None else result.outline.signed_units,
        status="" if status is None else str(status).replace("_", " "),
        status_note=status_in_words(result),
        checks=checks(entry),
        pictures=figures,
        comparison=comparison_table(entry.comparison),
        tables=[table for table in tables if table is not None],
        settings=_settings(result),
        versions=result.versions,
    )


def _pictures_after(study: Study) -> list[Picture]:
    with matplotlib.style.context(["default", STYLE]):
        return [*barrier_pictures(study.barrier), *merge_pictures(study.merge)]


def _settings(result: ResultRecord) -> dict[str, str]:
    named = {
        "evidence": evidence_in_words(result),
        "found by": result.search,
        "seconds": None if finite(result.seconds) is None else number(result.seconds, 3),
        "assignment problems": result.assignments,
        "metric": result.metric,
        "seed": result.seed,
        "device": result.device,
        "symmetries": result.origin,
    }
    return {name: str(value) for name, value in named.items() if value not in (None, "")}
