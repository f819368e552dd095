"""From the JSON form of a result to typed values, with what is missing told apart from zero."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_align._align import PRESERVED, SCHEMA, CostMatrix, GroupReport, Inside
from gpu_align._errors import InputError
from gpu_align._search import Progress
from gpu_align._symmetry import Outline

_ADVICE = "expected `AlignmentResult.to_json()` or what `read_result` returns"


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
class ParsedResult:
    """What the page shows of one result; `name` is empty for a single one without."""

    name: str
    distance: float
    before: float
    bound: float | None
    log10_symmetries: float | None
    groups: tuple[GroupReport, ...]
    outline: Outline | None
    history: tuple[Progress, ...]
    cost_matrix: CostMatrix | None
    function_difference: float | None
    function_note: str
    texts: Mapping[str, str]
    seconds: float | None
    versions: Mapping[str, str]
    widths: tuple[WidthRow, ...]
    comparison: tuple[ComparisonRow, ...]

    @property
    def reduction(self) -> float | None:
        """Share of the distance that alignment has taken away."""
        return None if self.before == 0 else 1 - self.distance / self.before

    @property
    def function_preserved(self) -> bool | None:
        """Whether the outputs agree; None if they were not compared."""
        return None if self.function_difference is None else self.function_difference <= PRESERVED


def parse_results(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[ParsedResult]:
    """Check and convert one result or several.

    Raises:
        InputError: it is no result, or a part of it cannot be understood.
    """
    results = [data] if isinstance(data, Mapping) else data
    if isinstance(results, str) or not isinstance(results, Sequence) or not results:
        raise InputError(f"cannot make a report of {type(data).__name__}: {_ADVICE}, or several")
    return [_parse(entry, f"result {n}", len(results) == 1) for n, entry in enumerate(results, 1)]


def _parse(data: Mapping[str, Any], place: str, is_only: bool) -> ParsedResult:
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise InputError(f"{place} is not a result ({SCHEMA}); {_ADVICE}")
    name = str(data.get("name") or ("" if is_only else place.capitalize()))
    try:
        return _convert(data, name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{place} cannot be understood: {error!r}; {_ADVICE}") from error


def _convert(data: Mapping[str, Any], name: str) -> ParsedResult:
    matrix, difference = data.get("cost_matrix"), data.get("function_difference")
    outline = data.get("outline")
    studies = data.get("studies") or {}
    shown = ("search", "status", "status_note", "metric", "seed", "device", "origin", "assignments")
    return ParsedResult(
        name=name,
        distance=float(data["distance"]),
        before=float(data["distance_before"]),
        bound=_finite(data.get("lower_bound")),
        log10_symmetries=_finite(data.get("log10_symmetries")),
        groups=tuple(_group(entry) for entry in data.get("groups") or ()),
        outline=None if outline is None else Outline.from_json(outline),
        history=tuple(Progress.from_json(entry) for entry in data.get("history") or ()),
        cost_matrix=None if matrix is None else _matrix(CostMatrix(**matrix)),
        function_difference=None if difference is None else float(difference),
        function_note=str(data.get("function_note") or "not checked"),
        texts={key: str(data[key]) for key in shown if data.get(key) is not None},
        seconds=_finite(data.get("seconds")),
        versions={str(k): str(v) for k, v in (data.get("versions") or {}).items()},
        widths=_widths(studies.get("beam_width") or ()),
        comparison=_comparison(studies.get("comparison") or ()),
    )


def _group(entry: Mapping[str, Any]) -> GroupReport:
    """Read a group; results of earlier releases do not say what is inside it."""
    inside = tuple(Inside(**child) for child in entry.get("inside") or ())
    return GroupReport(**{**entry, "inside": inside})


def _widths(rows: Sequence[Mapping[str, Any]]) -> tuple[WidthRow, ...]:
    parsed = []
    for row in rows:
        distance, seconds = _finite(row.get("distance")), _finite(row.get("seconds"))
        if distance is not None and seconds is not None:
            parsed.append(WidthRow(int(row["width"]), distance, seconds))
    return tuple(parsed)


def _matrix(matrix: CostMatrix) -> CostMatrix:
    shapes = {(len(rows), *(len(row) for row in rows)) for rows in (matrix.before, matrix.after)}
    side = len(matrix.before)
    if shapes != {(side,) * (side + 1)}:
        raise ValueError(f"the cost matrix of {matrix.group!r} is not square")
    return matrix


def _comparison(rows: Sequence[Mapping[str, Any]]) -> tuple[ComparisonRow, ...]:
    distances = [_finite(row.get("distance")) for row in rows]
    best = min((d for d in distances if d is not None), default=0.0)
    parsed = []
    for row, distance in zip(rows, distances, strict=True):
        gap = _finite(row.get("gap_percent"))
        if gap is None and distance is not None and best > 0:
            gap = 100 * (distance / best - 1)
        parsed.append(
            ComparisonRow(
                search=str(row["search"]),
                distance=distance,
                gap_percent=gap,
                accuracy_before=_finite(row.get("accuracy_before")),
                accuracy_after=_finite(row.get("accuracy_after")),
                seconds=_finite(row.get("seconds")),
            )
        )
    return tuple(parsed)


def _finite(value: object) -> float | None:
    """Return a float; None for what is missing, infinite or not a number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
