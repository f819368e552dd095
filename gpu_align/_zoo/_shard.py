"""One shard: read, align, certify, write, commit."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_align._align import Model, align_stack, move_stack
from gpu_align._assignment import at_most_threads
from gpu_align._checkpoint import (
    atomic_folder,
    write_safetensors,
)
from gpu_align._errors import CheckpointError
from gpu_align._symmetry import save_stack
from gpu_align._zoo._alike import write_alike
from gpu_align._zoo._found import Found, add_facts
from gpu_align._zoo._pieces import SHARDS, Failure, Piece, Shard
from gpu_align._zoo._read import Batch, read_batch
from gpu_align._zoo._settings import Context, Family
from gpu_align._zoo._sums import add_sums, save_sums, sums_of
from gpu_align._zoo._table import write_rows

MODELS, PERMUTATIONS, ROWS = "models.safetensors", "permutations.safetensors", "rows.parquet"
MANIFEST, SUMS = "manifest.json", "sums.safetensors"
COPIES = "models"

_READ_BYTES = 2**27
"""Weights that are read together; the next ones are read while these are aligned."""
_MOST_READ = 1024

Part = tuple[Piece, int, int]


@dataclass(frozen=True)
class Done:
    """What became of a shard.

    Attributes:
        number: of the shard.
        aligned: how many models were.
        failed: kind of failure -> how many models.
        seconds: spent by the worker on its processor; None if it was done before.
    """

    number: int
    aligned: int
    failed: Mapping[str, int]
    seconds: float | None = None


def run_shard(context: Context, shard: Shard) -> Done:
    """Align one shard and commit it; one that is committed stays as it is.

    Raises:
        GpuAlignError: the output cannot be written.
    """
    folder = Path(context.out) / SHARDS / shard.folder
    if folder.exists():
        return read_done(folder)
    begun = time.process_time()
    with at_most_threads(1):
        found = _aligned(context, shard)
    add_facts(found.columns, shard)
    counts = _counts(found.columns["status"])
    document: dict[str, Any] = {"shard": shard.number, "family": shard.family, **counts}
    try:
        with atomic_folder(folder, CheckpointError) as temporary:
            _write(temporary, context, shard, found)
            document["files"] = {path.name: digest(path) for path in sorted(temporary.iterdir())}
            text = json.dumps(document, indent=1)
            (temporary / MANIFEST).write_text(text, encoding="utf-8")
    except CheckpointError:
        if not (folder / MANIFEST).exists():  # else another worker was faster
            raise
    return Done(shard.number, counts["aligned"], counts["failed"], time.process_time() - begun)


def lost_shard(context: Context, shard: Shard, reason: str) -> Done:
    """Commit a shard of which no model could be aligned, for a worker dies of it."""
    folder = Path(context.out) / SHARDS / shard.folder
    found = Found.of(shard)
    for place in range(len(shard)):
        found.fail(place, Failure("lost", reason))
    counts = _counts(found.columns["status"])
    document = {"shard": shard.number, "family": shard.family, **counts}
    with atomic_folder(folder, CheckpointError) as temporary:
        write_rows(temporary / ROWS, found.columns)
        document["files"] = {ROWS: digest(temporary / ROWS)}
        (temporary / MANIFEST).write_text(json.dumps(document, indent=1), encoding="utf-8")
    return Done(shard.number, 0, counts["failed"])


def read_done(folder: Path) -> Done:
    """Return what a committed shard says of itself."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name in document["files"]:
            if name != MODELS:  # these may have been put where the models of the source lie
                (folder / name).stat()
        return Done(document["shard"], document["aligned"], document["failed"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"cannot use the shard {folder}: {error}; remove the folder, and run the same "
            "command with --resume"
        ) from error


def _counts(statuses: Sequence[str]) -> dict[str, Any]:
    failed: dict[str, int] = {}
    for status in statuses:
        if status != "aligned":
            failed[status] = failed.get(status, 0) + 1
    return {"aligned": len(statuses) - sum(failed.values()), "failed": failed}


def _aligned(context: Context, shard: Shard) -> Found:
    """Read and align all models of a shard, those first whose permutations others get."""
    family, found = context.families[shard.family], Found.of(shard)
    settings = context.settings.of_align()
    model = context.model if family.has_model else None
    own, following = _members(shard)
    same = context.settings.layout == "same"
    for places, batch in _batches(own, family, keep=same):
        for place, failure in batch.failures.items():
            found.fail(places[place], failure)
        mine = [places[member] for member in batch.members]
        if batch.stack:
            done = align_stack(batch.stack, family.target, family.spec, settings, model=model)
            for part in done:
                found.add(part, mine)
                rows = batch.stack.select(part.numbers).tensors
                found.sums.append(sums_of(family.spec, rows, part.states))
                write_alike(_root(context), part, mine, (places, batch), shard)
    leaders = {place: number for number, place in enumerate(found.places)}
    perms, signs = found.joined("perms"), found.joined("signs")
    for places, batch in _batches(following, family, keep=same):
        for place, failure in batch.failures.items():
            found.fail(places[place], failure)
        _follow(context, shard, found, (places, batch), leaders, (perms, signs), model)
    return found


def _follow(
    context: Context,
    shard: Shard,
    found: Found,
    read: tuple[Sequence[int], Batch],
    leaders: Mapping[int, int],
    vectors: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    model: Model | None,
) -> None:
    """Give checkpoints of training runs the permutations that were found on others of them."""
    family = context.families[shard.family]
    places, batch = read
    followed = _followed(shard)
    usable = []
    for number, member in enumerate(batch.members):
        leader = followed[places[member]]
        if leader in leaders:
            usable.append((number, places[member], leaders[leader]))
        else:
            name = found.columns["name"][leader]
            reason = f"the permutation of its run is found on {name}, which could not be aligned"
            found.fail(places[member], Failure("unusable", reason))
    if not usable:
        return
    rows = torch.tensor([row for _, _, row in usable], dtype=torch.int64, device="cpu")
    perms, signs = ({g: v[rows] for g, v in each.items()} for each in vectors)
    stack = batch.stack.select([number for number, _, _ in usable])
    mine = [place for _, place, _ in usable]
    settings = context.settings.of_align()
    for part in move_stack(stack, family.target, family.spec, settings, perms, signs, model=model):
        found.add(part, mine)
        write_alike(_root(context), part, mine, (places, batch), shard)


def _root(context: Context) -> Path:
    return Path(context.out) / COPIES


def _members(shard: Shard) -> tuple[list[tuple[int, Part]], list[tuple[int, Part]]]:
    """Return the place and the part of each span, of its own and of those that follow others."""
    own: list[tuple[int, Part]] = []
    following: list[tuple[int, Part]] = []
    place = 0
    for span in shard.spans:
        part = (shard.pieces[span.piece], span.start, span.stop)
        (own if span.follows is None else following).append((place, part))
        place += len(span)
    return own, following


def _followed(shard: Shard) -> dict[int, int]:
    """Return place -> the place whose permutation the model there gets."""
    first, place, found = [], 0, {}
    for span in shard.spans:
        first.append(place)
        if span.follows is not None:
            found[place] = first[span.follows]
        place += len(span)
    return found


def _batches(
    parts: Sequence[tuple[int, Part]], family: Family, *, keep: bool
) -> Iterator[tuple[list[int], Batch]]:
    """Yield places and models, batch after batch; the next is read while one is worked on."""
    size = sum(t.nbytes for t in family.target.values())
    plans = list(_cut(parts, max(min(_READ_BYTES // max(size, 1), _MOST_READ), 1)))
    with ThreadPoolExecutor(1) as reader:

        def begin(number: int) -> Any:
            spans = [part for _, part in plans[number]]
            return reader.submit(read_batch, spans, family.spec, keep=keep)

        ahead = begin(0) if plans else None
        for number, plan in enumerate(plans):
            assert ahead is not None
            batch = ahead.result()
            ahead = begin(number + 1) if number + 1 < len(plans) else None
            places = [place + n for place, (_, a, b) in plan for n in range(b - a)]
            yield places, batch


def _cut(parts: Sequence[tuple[int, Part]], most: int) -> Iterator[list[tuple[int, Part]]]:
    """Cut parts into batches of at most so many models."""
    batch: list[tuple[int, Part]] = []
    room = most
    for place, (piece, start, stop) in parts:
        while start < stop:
            end = min(stop, start + room)
            batch.append((place, (piece, start, end)))
            place, room, start = place + end - start, room - (end - start), end
            if room == 0:
                yield batch
                batch, room = [], most
    if batch:
        yield batch


def _write(folder: Path, context: Context, shard: Shard, found: Found) -> None:
    family = context.families[shard.family]
    write_rows(folder / ROWS, found.columns)
    if not found.places:
        return
    perms, signs = found.joined("perms"), found.joined("signs")
    count = len(found.places)
    if found.sums:
        save_sums(folder / SUMS, add_sums(found.sums))
    save_stack(folder / PERMUTATIONS, family.spec, perms, signs, count)
    stacks = any(piece.stacked for piece in shard.pieces)
    if context.settings.layout == "shards" or stacks:
        write_safetensors(folder / MODELS, found.joined("states"), None)


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
