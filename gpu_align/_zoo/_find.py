"""Finding the checkpoints of a zoo: folders, globs, archives, trials of Ray Tune."""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_align._checkpoint import FILE_SUFFIXES, INDEX_SUFFIX, atomic_folder, make_folder
from gpu_align._errors import CheckpointError, InputError
from gpu_align._zoo._pieces import PLAN, SHARDS, Failure, Piece

_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_MAGIC = "*?["
_PARAMETERS, _RESULTS, _CONFIG = "params.json", "result.json", "config.json"
_CHECKPOINT = "checkpoint_"


@dataclass(frozen=True)
class Found:
    """What lies in a source.

    Attributes:
        root: the folder that names are relative to.
        pieces: in the order of their names.
        others: files that are no checkpoints by their names.
        beside: files that describe the zoo or its trials, and go with it.
        failed: what could not be taken from the source.
    """

    root: Path
    pieces: tuple[Piece, ...]
    others: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    failed: tuple[tuple[Piece, Failure], ...] = ()


def find_pieces(source: str | os.PathLike[str], unpacked: Path, *, runs: bool = False) -> Found:
    """Return what a source consists of; nothing of it is read.

    Args:
        source: a folder, a glob, a file, or a tar archive of these.
        unpacked: the folder where the content of an archive is put.
        runs: whether the checkpoints in each folder are of one training run; those of a trial of
            Ray Tune are in any case.

    Raises:
        InputError: there are no checkpoints.
    """
    text, path = os.fspath(source), Path(source)
    if not path.exists() and any(mark in text for mark in _MAGIC):
        found = _glob(text, runs=runs)
    elif path.is_dir():
        found = _folder(path, runs=runs)
    elif not path.exists():
        raise CheckpointError(f"cannot read {text}: no such file or folder; check the path")
    elif path.name.lower().endswith(_ARCHIVES):
        found = _folder(_unpack(path, unpacked), runs=runs)
    else:
        found = Found(path.parent, (Piece(path.name, str(path)),))
    if not found.pieces:
        raise InputError(
            f"{text} has no checkpoints: expected files ending in {', '.join(FILE_SUFFIXES)}, "
            "folders of Hugging Face, or trials of Ray Tune"
        )
    return found


def _glob(pattern: str, *, runs: bool) -> Found:
    parts = Path(pattern).parts
    fixed = next(n for n, part in enumerate(parts) if any(mark in part for mark in _MAGIC))
    root = Path(*parts[:fixed]) if fixed else Path()
    matches = sorted(root.glob(str(Path(*parts[fixed:]))))
    pieces: list[Piece] = []
    others: list[str] = []
    for match in matches:
        found = _folder(match, runs=runs) if match.is_dir() else None
        if found is None:
            pieces.append(_piece(match, root, runs=runs))
            continue
        prefix = match.relative_to(root).as_posix()
        pieces += [_below(piece, prefix) for piece in found.pieces]
        others += [f"{prefix}/{name}" for name in found.others]
    return Found(root, tuple(pieces), tuple(others))


def _below(piece: Piece, prefix: str) -> Piece:
    name = prefix if piece.name == "." else f"{prefix}/{piece.name}"
    run = piece.run if piece.run is None else f"{prefix}/{piece.run}"
    return Piece(name, piece.path, run, facts=piece.facts)


def _piece(path: Path, root: Path, *, runs: bool) -> Piece:
    name = path.relative_to(root)
    return Piece(name.as_posix(), str(path), name.parent.as_posix() if runs else None)


def _folder(root: Path, *, runs: bool) -> Found:
    pieces: list[Piece] = []
    others: list[str] = []
    beside: list[str] = []
    for folder, names, files in os.walk(root, followlinks=False):
        names.sort()
        here = Path(folder)
        hidden = {name for name in names if name.startswith(".") or _is_aligned(here / name)}
        names[:] = [name for name in names if name not in hidden]
        if is_trial(here, names, files):
            pieces += _trial(here, root, names)
            beside += [(here / name).relative_to(root).as_posix() for name in sorted(files)]
            names.clear()
        elif _is_checkpoint(files):
            pieces.append(_piece(here, root, runs=runs))
            names.clear()
        else:
            for name in sorted(files):
                if name.endswith(FILE_SUFFIXES):
                    pieces.append(_piece(here / name, root, runs=runs))
                elif name == "zoo.json":
                    beside.append((here / name).relative_to(root).as_posix())
                elif not name.startswith("."):
                    others.append((here / name).relative_to(root).as_posix())
    return Found(root, tuple(pieces), tuple(others), tuple(beside))


def _is_checkpoint(files: list[str]) -> bool:
    """Whether the files of a folder are one checkpoint: of Hugging Face, or with an index."""
    if any(name.endswith(INDEX_SUFFIX) for name in files):
        return True
    return _CONFIG in files and any(name.endswith(FILE_SUFFIXES) for name in files)


def _is_aligned(folder: Path) -> bool:
    """Whether a folder holds an aligned zoo: of the zoo that it lies in, perhaps."""
    return (folder / PLAN).is_file() and (folder / SHARDS).is_dir()


def is_trial(folder: Path, names: list[str], files: list[str]) -> bool:
    """Whether a folder is that of a trial of Ray Tune."""
    kept = any(name.startswith(_CHECKPOINT) for name in names)
    return kept and (_PARAMETERS in files or _RESULTS in files)


def _trial(folder: Path, root: Path, names: list[str]) -> Iterator[Piece]:
    run = folder.relative_to(root).as_posix()
    parameters = _read_json(folder / _PARAMETERS)
    reports = {entry.get("checkpoint_dir_name"): entry for entry in _read_lines(folder / _RESULTS)}
    for name in names:
        if name.startswith(_CHECKPOINT):
            path = folder / name
            facts = {"params": parameters} if parameters else {}
            if name in reports:
                report = reports[name].items()
                facts["result"] = {k: v for k, v in report if isinstance(v, int | float | str)}
            yield Piece(path.relative_to(root).as_posix(), str(path), run, facts=facts)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # of a trial that died early
    return found if isinstance(found, dict) else {}


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the reports of a trial; a last one that was cut off is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive, or take what an earlier call has unpacked."""
    if folder.exists():
        return folder
    make_folder(folder.parent)
    try:
        with atomic_folder(folder, CheckpointError) as temporary, tarfile.open(archive) as opened:
            opened.extractall(temporary, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise CheckpointError(
            f"cannot read {archive}: {error}; the archive is damaged: copy or download it again"
        ) from error
    return folder
