"""What is to be done: families, shards, and what cannot be aligned; kept in a file to resume it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gpu_align._checkpoint import atomic_write, make_folder, read_safetensors, write_safetensors
from gpu_align._errors import CheckpointError, InputError
from gpu_align._symmetry import PermutationSpec
from gpu_align._zoo._families import Kind
from gpu_align._zoo._pieces import PLAN, Failure, Piece, Shard, Span
from gpu_align._zoo._read import Scanned
from gpu_align._zoo._settings import Family, ZooSettings

TARGETS = "targets"
_FORMAT = "gpu-align/zoo-plan/1"
_SHARD_BYTES = 2**28
_LEAST, _MOST, _SHARDS = 32, 1024, 8


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        settings: that decide the output, as plain values.
        root: the folder that names are relative to.
        beside: files there that go with the zoo.
        others: how many files there are no checkpoints by their names.
        families: name -> number of models, and whether functions are compared.
        shards: the work.
        failures: pieces that cannot be aligned, with the number of models of each.
    """

    settings: Mapping[str, Any]
    root: str
    beside: tuple[str, ...]
    others: int
    families: Mapping[str, Mapping[str, Any]]
    shards: tuple[Shard, ...]
    failures: tuple[tuple[Piece, Failure], ...]

    def save(self, out: Path) -> None:
        """Write it; from then on the work can be resumed."""
        document = {
            "format": _FORMAT,
            "settings": dict(self.settings),
            "root": self.root,
            "beside": list(self.beside),
            "others": self.others,
            "families": {name: dict(known) for name, known in self.families.items()},
            "shards": [shard.to_json() for shard in self.shards],
            "failures": [[p.to_json(), f.kind, f.reason] for p, f in self.failures],
        }
        with atomic_write(out / PLAN, CheckpointError) as temporary:
            temporary.write_text(json.dumps(document), encoding="utf-8")

    @classmethod
    def load(cls, out: Path) -> "Plan":
        """Read what `save` wrote.

        Raises:
            CheckpointError: there is no such file, or it is damaged.
        """
        try:
            data = json.loads((out / PLAN).read_text(encoding="utf-8"))
            if data["format"] != _FORMAT:
                raise ValueError(f"its format is {data['format']!r}")
            return cls(
                data["settings"],
                data["root"],
                tuple(data["beside"]),
                data["others"],
                data["families"],
                tuple(map(Shard.from_json, data["shards"])),
                tuple((Piece(**p), Failure(kind, why)) for p, kind, why in data["failures"]),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{out} holds no zoo that was begun: {error}; name a new folder, or the one of "
                "the command that is to be resumed"
            ) from error


def save_family(out: Path, family: Family) -> None:
    """Write the target and the spec of a family."""
    folder = out / TARGETS
    make_folder(folder)
    with atomic_write(folder / f"{family.name}.safetensors", CheckpointError) as temporary:
        write_safetensors(temporary, family.target, {"format": "pt"})
    with atomic_write(folder / f"{family.name}.spec.json", CheckpointError) as temporary:
        temporary.write_text(family.spec.to_json(), encoding="utf-8")


def load_family(out: Path, name: str, *, has_model: bool) -> Family:
    """Read what `save_family` wrote.

    Raises:
        CheckpointError: it is not there any more, or damaged.
    """
    folder = out / TARGETS
    try:
        text = (folder / f"{name}.spec.json").read_text(encoding="utf-8")
        target, _ = read_safetensors(folder / f"{name}.safetensors")
        return Family(name, PermutationSpec.from_json(text), target, has_model)
    except (OSError, InputError) as error:
        raise CheckpointError(
            f"cannot go on in {out}, whose target of {name} cannot be read: {error}; name a new "
            "folder"
        ) from error


def spans_of(
    kind: Kind, scanned: Sequence[Scanned], checkpoint: str
) -> tuple[list[list[Span]], dict[int, Failure]]:
    """Return what is aligned together: models by themselves, and training runs.

    Args:
        kind: the family.
        scanned: all pieces; spans number them.
        checkpoint: which of a run has its permutation found: "last", "first" or a name.

    Returns:
        Units, each a list of spans of which all but the first follow it; and pieces of runs that
        do not have the checkpoint.
    """
    units: list[list[Span]] = []
    runs: dict[str, list[int]] = {}
    for number in kind.pieces:
        piece = scanned[number].piece
        if piece.run is None:
            units.append([Span(number, 0, piece.count)])
        else:
            runs.setdefault(piece.run, []).append(number)
    failures: dict[int, Failure] = {}
    for run, numbers in runs.items():
        names = {number: scanned[number].piece.name for number in numbers}
        leader = _leader(names, checkpoint)
        if leader is None:
            reason = f"its run {run} has no checkpoint named {checkpoint} that can be used"
            failures |= dict.fromkeys(numbers, Failure("unusable", reason))
            continue
        units.append([Span(leader, 0, 1), *(Span(n, 0, 1, 0) for n in numbers if n != leader)])
    return units, failures


def _leader(names: Mapping[int, str], checkpoint: str) -> int | None:
    ordered = sorted(names, key=lambda number: names[number])
    if checkpoint in ("last", "first"):
        return ordered[-1 if checkpoint == "last" else 0]
    for number in ordered:
        last = names[number].rpartition("/")[2]
        if checkpoint in (names[number], last, last.partition(".")[0]):
            return number
    return None


def shards_of(
    family: str,
    units: Sequence[Sequence[Span]],
    pieces: Sequence[Piece],
    size: int,
    first: int,
) -> Iterator[Shard]:
    """Cut the work of a family into shards; runs stay together.

    Args:
        family: its name.
        units: see `spans_of`.
        pieces: that spans number.
        size: models of a shard, those that follow others not counted.
        first: number of the first shard.
    """
    spans: list[Span] = []
    room, number = size, first

    def made() -> Shard:
        used = sorted({span.piece for span in spans})
        own = {piece: place for place, piece in enumerate(used)}
        moved = (Span(own[s.piece], s.start, s.stop, s.follows) for s in spans)
        return Shard(number, family, tuple(pieces[n] for n in used), tuple(moved))

    for unit in units:
        leader, *others = unit
        start = leader.start
        while start < leader.stop:
            stop = min(leader.stop, start + room)
            place = len(spans)
            spans.append(Span(leader.piece, start, stop))
            spans += [Span(s.piece, s.start, s.stop, place) for s in others]
            room -= stop - start
            start = stop
            if room == 0:
                yield made()
                spans, room, number = [], size, number + 1
    if spans:
        yield made()


def shard_size(settings: ZooSettings, models: int, state: Mapping[str, Tensor]) -> int:
    """Return how many models of a family a shard has: the same for any number of workers."""
    if settings.shard is not None:
        return settings.shard
    size = sum(tensor.nbytes for tensor in state.values())
    by_number = min(max(-(-models // _SHARDS), _LEAST), _MOST)
    return max(min(by_number, _SHARD_BYTES // max(size, 1)), 1)


def check_same(plan: Plan, wanted: Mapping[str, Any]) -> None:
    """Check that a zoo that was begun is what is wanted.

    Raises:
        InputError: some settings differ.
    """
    unlike = sorted(n for n in {**plan.settings, **wanted} if plan.settings.get(n) != wanted.get(n))
    if unlike:
        raise InputError(
            f"the zoo was begun with other settings: {', '.join(unlike)} differ; give the same "
            "ones, or name a new folder"
        )
