"""The whole zoo in numbers: the index, and what a page shows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_align._checkpoint import atomic_write
from gpu_align._device import versions
from gpu_align._errors import CheckpointError
from gpu_align._zoo._pieces import SHARDS
from gpu_align._zoo._plan import Plan
from gpu_align._zoo._result import INDEX, SCHEMA, SUMMARY
from gpu_align._zoo._shard import ROWS, SUMS
from gpu_align._zoo._sums import add_sums, load_sums, spreads
from gpu_align._zoo._table import each_columns, join_rows

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
        join_rows(temporary, parts())


def write_summary(out: Path, plan: Plan, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is known of the zoo as a whole, and return it.

    Args:
        out: the folder of the output.
        plan: what was done.
        about: how: engine, workers, seconds.
    """
    failed: dict[str, int] = {}
    examples: dict[str, list[list[str]]] = {}
    count = 0
    for table in each_columns(out / INDEX, ["name", "status", "reason"]):
        count += len(table["name"])
        for name, status, reason in zip(*table.values(), strict=True):
            if status != "aligned":
                failed[status] = failed.get(status, 0) + 1
                if len(some := examples.setdefault(status, [])) < _EXAMPLES:
                    some.append([name, reason])
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "models": count,
        "aligned": count - sum(failed.values()),
        "failed": failed,
        "examples": examples,
        "others": plan.others,
        "families": _families(out, plan),
        "settings": dict(plan.settings),
        "versions": versions(),
        **about,
    }
    with atomic_write(out / SUMMARY, CheckpointError) as temporary:
        temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return data


def _families(out: Path, plan: Plan) -> dict[str, Any]:
    parts: dict[str, list[Any]] = {name: [np.empty((len(_NUMBERS), 0))] for name in plan.families}
    for table in each_columns(out / INDEX, ["family", *_NUMBERS]):
        family = table["family"][0]
        if family is not None:  # the rows of a group are of one family, as those of a shard are
            parts[family].append(np.array([table[name] for name in _NUMBERS], dtype=np.float64))
    return {
        name: {
            **known,
            **_numbers(np.concatenate(parts[name], axis=1)),
            "spread": _spread(out, plan, name),
        }
        for name, known in plan.families.items()
    }


def _numbers(columns: Any) -> dict[str, Any]:
    """Return what is said about the numbers of a family, [numbers, models]."""
    mine = dict(zip(_NUMBERS, columns, strict=True))
    aligned = ~np.isnan(mine["distance"])
    return {
        "models": columns.shape[1],
        "aligned": int(aligned.sum()),
        **{f"mean_{name}": _mean(values[aligned]) for name, values in mine.items()},
        "largest_function_difference": _largest(mine["function_difference"]),
        "histogram": _histogram(mine["distance_before"], mine["distance"]),
    }


def _spread(out: Path, plan: Plan, family: str) -> dict[str, dict[str, float]]:
    folders = (out / SHARDS / s.folder for s in plan.shards if s.family == family)
    sums = (folder / SUMS for folder in folders)
    return spreads(add_sums(load_sums(path) for path in sums if path.exists()))


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
