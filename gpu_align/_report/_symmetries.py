"""The page of a spec: its groups over the network, what they lie on, and what stays fixed."""

import os
from collections.abc import Iterator

from gpu_align._checkpoint import atomic_write
from gpu_align._errors import folded
from gpu_align._report._format import plural
from gpu_align._report._pictures import pictures_of_groups
from gpu_align._report._tables import Table
from gpu_align._report._template import template
from gpu_align._symmetry import (
    Outline,
    PermutationSpec,
    axis_names,
    ops_without_rule,
    outline,
    pins_by_reason,
)

TITLE = "Symmetries"
_SHOWN_NAMES = 4


def render_symmetries(spec: PermutationSpec, title: str = TITLE) -> str:
    """Return the HTML page of a spec; equal specs give equal text."""
    found = outline(spec)
    tables = (_group_table(spec, found), _pin_table(spec))
    return template("symmetries.html.j2").render(
        title=title,
        log10_symmetries=f"{spec.log10_symmetries:.1f}",
        signed_units=found.signed_units,
        counts={
            "Groups": len(found.movable),
            "Units": sum(found.units(span) for span in found.movable),
        },
        notes=list(_notes(spec, found)),
        pictures=pictures_of_groups(found),
        tables=[table for table in tables if table is not None],
    )


def write_symmetries(
    spec: PermutationSpec, path: str | os.PathLike[str], *, title: str = TITLE
) -> None:
    """Write the page of `render_symmetries` to a file, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    text = render_symmetries(spec, title)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _notes(spec: PermutationSpec, found: Outline) -> Iterator[str]:
    """Yield sentences on what the headline does not say."""
    if spec.origin:
        yield f"Symmetries: {spec.origin}."
    inside = sum(span.parent is not None for span in found.groups)
    if inside:
        yield f"{plural(inside, 'group')} of them inside the units of another one."
    if found.scaled_units:
        yield f"{plural(found.scaled_units, 'unit')} may also be multiplied by a positive number."
    if spec.norm_scales:
        yield (
            f"The rows of {plural(len(spec.norm_scales), 'layer')} may be multiplied by positive "
            "numbers, for a batch norm divides them out."
        )
    for op in ops_without_rule(spec):
        yield (
            f"{op} has no rule, so what it touches is fixed; see “How to add an op rule” in "
            "CONTRIBUTING.md."
        )


def _group_table(spec: PermutationSpec, found: Outline) -> Table | None:
    """Tabulate the groups, each child under its parent; None without groups."""
    if not found.groups:
        return None
    columns = {
        "group": [span.name for span in found.groups],
        "units": [found.units_in_words(span) for span in found.groups],
        "gauge": [span.gauge for span in found.groups],
        "lies on": [folded(axis_names(spec, span.name), _SHOWN_NAMES) for span in found.groups],
    }
    notes = {
        "Indented: groups inside each unit of the group above.": any(
            span.parent for span in found.groups
        ),
        "Gauge: units may also be negated (sign) or multiplied by a positive number (scale).": any(
            columns["gauge"]
        ),
    }
    shown = {name: cells for name, cells in columns.items() if name != "gauge" or any(cells)}
    return Table(
        title="Groups",
        note=" ".join(note for note, is_needed in notes.items() if is_needed),
        columns=tuple(shown),
        rows=tuple(zip(*shown.values(), strict=True)),
        words=(2,),
        lists=(len(shown) - 1,),
        indented=tuple(n for n, span in enumerate(found.groups) if span.parent is not None),
    )


def _pin_table(spec: PermutationSpec) -> Table | None:
    """Tabulate the fixed axes by reason; None without any."""
    pins = pins_by_reason(spec.pins)
    if not pins:
        return None
    rows = (
        (
            reason,
            str(len(axes)),
            folded([f"{tensor}[{axis}]" for tensor, axis in axes], _SHOWN_NAMES),
        )
        for reason, axes in pins.items()
    )
    return Table(
        title="What stays fixed",
        note="",
        columns=("because of", "axes", "for instance"),
        rows=tuple(rows),
        lists=(2,),
    )
