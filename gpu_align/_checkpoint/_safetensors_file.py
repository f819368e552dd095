"""One safetensors file.

Reading is left to the safetensors library. Writing is done here, because the library sorts the
tensors and shuffles the metadata, and because here one tensor at a time is made contiguous. The
layout: header length (8 bytes, little-endian), JSON header padded to a multiple of 8, then the
tensors' bytes in the header's order.

Reference: https://huggingface.co/docs/safetensors/index#format
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpu_align._checkpoint._memory import raw_bytes
from gpu_align._checkpoint._refusal import leading_bytes, unreadable
from gpu_align._errors import CheckpointError

_METADATA = "__metadata__"

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float4_e2m1fn_x2: "F4",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Read a safetensors file.

    Args:
        path: an existing file.

    Returns:
        The CPU tensors in the order of the header, and the metadata in its own order (None if
        the header has none).

    Raises:
        CheckpointError: the file is damaged or not a safetensors file.
    """
    _check_content(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = _read_header(path)
            metadata = header.pop(_METADATA, None)
            tensors = {name: file.get_tensor(name) for name in header}
    except SafetensorError as failure:
        raise unreadable(
            path,
            f"expected a whole safetensors file, the reader says: {failure}",
            "the file is truncated or damaged: copy or download it again",
        ) from failure
    return tensors, metadata


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> None:
    """Write a safetensors file; the same tensors and metadata always give the same bytes.

    Tensors that share memory are written as separate entries.

    Args:
        path: the file to create or overwrite.
        tensors: name -> strided CPU tensor, written in this order.
        metadata: the header's `__metadata__`; None for none.

    Raises:
        CheckpointError: a name or a dtype that the format cannot hold.
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {} if metadata is None else {_METADATA: dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = _entry(name, tensor, [offset, offset + size])
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(raw_bytes(tensor))


def _entry(name: str, tensor: Tensor, offsets: list[int]) -> dict[str, Any]:
    if name == _METADATA or tensor.dtype not in _DTYPE_NAMES:
        raise CheckpointError(
            f'tensor "{name}" of dtype {tensor.dtype} cannot be stored in a safetensors file; '
            "choose a .pt output"
        )
    shape = list(tensor.shape)
    if tensor.dtype == torch.float4_e2m1fn_x2:
        # The format counts single values, torch counts pairs.
        shape[-1] *= 2
    return {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": offsets}


def _read_header(path: Path) -> dict[str, Any]:
    # The library hands out names and metadata sorted or shuffled. It has accepted the header by
    # now, so the JSON is known to be sound.
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def _check_content(path: Path) -> None:
    expected = "a safetensors file"
    start = leading_bytes(path, expected)
    # Any first byte is possible in a safetensors file, so look for the header too.
    if start[8:9] != b"{" and (start.startswith(b"PK") or start[0] == 0x80):
        raise unreadable(path, f"expected {expected}, got a torch file", "rename it to .pt")
