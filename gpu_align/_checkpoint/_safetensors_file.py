"""One safetensors file.

It is read into memory rather than mapped, as the library does: a mapped file that is cut short ends
the process. It is written by the library.
"""

import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gpu_align._checkpoint._memory import memory_key
from gpu_align._checkpoint._refusal import opened_once, parse_json, unreadable
from gpu_align._errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MOST_HEADER = 100_000_000  # bytes, as in the library


@dataclass(frozen=True)
class Entry:
    """A tensor of the header: its bytes are those from `start` to `stop` of the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Read a safetensors file.

    Args:
        path: an existing file.

    Returns:
        The CPU tensors in the order of their names, and the metadata (None if there is none).

    Raises:
        CheckpointError: the file is damaged or not a safetensors file.

    Reference:
        https://github.com/huggingface/safetensors#format
    """
    with opened_once(path) as file:
        entries, metadata = read_layout(path, file)
        begin = file.tell()
        tensors = {
            name: _read_tensor(path, name, file, begin, entry)
            for name, entry in sorted(entries.items(), key=lambda item: item[1].start)
        }
    return {name: tensors[name] for name in sorted(tensors)}, metadata


def read_layout(path: Path, file: BufferedReader) -> tuple[dict[str, Entry], dict[str, str] | None]:
    """Read where the tensors of a safetensors file lie, and its metadata; the data come next.

    Raises:
        CheckpointError: the file is damaged or not a safetensors file.
    """
    size = os.fstat(file.fileno()).st_size
    header = _read_header(path, file, size)
    metadata = _metadata(path, header.pop("__metadata__", None))
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    _check_layout(path, entries, size - file.tell())
    return entries, metadata


def _read_header(path: Path, file: BufferedReader, size: int) -> dict[str, Any]:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > min(size - 8, _MOST_HEADER):
        raise _damaged(path, "its header does not end in the file")
    header = parse_json(path, file.read(length), "the header of a whole safetensors file")
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is {type(header).__name__}, not an object")
    return header


def _metadata(path: Path, value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _damaged(path, "its __metadata__ does not map names to texts")
    return value


def _entry(path: Path, name: str, value: Any) -> Entry:
    known = isinstance(value, dict) and value.keys() >= {"dtype", "shape", "data_offsets"}
    if not known or not _are_sizes(value["shape"]) or not _are_sizes(value["data_offsets"]):
        raise _damaged(path, f'the entry of "{name}" is not {{dtype, shape, data_offsets}}')
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise _damaged(path, f'"{name}" has the unknown dtype {str(value["dtype"])[:40]!r}')
    shape, offsets = tuple(value["shape"]), value["data_offsets"]
    if dtype == torch.float4_e2m1fn_x2 and shape:
        shape = (*shape[:-1], shape[-1] // 2)  # torch counts pairs
    wanted = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != wanted:
        raise _damaged(path, f'the size of "{name}" is not that of its shape')
    return Entry(dtype, shape, offsets[0], offsets[1])


def _are_sizes(value: object) -> bool:
    # Bounded, so that no product of them takes long.
    if not isinstance(value, list) or len(value) > 1024:
        return False
    return all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _check_layout(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """Check that the tensors fill the data without gaps."""
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end:
            raise _damaged(path, "its tensors overlap or leave gaps")
        end = entry.stop
    if end != size:
        raise _damaged(path, f"its tensors have {end} bytes, there are {size}")


def _read_tensor(path: Path, name: str, file: BufferedReader, begin: int, entry: Entry) -> Tensor:
    try:
        tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    except (RuntimeError, OverflowError) as failure:
        if "allocate" in str(failure):
            raise
        raise _damaged(path, f'"{name}" has a shape that torch does not take') from failure
    if entry.stop > entry.start:
        file.seek(begin + entry.start)
        memory = tensor.reshape(-1).view(torch.uint8).numpy().data
        if file.readinto(memory) != entry.stop - entry.start:
            raise _damaged(path, f'it ends within "{name}"')
    return tensor


def _damaged(path: Path, problem: str) -> CheckpointError:
    return unreadable(
        path,
        f"expected a whole safetensors file, but {problem}",
        "the file is truncated or damaged: copy or download it again",
    )


_OF_THE_SYSTEM = re.compile(r"\(os error (?P<number>\d+)\)")
"""How the library, which knows one class of errors, says that a disk is full."""


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> None:
    """Write a safetensors file.

    Tensors that share memory are written as separate entries.

    Args:
        path: the file to create or overwrite.
        tensors: name -> strided CPU tensor.
        metadata: the header's `__metadata__`; None for none.

    Raises:
        CheckpointError: a name or a dtype that the format cannot hold.
        OSError: the file cannot be written.
    """
    if "__metadata__" in tensors:
        raise CheckpointError(
            'a tensor named "__metadata__" cannot be stored in a safetensors file; choose a .pt '
            "output"
        )
    separate: dict[str, Tensor] = {}
    seen: set[object] = set()
    for name, tensor in tensors.items():
        key = memory_key(name, tensor)
        copy = tensor.clone() if key in seen else tensor.resolve_conj().resolve_neg()
        separate[name] = copy.detach().contiguous()
        seen.add(key)
    try:
        save_file(separate, path, None if metadata is None else dict(metadata))
    except (SafetensorError, ValueError, KeyError) as failure:
        if system := _OF_THE_SYSTEM.search(str(failure)):
            number = int(system["number"])
            raise OSError(number, os.strerror(number)) from failure
        raise CheckpointError(
            f"cannot be stored in a safetensors file: {failure}; choose a .pt output"
        ) from failure
