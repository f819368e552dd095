"""Write a recorded run: the rows, and the machine and versions they belong to."""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from gpu_align._checkpoint._atomic import atomic_write
from gpu_align._device._backend import version, versions

RESULTS = Path(__file__).parent / "results"
OTHERS = ("triton", "cupy-cuda13x", "cupy-cuda12x", "torch-linear-assignment", "torch-lap-cuda")
"""Packages whose versions count where they are installed."""


def facts() -> dict[str, object]:
    """Return what a figure depends on besides the code: processor, cores, versions, commit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    others = {name: version(name) for name in OTHERS}
    found = versions() | {name: number for name, number in others.items() if number}
    return {
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "gpu": gpu},
        "versions": found | ({"cuda": torch.version.cuda} if gpu else {}),
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit that is checked out, GPU_ALIGN_COMMIT in a copy without git, or None."""
    if shutil.which("git"):
        run = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        if run.returncode == 0:
            return run.stdout.strip()
    return os.environ.get("GPU_ALIGN_COMMIT")


def record(name: str, rows: list[dict]) -> None:
    """Write `results/NAME.json`."""
    with atomic_write(RESULTS / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({**facts(), "rows": rows}, indent=1), encoding="utf-8")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
