"""`load_checkpoint`: choose the reader by the name of the path."""

import os
from pathlib import Path
from types import MappingProxyType

from gpu_align._checkpoint._refusal import quoted, unreadable
from gpu_align._checkpoint._safetensors_file import read_safetensors
from gpu_align._checkpoint._shards import read_shards
from gpu_align._checkpoint._state import content_warnings, find_content, state_tensors
from gpu_align._checkpoint._torch_file import read_torch
from gpu_align._checkpoint._types import FILE_SUFFIXES, INDEX_SUFFIX, TORCH_SUFFIXES, Checkpoint

_CHOICES = f"use {', '.join(FILE_SUFFIXES)}, *{INDEX_SUFFIX} or a folder with one of these"


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, with all that is needed to write it back as it came.

    Tensors come to the CPU whatever device they were saved from. Code in a file is never executed.

    Args:
        path: a `.safetensors` file; a `.pt`, `.pth`, `.bin` or `.ckpt` file with a state dict,
            plain or in a dict under "state_dict", "model_state_dict", "model", "net" or "weights";
            a `*.safetensors.index.json`; or a folder that holds exactly one such index, or exactly
            one `.safetensors` file.

    Returns:
        The tensors in file order, and what surrounds them.

    Raises:
        CheckpointError: there is no such file, it cannot be read, is damaged or of another kind,
            needs code to be loaded, or holds no tensors.
    """
    given = Path(path)
    try:
        checkpoint = _read(_resolve(given), given)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise unreadable(given, reason, "check that you may read it") from failure
    if not checkpoint.tensors:
        raise unreadable(given, "no tensors in it", "choose a checkpoint with weights")
    return checkpoint


def _resolve(path: Path) -> Path:
    """Return the file to read: `path` itself, or the one meant by a folder."""
    if not path.exists():
        raise unreadable(path, "no such file or folder", "check the path")
    if not path.is_dir():
        return path
    names = sorted(entry.name for entry in path.iterdir())
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    files = [name for name in names if name.endswith(".safetensors")]
    candidates = indexes or files
    if len(candidates) == 1:
        return path / candidates[0]
    found = quoted(candidates or [name for name in names if name.endswith(FILE_SUFFIXES)])
    raise unreadable(
        path,
        f"expected a folder with one *{INDEX_SUFFIX} or one .safetensors file, got "
        f"{found or 'none'}",
        "name the file",
    )


def _read(file: Path, given: Path) -> Checkpoint:
    suffix = file.suffix.lower()
    if file.name.endswith(INDEX_SUFFIX):
        tensors, shards = read_shards(file)
        return Checkpoint(given, MappingProxyType(tensors), "safetensors", shards=shards)
    if suffix == ".safetensors":
        tensors, metadata = read_safetensors(file)
        return Checkpoint(given, MappingProxyType(tensors), "safetensors", metadata=metadata)
    if suffix in TORCH_SUFFIXES:
        content = find_content(file, read_torch(file))
        tensors = state_tensors(file, content)
        warnings = content_warnings(content, tensors)
        view = MappingProxyType(tensors)
        return Checkpoint(given, view, "torch", content=content, warnings=warnings)
    if file.name.endswith(".index.json"):
        raise unreadable(file, "only safetensors can be sharded", "convert it to safetensors")
    raise unreadable(file, f'unknown extension "{file.suffix}"', _CHOICES)
