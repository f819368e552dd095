"""The CUDA kernels of the assignment solver, built for the host and put under their launcher.

`auction_host.h` stands in for CUDA, `g++` for NVRTC, and `HostDevice` for CuPy and the GPU: checks,
plans, scratch memory and the order of arguments are those of `gpu_align.kernels.auction` itself.
"""

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gpu_align._assignment import _auction
from gpu_align.kernels import auction as launcher

HERE = Path(__file__).parent
SOURCES = HERE.parent / "kernels" / "src"
COMPILER = shutil.which("g++")
TSAN_WARP = 8
"""Threads of a warp under the thread sanitizer."""

_POINTERS = (0, 2, 3, 4, *range(9, 16))
_DOUBLES = (7,)
_LEADING = 4
_TRAILING = 4


@contextmanager
def shared_folder(factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Lock the folder of all workers of a session, so that one builds there what all use."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def build(folder: Path, unit: str = "auction_host", warp: int = 1) -> Path:
    """Compile `{unit}.cpp` to a library with so many threads a warp, unless the folder has it."""
    library = folder / f"{unit}_{warp}.so"
    if not library.exists():
        flags = ("-O2", "-shared", "-fPIC", "-Wall", "-Wextra", f"-DHOST_WARP={warp}")
        _compile(library, unit, *flags)
    return library


def build_sanitized(folder: Path) -> Path:
    """Compile a program whose threads the thread sanitizer watches."""
    flags = ("-O0", "-g", "-fsanitize=thread", "-DHOST_MAIN", f"-DHOST_WARP={TSAN_WARP}")
    return _compile(folder / "auction_tsan", "auction_host", *flags)


def _compile(target: Path, unit: str, *flags: str) -> Path:
    assert COMPILER is not None
    quiet = ("-Wno-unused-parameter", "-Wno-unknown-pragmas")
    command = [COMPILER, "-std=c++17", *flags, *quiet, f"-I{SOURCES}", f"-I{HERE}"]
    command += [str(HERE / f"{unit}.cpp"), "-o", str(target), "-lpthread"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr, run.stderr
    return target


class HostDevice:
    """Runs what the launcher would give to CuPy: one block of one thread."""

    def __init__(self, library: Path) -> None:
        self.shared_limit = 227 * 1024
        self.kernels: list[int] = []
        self._launch = ctypes.CDLL(str(library)).auction_host
        kinds: list[type] = [ctypes.c_int64] * (_LEADING + 16 + _TRAILING)
        for position in _POINTERS:
            kinds[_LEADING + position] = ctypes.c_void_p
        for position in _DOUBLES:
            kinds[_LEADING + position] = ctypes.c_double
        self._launch.argtypes = kinds
        self._launch.restype = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the GPU, for tensors on the CPU, in the launcher and the solver."""
        monkeypatch.setattr(launcher, "_DEVICE", "cpu")
        monkeypatch.setattr(launcher, "_limits", self.limits)
        monkeypatch.setattr(launcher, "plan", self.plan)
        monkeypatch.setattr(launcher, "_call", self.call)
        monkeypatch.setattr(_auction, "_DEVICE", "cpu")
        monkeypatch.setattr(_auction, "find_cupy", lambda: True)

    def limits(self, device: torch.device) -> tuple[int, int]:
        """Stand in for `_limits`."""
        return self.shared_limit, 132

    def plan(self, batch: int, n: int, shared_limit: int, multiprocessors: int) -> launcher.Plan:
        """Stand in for `plan`: the same kernel, one block and one thread of it."""
        chosen = PLAN(batch, n, shared_limit, multiprocessors)
        teams = min(1, chosen.teams)
        return replace(chosen, blocks=1, threads=1, teams=teams, team_blocks=1)

    def call(
        self, chosen: launcher.Plan, arguments: list[int | float], device: torch.device
    ) -> None:
        """Stand in for `_call`."""
        self.kernels.append(chosen.kernel)
        leading = (chosen.kernel, chosen.blocks, chosen.threads, chosen.shared_bytes)
        missing = 16 + _TRAILING - len(arguments)
        self._launch(*leading, *arguments, *[0] * missing)


PLAN = launcher.plan


def run_sanitized(
    program: Path, chosen: launcher.Plan, cost: NDArray[np.float64]
) -> tuple[NDArray[np.int64], str]:
    """Run a launch with real threads; returns all outputs as one array, and what was reported."""
    batch, n = cost.shape[:2]
    head = [chosen.kernel, chosen.blocks, chosen.threads, chosen.shared_bytes]
    head += [chosen.team_bytes, chosen.team_blocks, batch, n]
    text = np.array(head, dtype=np.int64).tobytes() + cost.tobytes()
    run = subprocess.run([str(program)], input=text, capture_output=True, timeout=120)
    return np.frombuffer(run.stdout, dtype=np.int64), run.stderr.decode()
