"""How much memory is free."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from gpu_align._errors import InputError

_GIB = 2**30
_FRESH = 1.0
"""Seconds for which a measurement of free memory is trusted."""

_LIMIT = "GPU_ALIGN_MEMORY"
"""Environment variable: bytes of a shared machine that are planned with at most."""


class FreeMemory:
    """The free memory of one device, and how much fits into it."""

    def __init__(self, device: torch.device) -> None:
        """Take a device."""
        self._device, self._measured = device, (-math.inf, 0)

    def fitting(self, each: int, share: float = 1.0) -> int:
        """Return how often `each` bytes fit into a share of the free memory, at least once."""
        now = time.monotonic()
        if now > self._measured[0] + _FRESH:
            self._measured = now, free_bytes(self._device)
        return max(int(share * self._measured[1]) // max(each, 1), 1)


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can still be allocated on a device, at most those of `_LIMIT`.

    On CUDA what the driver has free and what torch holds in reserve; on the CPU what the kernel
    calls available, or less where a control group allows less.

    Raises:
        InputError: the limit is no number of bytes.
    """
    return int(min(_allocatable(device), _limit()))


def _allocatable(device: torch.device) -> float:
    if device.type == "cuda":
        held = torch.cuda.memory_stats(device)  # once: torch's shortcuts make the whole table each
        reserved, used = (f"{kind}_bytes.all.current" for kind in ("reserved", "allocated"))
        free: int = torch.cuda.mem_get_info(device)[0] + held.get(reserved, 0) - held.get(used, 0)
        return free
    available = _meminfo().get("MemAvailable")
    if available is None:
        # Not Linux: assume that half of the memory is in use.
        names: Mapping[str, int] = getattr(os, "sysconf_names", {})
        if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
            return 4 * _GIB
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(available, _left_in_control_group())


def _limit() -> float:
    """Return the limit that the environment sets; inf without one."""
    limit = os.environ.get(_LIMIT, "")
    if limit and not limit.isdecimal():
        raise InputError(
            f"{_LIMIT}: expected a number of bytes, got {limit!r}; 8 GiB are {8 * _GIB}"
        )
    return int(limit) if limit else math.inf


def _meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes; empty where there is none."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return {}
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) == 3}


def _left_in_control_group(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what the control group (version 2) of a container has left; inf without a limit."""
    limit, used, stat = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.exists() and used.exists() and stat.exists()):
        return math.inf
    allowed = limit.read_text(encoding="ascii").strip()
    if allowed == "max":
        return math.inf
    # Cached files count as used, but make room.
    lines = (line.split() for line in stat.read_text(encoding="ascii").splitlines())
    cached = sum(int(size) for name, size in lines if name in ("active_file", "inactive_file"))
    return max(int(allowed) - int(used.read_text(encoding="ascii")) + cached, 0)
