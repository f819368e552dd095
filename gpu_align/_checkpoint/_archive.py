"""Zip archives with a torch file in them, as stable-baselines3 writes its policies."""

import copy
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gpu_align._checkpoint._refusal import opened_once, quoted, unreadable
from gpu_align._checkpoint._torch_file import parse_torch, write_torch
from gpu_align._checkpoint._types import TORCH_SUFFIXES, Archive, TorchContent

# What stable-baselines3 keeps beside the policy.
_BESIDE = ("optimizer", "pytorch_variables")
_MOST_BYTES = 1 << 36


def read_archive(path: Path) -> tuple[Any, Archive]:
    """Read the torch file in a zip archive.

    Args:
        path: an existing file that is a zip archive.

    Returns:
        The object that was saved (see `read_torch`), and the whole archive.

    Raises:
        CheckpointError: the archive is damaged, or has no torch file or several.
    """
    try:
        with opened_once(path) as file, zipfile.ZipFile(file) as archive:
            name = _choose(path, archive.namelist())
            if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
                raise unreadable(path, "it unpacks to more than 64 GiB", "unpack it yourself")
            members = tuple((info, archive.read(info)) for info in archive.infolist())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as failure:
        raise unreadable(
            path, f"the zip archive is damaged ({failure})", "copy or download it again"
        ) from failure
    content = next(data for info, data in members if info.filename == name)
    return parse_torch(path / name, io.BytesIO(content)), Archive(members, name)


def write_archive(
    path: Path, tensors: Mapping[str, Tensor], content: TorchContent, archive: Archive
) -> None:
    """Write the archive with other tensors; everything else in it stays.

    Args:
        path: the file to create or overwrite.
        tensors: name -> strided tensor.
        content: what to put around them.
        archive: what to put around that.

    Raises:
        CheckpointError: as for `write_torch`.
        OSError: the file cannot be written.
    """
    with zipfile.ZipFile(path, "w") as file:
        for info, data in archive.members:
            if info.filename == archive.name:
                data = _bytes(tensors, content)
            # A copy, for the place and the size in the archive are noted in it.
            file.writestr(copy.copy(info), data)


def _bytes(tensors: Mapping[str, Tensor], content: TorchContent) -> bytes:
    buffer = io.BytesIO()
    write_torch(buffer, tensors, content)
    return buffer.getvalue()


def _choose(path: Path, names: list[str]) -> str:
    found = [name for name in names if name.lower().endswith(TORCH_SUFFIXES)]
    weights = [name for name in found if not any(part in name for part in _BESIDE)]
    if len(weights) != 1:
        raise unreadable(
            path,
            f"expected a zip archive with one torch file, got {quoted(weights or names) or 'none'}",
            "unpack it, and name the checkpoint inside",
        )
    return weights[0]
