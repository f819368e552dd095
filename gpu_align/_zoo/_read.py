"""Reading models of a zoo: what they are, and their tensors in stacks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gpu_align._checkpoint import (
    INDEX_SUFFIX,
    Checkpoint,
    TensorLayout,
    bare_name,
    is_count,
    kind_of,
    load_checkpoint,
    read_header,
    read_rows,
    rename,
)
from gpu_align._errors import CheckpointError, InputError, SpecError
from gpu_align._symmetry import PermutationSpec, Stack
from gpu_align._zoo._pieces import Failure, Piece, Signature

_WEIGHT, _FACT = "weight:", "fact:"
"""What `gpu_align.learn.make_zoo` puts before names in its files."""


@dataclass(frozen=True)
class Scanned:
    """What a piece turned out to be: its signature, or why it cannot be used."""

    piece: Piece
    signature: Signature | None
    failure: Failure | None = None


def scan(piece: Piece, stacked: bool | None = None) -> Scanned:  # noqa: FBT001
    """Look at a piece: at its header where it has one.

    Args:
        piece: as it was found.
        stacked: whether safetensors files are stacks of models; None to tell by their shapes.
    """
    try:
        files = dict(piece.files) or _files(Path(piece.path))
        layouts = _layouts(Path(piece.path), files)
    except (InputError, OSError, KeyError) as error:
        return Scanned(piece, None, Failure("damaged", first_line(error)))
    if layouts is None:
        tensors = load_tensors(piece)
        if isinstance(tensors, Failure):
            return Scanned(piece, None, tensors)
        layouts = {n: TensorLayout(t.dtype, tuple(t.shape)) for n, t in tensors.tensors.items()}
        return Scanned(piece, signature_of(layouts))
    prefix = _WEIGHT if any(name.startswith(_WEIGHT) for name in layouts) else ""
    layouts = {n.removeprefix(prefix): v for n, v in layouts.items() if n.startswith(prefix)}
    count = stack_count(layouts)
    is_stack = piece.stacked or (count is not None if stacked is None else stacked) or bool(prefix)
    if not is_stack:
        return Scanned(piece, signature_of(layouts))
    counts = {layout.shape[:1] for layout in layouts.values()}
    if len(counts) != 1 or () in counts:
        reason = "its tensors do not have one leading axis of models; pass it without stacked"
        return Scanned(piece, None, Failure("foreign", reason))
    each = {n: TensorLayout(v.dtype, v.shape[1:]) for n, v in layouts.items()}
    [(models,)] = counts
    piece = replace(piece, stacked=True, count=models, prefix=prefix, files=files)
    return Scanned(piece, signature_of(each))


def _files(path: Path) -> dict[str, str]:
    """Return tensor -> file of an index of safetensors files; nothing of what is none."""
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        return _files(indices[0]) if len(indices) == 1 else {}
    if not path.name.endswith(INDEX_SUFFIX):
        return {}
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()
        files = {name: str(path.parent / Path(file).name) for name, file in named}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; copy the index again") from error
    kinds = {kind_of(Path(file)) for file in files.values()}
    return files if kinds == {"safetensors"} else {}


def _layouts(path: Path, files: Mapping[str, str]) -> dict[str, TensorLayout] | None:
    """Return what safetensors files have by their headers; None of what must be read in whole."""
    if files:
        headers = {file: read_header(Path(file))[0] for file in set(files.values())}
        return {name: headers[file][name] for name, file in files.items()}
    if path.is_dir() or kind_of(path) != "safetensors":
        return None
    return read_header(path)[0]


def stack_count(layouts: Mapping[str, TensorLayout]) -> int | None:
    """Return how many models a file has if its shapes are those of a stack; else None.

    In a stack all tensors have the same leading axis, there are weights of three axes or more, and
    none but counts has a single axis, as biases have in a network.
    """
    leading = {layout.shape[0] if layout.shape else None for layout in layouts.values()}
    shapes = [layout.shape for name, layout in layouts.items() if not is_count(name)]
    if len(leading) != 1 or None in leading or not shapes:
        return None
    if min(map(len, shapes)) < 2 or max(map(len, shapes)) < 3:
        return None
    return leading.pop()


def signature_of(layouts: Mapping[str, TensorLayout]) -> Signature:
    """Return what models of one family share; counts and what wrappers add to names are not."""
    return tuple(
        sorted(
            (bare_name(name), str(layout.dtype).removeprefix("torch."), layout.shape)
            for name, layout in layouts.items()
            if not is_count(name)
        )
    )


def load_tensors(piece: Piece) -> Checkpoint | Failure:
    """Read a checkpoint, or say why it cannot be."""
    try:
        return load_checkpoint(piece.path)
    except (InputError, OSError) as error:
        return Failure("damaged", first_line(error))


@dataclass(frozen=True, eq=False)
class Batch:
    """Models that were read.

    Attributes:
        stack: those that can be aligned, with the names of the spec.
        members: their places among those that were asked for.
        failures: place -> why one is left out.
        checkpoints: place -> what a checkpoint was read from, where it is to be written alike.
    """

    stack: Stack
    members: Sequence[int]
    failures: Mapping[int, Failure]
    checkpoints: Mapping[int, Checkpoint]


def read_batch(
    spans: Sequence[tuple[Piece, int, int]], spec: PermutationSpec, *, keep: bool = False
) -> Batch:
    """Read models of one family.

    Args:
        spans: piece, start and stop.
        spec: of the family.
        keep: whether checkpoints are kept as they were read.
    """
    parts: list[dict[str, Tensor]] = []
    members: list[int] = []
    failures: dict[int, Failure] = {}
    checkpoints: dict[int, Checkpoint] = {}
    place = 0
    for piece, start, stop in spans:
        found = read_part(piece, spec, start, stop)
        places = range(place, place + stop - start)
        place = places.stop
        if isinstance(found, Failure):
            failures |= dict.fromkeys(places, found)
            continue
        part, checkpoint = found
        parts.append(part)
        members.extend(places)
        if keep and checkpoint is not None:
            checkpoints[places.start] = checkpoint
    # Counts that not all have are left out.
    names = [n for n in parts[0] if all(n in part for part in parts)] if parts else []
    joined = parts[0] if len(parts) == 1 else {n: torch.cat([p[n] for p in parts]) for n in names}
    return Batch(Stack(joined, len(members)), members, failures, checkpoints)


def read_part(
    piece: Piece, spec: PermutationSpec, start: int, stop: int
) -> tuple[dict[str, Tensor], Checkpoint | None] | Failure:
    """Read models of one piece as a stack with the names of the spec, or say why it cannot be."""
    checkpoint = None
    if piece.stacked:
        try:
            tensors = read_stack(piece, start, stop)
        except (InputError, OSError) as error:
            return Failure("damaged", first_line(error))
        state = {n.removeprefix(piece.prefix): tensor for n, tensor in tensors.items()}
        named = dict(rename(state, spec.keys).state)
    else:
        loaded = load_tensors(piece)
        if isinstance(loaded, Failure):
            return loaded
        checkpoint = loaded.named_like(spec.keys)
        named = {name: tensor[None] for name, tensor in checkpoint.tensors.items()}
    try:
        spec.validate({name: tensor[0] for name, tensor in named.items()}, "source")
    except SpecError as error:
        return Failure("foreign", str(error))
    return {name: named[name] for name in sorted(named)}, checkpoint


def read_stack(piece: Piece, start: int, stop: int, *, facts: bool = False) -> dict[str, Tensor]:
    """Return the weights of some models of a stack, or the facts about them, as they are named."""
    if piece.files:
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(piece.files.values()):
            names = [name for name, other in piece.files.items() if other == file]
            found |= read_rows(Path(file), names, start, stop)
        return {} if facts else found
    header, _ = read_header(Path(piece.path))
    wanted = _FACT if facts else piece.prefix
    if facts and not piece.prefix:
        return {}
    names = [name for name in header if name.startswith(wanted)]
    return read_rows(Path(piece.path), names, start, stop)


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return " ".join((str(error) or type(error).__name__).split())[:500]
