"""The whole zoo in numbers: the index, and what a page shows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_align._checkpoint import atomic_write
from gpu_align._device import versions
from gpu_align._errors import CheckpointError
from gpu_align._zoo._plan import Plan
from gpu_align._zoo._result import INDEX, SCHEMA, SUMMARY
from gpu_align._zoo._shard import ROWS, SHARDS, SUMS
from gpu_align._zoo._sums import add_sums, load_sums, spreads
from gpu_align._zoo._table import join_rows, read_columns

_BINS = 48
_EXAMPLES = 5
_NUMBERS = ("distance_before", "distance", "lower_bound", "function_difference")


def write_index(out: Path, plan: Plan) -> None:
    """Join the rows of all shards, and those of pieces that could not be aligned."""

    def parts() -> Iterator[Path | Mapping[str, Sequence[Any]]]:
        for shard in plan.shards:
            yield out / SHARDS / shard.folder / ROWS
        if plan.failures:
            yield {
                "name": [piece.name for piece, _ in plan.failures],
                "status": [failure.kind for _, failure in plan.failures],
                "reason": [failure.reason for _, failure in plan.failures],
                "run": [piece.run for piece, _ in plan.failures],
            }

    with atomic_write(out / INDEX, CheckpointError) as temporary:
        join_rows(temporary, parts(), out)


def write_summary(out: Path, plan: Plan, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is known of the zoo as a whole, and return it.

    Args:
        out: the folder of the output.
        plan: what was done.
        about: how: engine, workers, seconds.
    """
    table = read_columns(out / INDEX, ["name", "family", "status", "reason"])
    failed: dict[str, int] = {}
    examples: dict[str, list[list[str]]] = {}
    for name, status, reason in zip(table["name"], table["status"], table["reason"], strict=True):
        if status != "aligned":
            failed[status] = failed.get(status, 0) + 1
            if len(some := examples.setdefault(status, [])) < _EXAMPLES:
                some.append([name, reason])
    count = len(table["name"])
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "models": count,
        "aligned": count - sum(failed.values()),
        "failed": failed,
        "examples": examples,
        "others": plan.others,
        "families": _families(out, plan, table["family"]),
        "settings": dict(plan.settings),
        "versions": versions(),
        **about,
    }
    with atomic_write(out / SUMMARY, CheckpointError) as temporary:
        temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return data


def _families(out: Path, plan: Plan, names: Sequence[str | None]) -> dict[str, Any]:
    found = {}
    of_row = np.array([name or "" for name in names])
    columns = read_columns(out / INDEX, _NUMBERS)
    numbers = {n: np.array([np.nan if v is None else v for v in columns[n]]) for n in _NUMBERS}
    for name, known in plan.families.items():
        rows = of_row == name
        mine = {n: values[rows] for n, values in numbers.items()}
        aligned = ~np.isnan(mine["distance"])
        shards = [s for s in plan.shards if s.family == name]
        sums = (out / SHARDS / s.folder / SUMS for s in shards)
        total = add_sums(load_sums(path) for path in sums if path.exists())
        found[name] = {
            **known,
            "models": int(rows.sum()),
            "aligned": int(aligned.sum()),
            **{f"mean_{n}": _mean(values[aligned]) for n, values in mine.items()},
            "largest_function_difference": _largest(mine["function_difference"]),
            "histogram": _histogram(mine["distance_before"], mine["distance"]),
            "spread": spreads(total),
        }
    return found


def _mean(values: Any) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _largest(values: Any) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else None


def _histogram(before: Any, after: Any) -> dict[str, list[float]]:
    """Return the counts of both on the same bins."""
    before, after = (values[~np.isnan(values)] for values in (before, after))
    if not len(after):
        return {}
    top = float(max(before.max(), after.max()))
    low = float(min(before.min(), after.min()))
    edges = np.histogram_bin_edges([low, max(top, low + 1e-12)], bins=_BINS)
    counts = (np.histogram(values, edges)[0].tolist() for values in (before, after))
    return dict(zip(("edges", "before", "after"), [edges.tolist(), *counts], strict=True))
