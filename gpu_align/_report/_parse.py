"""From results to what a page shows, with what is missing told apart from zero."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from gpu_align._align import SCHEMA, ResultRecord
from gpu_align._errors import InputError

Result = ResultRecord | Mapping[str, Any]
Results = Result | Sequence[Result]
_ADVICE = "expected an `AlignmentResult`, its `to_json()` or what `read_result` returns"


@dataclass(frozen=True)
class WidthRow:
    """One line of the beam-width study."""

    width: int
    distance: float
    seconds: float


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the comparison of searches; None is not shown.

    Attributes:
        search: its name.
        distance: what it found.
        gap_percent: how far that is above the best, in per cent.
        accuracy_before, accuracy_after: accuracy of the mean of both networks, from 0 to 1,
            without and with alignment.
        seconds: time spent.
    """

    search: str
    distance: float | None
    gap_percent: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    seconds: float | None


@dataclass(frozen=True)
class Entry:
    """What the page shows of one result.

    Attributes:
        name: heading; empty for a single result without one.
        result: what is known about it.
        widths, comparison: its studies.
    """

    name: str
    result: ResultRecord
    widths: tuple[WidthRow, ...]
    comparison: tuple[ComparisonRow, ...]

    @property
    def bound(self) -> float | None:
        """The lower bound; None if it is not known."""
        return finite(self.result.lower_bound)

    @property
    def reduction(self) -> float | None:
        """Share of the distance that alignment has taken away."""
        before = self.result.distance_before
        return None if before == 0 else 1 - self.result.distance / before


def read_entries(data: Results, names: Sequence[str] = ()) -> list[Entry]:
    """Check and convert one result or several; `names` are for those that bring none.

    Raises:
        InputError: it is no result, or a part of it cannot be understood.
    """
    results = [data] if isinstance(data, ResultRecord | Mapping) else data
    if isinstance(results, str) or not isinstance(results, Sequence) or not results:
        raise InputError(f"cannot make a report of {type(data).__name__}: {_ADVICE}, or several")
    return [
        _entry(result, f"result {number}", name, is_only=len(results) == 1)
        for number, (result, name) in enumerate(zip_longest(results, names), 1)
    ]


def _entry(data: Result, place: str, name: str | None, *, is_only: bool) -> Entry:
    name = name or ("" if is_only else place.capitalize())
    is_json = isinstance(data, Mapping) and data.get("schema") == SCHEMA
    if not isinstance(data, ResultRecord) and not is_json:
        raise InputError(f"{place} is not a result ({SCHEMA}); {_ADVICE}")
    try:
        if isinstance(data, ResultRecord):
            result = data
        else:
            result, name = ResultRecord.from_json(data), str(data.get("name") or name)
        studies = result.studies
        widths = _widths(studies.get("beam_width") or ())
        return Entry(name, result, widths, _comparison(studies.get("comparison") or ()))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{place} cannot be understood: {repr(error)[:300]}; {_ADVICE}") from error


def _widths(rows: Sequence[Mapping[str, Any]]) -> tuple[WidthRow, ...]:
    parsed = []
    for row in rows:
        distance, seconds = finite(row.get("distance")), finite(row.get("seconds"))
        if distance is not None and seconds is not None:
            parsed.append(WidthRow(int(row["width"]), distance, seconds))
    return tuple(parsed)


def _comparison(rows: Sequence[Mapping[str, Any]]) -> tuple[ComparisonRow, ...]:
    distances = [finite(row.get("distance")) for row in rows]
    best = min((d for d in distances if d is not None), default=0.0)
    parsed = []
    for row, distance in zip(rows, distances, strict=True):
        gap = finite(row.get("gap_percent"))
        if gap is None and distance is not None and best > 0:
            gap = 100 * (distance / best - 1)
        parsed.append(
            ComparisonRow(
                search=str(row["search"]),
                distance=distance,
                gap_percent=gap,
                accuracy_before=finite(row.get("accuracy_before")),
                accuracy_after=finite(row.get("accuracy_after")),
                seconds=finite(row.get("seconds")),
            )
        )
    return tuple(parsed)


def finite(value: object) -> float | None:
    """Return a float; None for what is missing, infinite or not a number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
