"""What this machine computes with: engines, memory, random numbers and recorded work."""

from gpu_align._device._backend import (
    CPU,
    Backend,
    Engine,
    backends,
    choose_engine,
    version,
    versions,
)
from gpu_align._device._memory import FreeMemory, free_bytes
from gpu_align._device._random import RandomStream
from gpu_align._device._replay import Replay

__all__ = [
    "CPU",
    "Backend",
    "Engine",
    "FreeMemory",
    "RandomStream",
    "Replay",
    "backends",
    "choose_engine",
    "free_bytes",
    "version",
    "versions",
]
