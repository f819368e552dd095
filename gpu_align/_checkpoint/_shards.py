"""Checkpoints divided into several files by an index."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gpu_align._checkpoint._atomic import atomic_folder
from gpu_align._checkpoint._kind import kind_of
from gpu_align._checkpoint._refusal import open_regular, parse_json, quoted, unreadable
from gpu_align._checkpoint._safetensors_file import read_safetensors, write_safetensors
from gpu_align._checkpoint._state import find_content, state_tensors
from gpu_align._checkpoint._torch_file import read_torch, write_torch
from gpu_align._checkpoint._types import INDEX_SUFFIX, ShardFile, Shards
from gpu_align._errors import CheckpointError, bullet_list

_SIZE_ENTRIES = ("total_size", "total_parameters")


def read_shards(index: Path) -> tuple[dict[str, Tensor], Shards]:
    """Read all shards of an index.

    Args:
        index: an existing `*.index.json`.

    Returns:
        The CPU tensors in the order of the index's weight_map, and the division into files.

    Raises:
        CheckpointError: the index is no index, or does not agree with the shards.
    """
    with open_regular(index) as file:
        content = file.read()
    document = _parse(index, content)
    weight_map = _weight_map(index, document)
    _check_present(index, weight_map)
    loaded: dict[str, Tensor] = {}
    files = {}
    for file_name in dict.fromkeys(weight_map.values()):
        tensors, files[file_name] = _read_shard(index.parent / file_name)
        _check_agreement(index, file_name, set(tensors), weight_map)
        loaded |= tensors
    index_metadata = document.get("metadata") or {}
    shards = Shards(index.name, content, index_metadata, files)
    return {name: loaded[name] for name in weight_map}, shards


def _read_shard(path: Path) -> tuple[dict[str, Tensor], ShardFile]:
    kind = kind_of(path)
    if kind == "safetensors":
        tensors, metadata = read_safetensors(path)
        return tensors, ShardFile(tuple(tensors), metadata)
    if kind == "torch":
        content = find_content(path, read_torch(path))
        tensors = state_tensors(path, content)
        return tensors, ShardFile(tuple(tensors), None, content)
    raise unreadable(path, "expected a shard with tensors", "correct the name in the index")


def write_shards(
    path: Path,
    tensors: Mapping[str, Tensor],
    shards: Shards,
    mode: int | None,
    beside: Sequence[Path] = (),
) -> None:
    """Write the same shards and index to a new folder.

    Args:
        path: the folder, or `*.index.json` inside it; the folder must be new or empty.
        tensors: name -> strided CPU tensor, of the shapes and dtypes that were read.
        shards: the division into files.
        mode: the files' permission bits; None for the usual ones.
        beside: further files that the folder gets a copy of.

    Raises:
        CheckpointError: the folder cannot be written or is not empty.
    """
    given_index = path.name.endswith(INDEX_SUFFIX)
    folder = path.parent if given_index else path
    with atomic_folder(folder, CheckpointError) as temporary:
        index = temporary / (path.name if given_index else shards.index_name)
        index.write_bytes(shards.index_bytes)
        mode = index.stat().st_mode if mode is None else mode
        for file_name, file in shards.files.items():
            part = {name: tensors[name] for name in file.names}
            if file.content is None:
                write_safetensors(temporary / file_name, part, file.metadata)
            else:
                with open(temporary / file_name, "wb") as opened:
                    write_torch(opened, part, file.content)
        for file_path in temporary.iterdir():
            # safetensors makes files that only their owner can read, whatever the umask.
            os.chmod(file_path, mode)
        copy_beside(beside, temporary)


def copy_beside(files: Sequence[Path], folder: Path) -> None:
    """Copy files into a folder under their names; links are followed."""
    for file in files:
        shutil.copy(file, folder / file.name)


def merged_metadata(shards: Shards) -> Mapping[str, str] | None:
    """Return the metadata for a single file made of all shards.

    Raises:
        CheckpointError: the shards' metadata differ, or the index has entries other than sizes.
    """
    remedy = "choose a folder as output, to keep the shards"
    extra = [str(key) for key in shards.index_metadata if key not in _SIZE_ENTRIES]
    if extra:
        raise CheckpointError(
            f"one file has no place for {quoted(extra)} in the metadata of {shards.index_name}; "
            f"{remedy}"
        )
    first, *others = [file.metadata for file in shards.files.values()]
    if any(other != first for other in others):
        raise CheckpointError(f"the shards have different metadata; {remedy}")
    return first


def _parse(index: Path, content: bytes) -> dict[str, Any]:
    remedy = "copy or download the index again"
    document = parse_json(index, content, "JSON with the names of shards")
    if not isinstance(document, dict):
        raise unreadable(index, f"expected a JSON object, got {type(document).__name__}", remedy)
    if not isinstance(document.get("metadata") or {}, dict):
        raise unreadable(index, 'expected an object under "metadata"', remedy)
    return document


def _weight_map(index: Path, document: dict[str, Any]) -> dict[str, str]:
    weight_map = document.get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if weight_map is None or not files or not all(isinstance(file, str) for file in files):
        raise unreadable(
            index,
            'expected "weight_map": {"tensor name": "file name", ...}',
            "name the index of a sharded checkpoint, or one file with tensors",
        )
    # A path in the index could make us read, and later write, anywhere.
    strange = [f for f in dict.fromkeys(files) if not _is_plain_shard_name(f)]
    if strange:
        raise unreadable(
            index,
            f"shards must be files beside the index, got {quoted(strange)}",
            "put them beside the index and correct the names in it",
        )
    return weight_map


def _is_plain_shard_name(name: str) -> bool:
    plain = not any(character in name for character in "/\\:\0") and name not in ("", ".", "..")
    return plain and name.isprintable()  # lone surrogates are not, and no file has them


def _check_present(index: Path, weight_map: dict[str, str]) -> None:
    files = dict.fromkeys(weight_map.values())
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"cannot read {index}: {len(missing)} of {len(files)} shards are missing; put them "
            f"beside the index:\n{bullet_list(missing)}"
        )


def _check_agreement(
    index: Path, file_name: str, got: set[str], weight_map: dict[str, str]
) -> None:
    expected = {name for name, file in weight_map.items() if file == file_name}
    problems = [f'"{name}" is in the index only' for name in sorted(expected - got)]
    problems += [f'"{name}" is in the shard only' for name in sorted(got - expected)]
    if problems:
        raise CheckpointError(
            f"cannot read {index}: it does not agree with the shard {file_name}; copy or download "
            f"both again:\n{bullet_list(problems)}"
        )
