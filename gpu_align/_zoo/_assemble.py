"""Stacks written like those that they came from, from the shards of their models."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gpu_align._checkpoint import (
    INDEX_SUFFIX,
    TensorLayout,
    atomic_write,
    make_folder,
    match_names,
    read_header,
    read_rows,
    write_in_parts,
)
from gpu_align._errors import CheckpointError
from gpu_align._zoo._pieces import SHARDS, Piece, Shard
from gpu_align._zoo._plan import Plan
from gpu_align._zoo._shard import COPIES, MODELS, ROWS
from gpu_align._zoo._table import read_columns

_ROWS = 1024


def assemble(out: Path, plan: Plan) -> None:
    """Write each stack of a zoo anew with its aligned models; those that failed stay as they were.

    Then what the shards hold of these models is removed.

    Raises:
        CheckpointError: a file cannot be read or written.
    """
    parts: dict[str, list[tuple[int, int, Shard, int]]] = {}
    pieces: dict[str, Piece] = {}
    for shard in plan.shards:
        place = 0
        for span in shard.spans:
            piece = shard.pieces[span.piece]
            if piece.stacked:
                pieces[piece.name] = piece
                parts.setdefault(piece.name, []).append((span.start, span.stop, shard, place))
            place += len(span)
    for name, piece in pieces.items():
        if piece.files:
            _copy_index(Path(piece.path), out / COPIES / name)
        for file in dict.fromkeys(piece.files.values()) or [piece.path]:
            relative = _beside(piece, file)
            path = out / COPIES / relative
            if not path.exists():
                make_folder(path.parent)
                one = replace(piece, path=str(file))
                with atomic_write(path, CheckpointError) as temporary:
                    _write(temporary, one, out, parts[name])
    for shard in plan.shards:
        if any(piece.stacked for piece in shard.pieces):
            (out / SHARDS / shard.folder / MODELS).unlink(missing_ok=True)


def _beside(piece: Piece, file: str) -> Path:
    """Return where a file of a stack lies, relative to the root."""
    if not piece.files:
        return Path(piece.name)
    folder = Path(piece.name) if Path(piece.path).is_dir() else Path(piece.name).parent
    return folder / Path(file).name


def _copy_index(path: Path, copy: Path) -> None:
    """Copy the index of a stack in several files, beside which these will lie."""
    if path.is_dir():
        [path] = path.glob(f"*{INDEX_SUFFIX}")
        copy = copy / path.name
    _copy(path, copy)


def _write(
    path: Path, piece: Piece, out: Path, spans: Sequence[tuple[int, int, Shard, int]]
) -> None:
    layouts, metadata = read_header(Path(piece.path))
    if any(layout.shape[:1] != (piece.count,) for layout in layouts.values()):
        raise CheckpointError(
            f"cannot read {piece.path}: it has changed since the work was begun; name a new folder"
        )
    aligned: Mapping[str, str] = {}
    for _, _, shard, _ in spans:
        models = out / SHARDS / shard.folder / MODELS
        if models.exists():
            aligned = _names(layouts, piece, models)
            break

    def parts(name: str) -> Iterator[Tensor]:
        """Yield a tensor of all models in order."""
        for start, stop, shard, place in sorted(spans, key=lambda span: span[0]):
            folder = out / SHARDS / shard.folder
            yield from _rows(name, aligned.get(name), piece, folder, (start, stop, place))

    write_in_parts(path, layouts, metadata, parts)


def _names(layouts: Mapping[str, TensorLayout], piece: Piece, models: Path) -> dict[str, str]:
    """Return for each weight of a stack its name among aligned models."""
    weights = [name for name in layouts if name.startswith(piece.prefix)]
    own = {name.removeprefix(piece.prefix): name for name in weights}
    matched = match_names(read_header(models)[0], own) or {}
    return {own[name]: there for name, there in matched.items()}


def _rows(
    name: str, aligned: str | None, piece: Piece, folder: Path, span: tuple[int, int, int]
) -> Iterator[Tensor]:
    """Yield a tensor of some models: from the shard where they are aligned, else as it was."""
    start, stop, place = span
    rows = read_columns(folder / ROWS, ["row"])["row"][place : place + stop - start]
    for first in range(0, len(rows), _ROWS):
        some = rows[first : first + _ROWS]
        known = [row for row in some if row is not None]
        last = start + first + len(some)
        given = read_rows(Path(piece.path), [name], start + first, last)[name]
        if known and aligned is not None:
            moved = read_rows(folder / MODELS, [aligned], known[0], known[-1] + 1)[aligned]
            places = [number for number, row in enumerate(some) if row is not None]
            given[places] = moved[[row - known[0] for row in known]]
        yield given


def copy_beside(out: Path, plan: Plan) -> None:
    """Copy what describes the zoo and its trials beside the models."""
    for name in plan.beside:
        path = out / COPIES / name
        _copy(Path(plan.root) / name, path)


def _copy(path: Path, copy: Path) -> None:
    make_folder(copy.parent)
    with atomic_write(copy, CheckpointError) as temporary:
        shutil.copyfile(path, temporary)
