"""The tables of the report: cells as text, already rounded."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_align._align import GroupReport
from gpu_align._report._format import aligned, number, percent, share
from gpu_align._report._parse import ComparisonRow, Entry, WidthRow


@dataclass(frozen=True)
class Table:
    """A table whose first column is a name and whose others are numbers unless in `words`.

    Attributes:
        title: heading.
        note: a sentence below it.
        columns: headings of the columns.
        rows: cells of each row.
        best: number of the row that is marked, None for none.
        words: numbers of further columns that hold words.
        links: for each row the anchor that its name leads to; empty for none.
        lists: numbers of columns of names that may be broken anywhere.
        indented: numbers of rows that belong to the row above them.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None = None
    words: tuple[int, ...] = ()
    links: tuple[str, ...] = ()
    lists: tuple[int, ...] = ()
    indented: tuple[int, ...] = ()


def group_table(groups: Sequence[GroupReport]) -> Table | None:
    """Tabulate the groups in network order, with those inside them; None without groups."""
    if not groups:
        return None
    before = [group.distance_before for group in groups]
    distances = aligned([*before, *(group.distance_after for group in groups)])
    rows: list[tuple[str, ...]] = []
    indented: list[int] = []
    for place, group in enumerate(groups):
        rows.append(
            (
                *(group.name, str(group.units), str(group.moved)),
                *(distances[place], distances[len(groups) + place]),
                *(percent(_change(group)), number(group.relative_gap, 2)),
            )
        )
        for child in group.inside:
            indented.append(len(rows))
            units = f"{group.units} × {child.units}"
            rows.append((child.name, units, str(child.moved), "", "", "", ""))
    note = (
        "Moved: units that change place or sign. Gap: how much another assignment of this group "
        "could gain with all others fixed, relative to |dual|; 0 to rounding is optimal."
    )
    if indented:
        note += (
            " Indented: groups inside each unit of the group above; they count in its distances "
            "and are assigned and certified with it."
        )
    return Table(
        title="Groups",
        note=note,
        columns=("group", "units", "moved", "before", "after", "change", "gap"),
        rows=tuple(rows),
        indented=tuple(indented),
    )


def comparison_table(rows: Sequence[ComparisonRow]) -> Table | None:
    """Tabulate several searches and mark the one with the smallest distance; None without rows."""
    if not rows:
        return None
    distances = [row.distance for row in rows]
    known = [distance for distance in distances if distance is not None]
    columns = {
        "search": [row.search for row in rows],
        "distance": aligned(distances),
        "gap to best": [percent(share(row.gap_percent, 100), 2) for row in rows],
        "midpoint before": [percent(row.accuracy_before, 2) for row in rows],
        "midpoint after": [percent(row.accuracy_after, 2) for row in rows],
        "seconds": [number(row.seconds, 3) for row in rows],
    }
    measured = {
        "midpoint before": any(row.accuracy_before is not None for row in rows),
        "midpoint after": any(row.accuracy_after is not None for row in rows),
        "seconds": any(row.seconds is not None for row in rows),
    }
    shown = {name: cells for name, cells in columns.items() if measured.get(name, True)}
    note = "The smallest distance is marked."
    if measured["midpoint before"] or measured["midpoint after"]:
        note += " Midpoint: accuracy of the mean of both networks, without and with alignment."
    return Table(
        title="Searches compared",
        note=note,
        columns=tuple(shown),
        rows=tuple(zip(*shown.values(), strict=True)),
        best=distances.index(min(known)) if known else None,
    )


def width_table(rows: Sequence[WidthRow]) -> Table | None:
    """Tabulate the beam-width study; None without rows."""
    if not rows:
        return None
    columns = (
        [str(row.width) for row in rows],
        aligned([row.distance for row in rows]),
        [number(row.seconds, 3) for row in rows],
    )
    return Table(
        title="Width of the beam in numbers",
        note="The layer-wise beam alone, without refinement.",
        columns=("width", "distance", "seconds"),
        rows=tuple(zip(*columns, strict=True)),
    )


def summary_table(entries: Sequence[Entry]) -> Table | None:
    """Tabulate several results, with links to their sections; None for a single one."""
    if len(entries) < 2:
        return None
    verdicts = {True: "yes", False: "no", None: "not checked"}
    results = [entry.result for entry in entries]
    columns = (
        [entry.name for entry in entries],
        aligned([result.distance_before for result in results]),
        aligned([result.distance for result in results]),
        [percent(entry.reduction) for entry in entries],
        aligned([entry.bound for entry in entries]),
        [verdicts[result.function_preserved] for result in results],
        [number(result.seconds, 3) for result in results],
    )
    return Table(
        title="Results",
        note="",
        columns=("name", "before", "after", "reduction", "bound", "same function", "seconds"),
        rows=tuple(zip(*columns, strict=True)),
        words=(5,),
        links=tuple(f"result-{n}" for n in range(1, len(results) + 1)),
    )


def _change(group: GroupReport) -> float | None:
    return share(group.distance_after - group.distance_before, group.distance_before)
