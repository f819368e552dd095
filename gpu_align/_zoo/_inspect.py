"""What a zoo consists of: families, counts, sizes, damaged files."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_align._errors import CheckpointError
from gpu_align._zoo._families import Known, kinds_of
from gpu_align._zoo._find import find_pieces
from gpu_align._zoo._job import Tell, ZooProgress
from gpu_align._zoo._pieces import PLAN, SHARDS, Failure
from gpu_align._zoo._plan import Plan
from gpu_align._zoo._read import scan
from gpu_align._zoo._shard import MANIFEST, digest

_TOLD = 64
"""Pieces between two signs of life."""


@dataclass(frozen=True)
class ZooContents:
    """What a zoo consists of.

    Attributes:
        models: how many, those that cannot be read included.
        families: name -> `models`, `tensors` (name, dtype, shape), `parameters`, `bytes` of one
            model, and `symmetries` in words.
        failed: name of a file -> kind and reason.
        runs: how many training runs there are.
        others: files that are no checkpoints by their names.
    """

    models: int
    families: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, tuple[str, str]]
    runs: int
    others: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def inspect_zoo(
    source: str | os.PathLike[str],
    *,
    stacked: bool | None = None,
    runs: bool = False,
    progress: Tell | None = None,
) -> ZooContents:
    """Look at a zoo: what `align_zoo` would find in it; of an aligned zoo whether it is whole.

    Args:
        source, stacked, runs, progress: as for `align_zoo`.

    Raises:
        InputError: there are no checkpoints.
    """
    if (Path(source) / PLAN).exists():
        return _inspect_aligned(Path(source))
    with tempfile.TemporaryDirectory() as folder:
        found = find_pieces(source, Path(folder) / "source", runs=runs)
        scanned = []
        for number, piece in enumerate(found.pieces):
            if progress is not None and number % _TOLD == 0:
                progress(ZooProgress("looking at the zoo", number, len(found.pieces)))
            scanned.append(scan(piece, stacked))
        kinds, failures = kinds_of(scanned)
        known = Known((), (), None)
        families: dict[str, Mapping[str, Any]] = {}
        for kind in kinds:
            symmetries = known.of(kind, scanned[kind.pieces[0]].piece)
            families[kind.name] = {
                "models": sum(scanned[number].piece.count for number in kind.pieces),
                "tensors": [[n, dtype, list(shape)] for n, dtype, shape in kind.signature],
                "parameters": sum(t.numel() for t in kind.state.values()),
                "bytes": sum(t.nbytes for t in kind.state.values()),
                "symmetries": symmetries.reason
                if isinstance(symmetries, Failure)
                else symmetries.spec.origin,
            }
        failed = {scanned[n].piece.name: (f.kind, f.reason) for n, f in sorted(failures.items())}
        models = sum(int(family["models"]) for family in families.values()) + len(failed)
        named = {each.piece.run for each in scanned if each.piece.run is not None}
        return ZooContents(models, families, failed, len(named), found.others)


def _inspect_aligned(folder: Path) -> ZooContents:
    """Check the shards of an aligned zoo against what they say of themselves."""
    plan = Plan.load(folder)
    failed: dict[str, tuple[str, str]] = {p.name: (f.kind, f.reason) for p, f in plan.failures}
    counts = dict.fromkeys(plan.families, 0)
    for shard in plan.shards:
        path = folder / SHARDS / shard.folder
        name = f"{SHARDS}/{shard.folder}"
        try:
            document = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            changed = [n for n, known in document["files"].items() if _changed(path / n, known)]
            counts[shard.family] += document["aligned"]
        except (OSError, ValueError, LookupError) as error:
            failed[name] = ("missing", f"{error}; align the zoo with --resume")
            continue
        if changed:
            reason = f"{changed[0]} has changed; remove the folder, and align with --resume"
            failed[name] = ("damaged", reason)
    families = {
        name: {**known, "models": counts[name], "symmetries": known["origin"]}
        for name, known in plan.families.items()
    }
    total = sum(map(len, plan.shards)) + len(plan.failures)
    runs = {piece.run for shard in plan.shards for piece in shard.pieces if piece.run is not None}
    return ZooContents(total, families, failed, len(runs), ())


def _changed(path: Path, known: str) -> bool:
    if not path.exists() and path.name == "models.safetensors":
        return False  # its models were put where those of the source lie
    try:
        return digest(path) != known
    except OSError as error:
        raise CheckpointError(str(error)) from error
