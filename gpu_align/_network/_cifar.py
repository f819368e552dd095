"""CIFAR-10 as it is distributed: batches in pickles, or in plain bytes.

Reference:
    Krizhevsky, Learning multiple layers of features from tiny images (2009), and the layout on the
    page of the data set.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_align._checkpoint import Foreign, load_inert
from gpu_align._errors import InputError
from gpu_align._network._own_code import first_line

_MEANS = (0.4914, 0.4822, 0.4465)
_DEVIATIONS = (0.2470, 0.2435, 0.2616)
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_FOLDERS = (".", "cifar-10-batches-py", "cifar-10-batches-bin")
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"

Pair = tuple[Tensor, Tensor]


def read_cifar10(folder: Path) -> tuple[Pair, Pair | None]:
    """Read the batches of CIFAR-10; nothing in a pickle is run.

    Args:
        folder: of the batches, or the one around it; with data_batch_1 to 5 (fewer are taken too)
            and test_batch, each a pickle or, with .bin, plain bytes.

    Returns:
        Images float32 [n, 3, 32, 32], normalised by the usual means and deviations, and labels
        int64 [n], for training and for testing; None if there is no test batch.

    Raises:
        InputError: there are no batches, or one cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"cannot read {folder}: no such folder; name the one with data_batch_1")
    found = (
        [path for name in _TRAIN for path in _files(folder / inner, name)] for inner in _FOLDERS
    )
    train = next((paths for paths in found if paths), None)
    if train is None:
        raise InputError(
            f"{folder} has no data_batch_1 (or data_batch_1.bin), nor a folder "
            f"{_FOLDERS[1]} with it; unpack the distribution of CIFAR-10 there"
        )
    test = _files(train[0].parent, _TEST)
    return _normalised(train), _normalised(test) if test else None


def _files(folder: Path, name: str) -> list[Path]:
    return [p for p in (folder / name, folder / f"{name}.bin") if p.is_file()][:1]


def _normalised(paths: list[Path]) -> Pair:
    read = [_from_bytes(path) if path.suffix == ".bin" else _from_pickle(path) for path in paths]
    images = torch.cat([images for images, _ in read]).reshape(-1, *_SHAPE).float() / 255
    means, deviations = (
        torch.tensor(values, device="cpu")[:, None, None] for values in (_MEANS, _DEVIATIONS)
    )
    return (images - means) / deviations, torch.cat([labels for _, labels in read]).long()


def _from_bytes(path: Path) -> Pair:
    """Return images uint8 [n, 3072] and labels uint8 [n]: a byte of label before each image."""
    content = _content(path)
    if not content or len(content) % (1 + _PIXELS):
        raise InputError(
            f"{path} has {len(content)} bytes, which is no multiple of {1 + _PIXELS}, a label and "
            "an image of CIFAR-10; get it again (CIFAR-100 has two labels)"
        )
    rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 1:], rows[:, 0]


def _from_pickle(path: Path) -> Pair:
    """Return images uint8 [n, 3072] and labels int64 [n] of a dict with data and labels."""
    content = _content(path)
    try:
        read = load_inert(io.BytesIO(content), encoding="bytes")
        held = {k.decode() if isinstance(k, bytes) else k: v for k, v in read.items()}
        images, labels = _bytes_of(held["data"]), list(held["labels"])
        if len(images) != len(labels) or not all(type(n) is int for n in labels):
            raise ValueError(f"{len(images)} images for {len(labels)} labels")
        return images, torch.tensor(labels, dtype=torch.int64, device="cpu")
    except Exception as error:
        raise InputError(
            f"{path} is no batch of CIFAR-10's Python version ({first_line(error)}); get it again"
        ) from error


def _bytes_of(array: Any) -> Tensor:
    """Return a pickled array of unsigned bytes, [n, 3072].

    NumPy rebuilds it by a call and gives it (version, shape, dtype, is in Fortran's order, bytes)
    as its state (`ndarray.__setstate__`); here these are only looked at.
    """
    if isinstance(array, Foreign) and len(array.steps) == 1:
        _, (_, shape, dtype, in_columns, content) = array.steps[0]
        if dtype.arguments[0] in ("u1", b"u1") and isinstance(content, bytes):
            flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return flat.reshape(_PIXELS, -1).T if in_columns else flat.reshape(shape[0], _PIXELS)
    raise ValueError("data is no array of unsigned bytes")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the file") from error
