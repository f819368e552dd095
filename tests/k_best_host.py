"""The kernel of the k best matchings, built for the host and put under its launcher.

As in `auction_host`, g++ stands in for NVRTC, and `HostRanking` for CuPy and the GPU.
"""

import ctypes
from pathlib import Path

import pytest
import torch

from gpu_align._assignment import _k_best
from gpu_align.kernels import k_best as launcher

UNIT = "k_best_host"
_PARAMETERS = (*[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 5)


class HostRanking:
    """Runs what the launcher would give to CuPy, by so many threads a block.

    Attributes:
        launches: how often it did.
    """

    def __init__(self, library: Path, threads: int = 1) -> None:
        self.shared_limit = 227 * 1024
        self.threads = threads
        self.launches = 0
        self._launch = ctypes.CDLL(str(library)).k_best_host
        self._launch.argtypes = [*[ctypes.c_int64] * 3, *_PARAMETERS]
        self._launch.restype = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the GPU, for tensors on the CPU, in the launcher and in `k_best`."""
        monkeypatch.setattr(launcher, "_DEVICE", "cpu")
        monkeypatch.setattr(launcher, "_limits", self.limits)
        monkeypatch.setattr(launcher, "_call", self.call)
        monkeypatch.setattr(_k_best, "_DEVICE", "cpu")
        monkeypatch.setattr(_k_best, "find_cupy", lambda: True)

    def limits(self, device: torch.device) -> tuple[int, int]:
        """Stand in for `_limits`."""
        return self.shared_limit, 132

    def call(
        self,
        blocks: int,
        threads: int,
        shared_bytes: int,
        arguments: list[int],
        device: torch.device,
    ) -> None:
        """Stand in for `_call`."""
        self.launches += 1
        self._launch(1, self.threads, shared_bytes, *arguments)
