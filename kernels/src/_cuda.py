"""CUDA C++ on PyTorch's devices: CuPy compiles a kernel, and launches it on the current stream."""

import importlib.resources
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

_FREELY_GRANTED = 48 * 1024
"""Bytes of shared memory that a block may have without asking."""


@dataclass(frozen=True)
class Kernel:
    """What NVRTC makes of a file.

    Attributes:
        file: in this folder.
        name: of the function.
        options: of the compiler, but for the architecture.
        cooperative: its blocks wait for each other.
    """

    file: str
    name: str
    options: tuple[str, ...]
    cooperative: bool = False


def source(file: str) -> str:
    """Return the device code of a file as one text, its own includes resolved."""
    folder = importlib.resources.files("gpu_align.kernels")
    included: set[str] = set()

    def text_of(name: str) -> str:
        if name in included:
            return ""
        included.add(name)
        text = folder.joinpath(name).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return re.sub(r'^#include "(.+)"\n', lambda m: text_of(m[1]), text, flags=re.MULTILINE)

    return text_of(file)


def limits(device: torch.device) -> tuple[int, int]:
    """Return the shared memory that a block may have, and the number of multiprocessors."""
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin, properties.multi_processor_count


@contextmanager
def current_stream(device: torch.device) -> Iterator[None]:
    """Let CuPy launch on PyTorch's current stream of a device."""
    import cupy

    with cupy.cuda.Device(device.index), cupy.cuda.Stream.from_external(_CurrentStream(device)):
        yield


@dataclass(frozen=True)
class _CurrentStream:
    """PyTorch's current stream, handed over by the CUDA stream protocol."""

    device: torch.device

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, torch.cuda.current_stream(self.device).cuda_stream


def compiled(kernel: Kernel, device: torch.device, shared_bytes: int) -> Any:
    """Return a kernel, compiled by CuPy, that may use so much shared memory on a device."""
    raw, granted = _compiled(kernel, device.index)
    if shared_bytes > granted[0]:
        raw.max_dynamic_shared_size_bytes = shared_bytes
        granted[0] = shared_bytes
    return raw


@cache
def _compiled(kernel: Kernel, device_index: int) -> tuple[Any, list[int]]:
    """Compile a kernel, once per process and device; with the shared memory it has been granted."""
    import cupy

    raw = cupy.RawKernel(
        source(kernel.file),
        kernel.name,
        options=kernel.options,
        enable_cooperative_groups=kernel.cooperative,
    )
    return raw, [_FREELY_GRANTED]
