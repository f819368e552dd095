"""MNIST, and what has its format: idx files.

Reference:
    LeCun, Cortes and Burges, The MNIST database, "File formats for this page".
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpu_align._errors import InputError

_MEAN, _DEVIATION = 0.1307, 0.3081
_BYTES = 8
"""The code of unsigned bytes in the magic number."""

_AT_ONCE = 1 << 24  # a header may promise more than there is

_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

Pair = tuple[Tensor, Tensor]


def read_idx_folder(folder: Path) -> tuple[Pair, Pair | None]:
    """Read images and labels as MNIST is distributed, plain or with .gz.

    Returns:
        Images float32 [n, 1, h, w], normalised by MNIST's mean and deviation, and labels int64 [n],
        for training and for testing; None if there are no test files.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"cannot read {folder}: no such folder; name the one with the idx files")
    train = _read_part(folder, *_NAMES["train"])
    has_test = any(_find(folder, name) for name in _NAMES["test"])
    return train, _read_part(folder, *_NAMES["test"]) if has_test else None


def _read_part(folder: Path, images_name: str, labels_name: str) -> Pair:
    paths = [_find(folder, name) for name in (images_name, labels_name)]
    for path, name in zip(paths, (images_name, labels_name), strict=True):
        if path is None:
            raise InputError(f"{folder} has neither {name} nor {name}.gz; put the file there")
    images, labels = (
        read_idx(path, axes) for path, axes in zip(paths, (3, 1), strict=True) if path is not None
    )
    if len(images) != len(labels):
        raise InputError(
            f"{folder} has {len(images)} images in {images_name} and {len(labels)} labels in "
            f"{labels_name}; take both from one distribution"
        )
    return ((images[:, None].float() / 255 - _MEAN) / _DEVIATION, labels.long())


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(path: Path, axes: int) -> Tensor:
    """Read an idx file of unsigned bytes.

    Args:
        path: of the file; one that ends with .gz is unpacked.
        axes: how many it must have.

    Returns:
        uint8, with the axes that the file says.

    Raises:
        InputError: it cannot be read, is something else, or is cut off.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if magic != bytes((0, 0, _BYTES, axes)):
                raise InputError(
                    f"{path} is no idx file of unsigned bytes with {axes} axes: it begins with "
                    f"{magic.hex() or 'nothing'}, not 00000{_BYTES}0{axes}; get it again"
                )
            sizes = np.frombuffer(_read(file, 4 * axes, path), dtype=">u4").tolist()
            if 0 in sizes:
                raise InputError(f"{path} has no entries: its sizes are {sizes}; get it again")
            entries = _read(file, math.prod(sizes), path)
            if file.read(1):
                raise InputError(f"{path} goes on after its {sizes} entries; get it again")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; check the file, or get it again") from error
    return torch.frombuffer(bytearray(entries), dtype=torch.uint8).reshape(sizes)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _read(file: _Readable, count: int, path: Path) -> bytes:
    parts, missing = [], count
    while missing:
        parts.append(file.read(min(missing, _AT_ONCE)))
        missing -= len(parts[-1])
        if not parts[-1]:
            raise InputError(f"{path} is cut off: {missing} of {count} bytes are missing")
    return b"".join(parts)
