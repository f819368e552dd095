"""What is collected of a shard while its models are aligned."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpu_align._align import AlignedStack
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._zoo._pieces import Failure, Shard
from gpu_align._zoo._read import first_line, read_stack

_OPTIMAL_GAP = 1e-6
"""Relative gap up to which all groups count as assigned optimally, as in a `GroupReport`."""


@dataclass(eq=False)
class Found:
    """What is collected of a shard, by the places of its models.

    Attributes:
        columns: of the index.
        pieces: aligned models, in batches.
        places: of the aligned models, in the order of `pieces`.
        sums: of the weights of batches, see `sums_of`.
    """

    columns: dict[str, list[Any]]
    pieces: list[AlignedStack] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    sums: list[dict[str, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, shard: Shard) -> "Found":
        count = len(shard)
        names: list[str] = []
        runs: list[str | None] = []
        for span in shard.spans:
            piece = shard.pieces[span.piece]
            names += piece.names_of(span.start, span.stop)
            runs += [piece.run] * len(span)
        columns: dict[str, list[Any]] = {"name": names, "run": runs}
        columns["family"], columns["shard"] = [shard.family] * count, [shard.number] * count
        for name in ("status", "reason", "search_status", "row", "facts"):
            columns[name] = [None] * count
        for name in ("distance_before", "distance", "lower_bound", "relative_gap"):
            columns[name] = [None] * count
        for name in ("optimal_groups", "function_difference", "units_moved"):
            columns[name] = [None] * count
        return cls(columns)

    def fail(self, place: int, failure: Failure) -> None:
        self.columns["status"][place] = failure.kind
        self.columns["reason"][place] = failure.reason

    def add(self, found: AlignedStack, places: Sequence[int]) -> None:
        """Add a batch; `places` of all its models, aligned or not."""
        for number, error in found.failures.items():
            self.fail(places[number], failure_of(error))
        if not found.numbers:
            return
        mine = [places[number] for number in found.numbers]
        gap = found.table.relative_gap
        difference = found.function_difference
        values: dict[str, list[Any]] = {
            "distance_before": found.table.distance_before.tolist(),
            "distance": found.table.distance.tolist(),
            "lower_bound": found.table.lower_bound.tolist(),
            "relative_gap": gap.tolist(),
            "optimal_groups": (gap <= _OPTIMAL_GAP).tolist(),
            "function_difference": [None] * len(mine)
            if difference is None
            else difference.tolist(),
            "units_moved": found.table.moved.tolist(),
            "search_status": list(map(str, found.status)),
        }
        for name, column in values.items():
            own = self.columns[name]
            for place, value in zip(mine, column, strict=True):
                own[place] = value
        first = len(self.places)
        for row, place in enumerate(mine, first):
            self.columns["status"][place] = "aligned"
            self.columns["row"][place] = row
        self.places += mine
        self.pieces.append(found)

    def joined(self, part: str) -> dict[str, Tensor]:
        """Return the "states", "perms" or "signs" of all aligned models."""
        parts: list[Mapping[str, Tensor]] = [getattr(piece, part) for piece in self.pieces]
        names = [n for n in parts[0] if all(n in p for p in parts)] if parts else []
        if len(parts) == 1:
            return dict(parts[0])
        return {name: torch.cat([part[name] for part in parts]) for name in names}


def failure_of(error: GpuAlignError) -> Failure:
    """Return why a model of a batch was not aligned, as a row says it."""
    kind = "changed"
    if isinstance(error, InputError):
        kind = "unusable"
    elif hasattr(error, "status"):
        kind = "unsolved"
    return Failure(kind, first_line(error))


def add_facts(columns: dict[str, list[Any]], shard: Shard) -> None:
    """Add what is known of the models besides their weights."""
    facts: list[str | None] = []
    for span in shard.spans:
        piece = shard.pieces[span.piece]
        if not piece.stacked:
            text = json.dumps(piece.facts, sort_keys=True) if piece.facts else None
            facts += [text] * len(span)
            continue
        held: dict[str, Tensor] = {}
        with suppress(InputError, OSError):  # said where its weights are read
            held = read_stack(piece, span.start, span.stop, facts=True)
        named = {n.partition(":")[2]: t.tolist() for n, t in held.items() if t.ndim == 1}
        rows = zip(*named.values(), strict=True) if named else ()
        texts = [json.dumps(dict(zip(named, row, strict=True))) for row in rows]
        facts += texts or [None] * len(span)
    columns["facts"] = facts
