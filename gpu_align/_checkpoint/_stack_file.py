"""Safetensors files with many models: their headers, some of their rows, and writing bit by bit."""

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpu_align._checkpoint._refusal import open_regular, unreadable
from gpu_align._checkpoint._safetensors_file import DTYPES, read_layout

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorLayout:
    """A tensor in a file: its dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(path: Path) -> tuple[dict[str, TensorLayout], dict[str, str] | None]:
    """Return what tensors a safetensors file has, by name, and its metadata; none is read.

    Raises:
        CheckpointError: the file is damaged or not a safetensors file; OSError: it cannot be read.
    """
    with open_regular(path) as file:
        entries, metadata = read_layout(path, file)
    found = {name: TensorLayout(entries[name].dtype, entries[name].shape) for name in entries}
    return dict(sorted(found.items())), metadata


def read_rows(path: Path, names: Sequence[str], start: int, stop: int) -> dict[str, Tensor]:
    """Return some of the models in a safetensors file whose tensors have an axis of models.

    Args:
        path: the file.
        names: of the tensors that are read.
        start, stop: which models.

    Returns:
        name -> [stop - start, *shape], on the CPU.

    Raises:
        CheckpointError: the file is damaged; OSError: it cannot be read.
    """
    found = {}
    with open_regular(path) as file:
        entries, _ = read_layout(path, file)
        begin = file.tell()
        for name in names:
            entry = entries[name]
            each = (entry.stop - entry.start) // max(entry.shape[0], 1)
            tensor = torch.empty((stop - start, *entry.shape[1:]), dtype=entry.dtype, device="cpu")
            if tensor.numel():
                file.seek(begin + entry.start + start * each)
                memory = tensor.reshape(-1).view(torch.uint8).numpy().data
                if file.readinto(memory) != (stop - start) * each:
                    raise unreadable(path, f'it ends within "{name}"', "copy the file again")
            found[name] = tensor
    return found


def write_in_parts(
    path: Path,
    layouts: Mapping[str, TensorLayout],
    metadata: Mapping[str, str] | None,
    parts: Callable[[str], Iterable[Tensor]],
) -> None:
    """Write a safetensors file whose tensors come in parts, one after another.

    Args:
        path: the file to create or overwrite.
        layouts: name -> what the tensor is as a whole.
        metadata: the header's `__metadata__`; None for none.
        parts: returns the parts of a tensor by its name, along its first axis, on the CPU.

    Raises:
        OSError: the file cannot be written.

    Reference:
        https://github.com/huggingface/safetensors#format
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    names = sorted(layouts, key=lambda name: (-layouts[name].dtype.itemsize, name))
    end = 0
    for name in names:
        layout = layouts[name]
        size = torch.Size(layout.shape).numel() * layout.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            for part in parts(name):
                flat = part.contiguous().reshape(-1).view(torch.uint8)
                file.write(flat.numpy().data)
        assert file.tell() == 8 + len(text) + end, "the parts are not the whole"
