"""Ahead-of-time compilation of the Triton kernels: no GPU needed.

One variant of each kernel here; `make proofs`, without which there is no Triton, compiles all.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_kernels_compile_without_spills() -> None:
    # In another process: this one has Triton's interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "bench.compile_kernels", "--sample"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()[1:]
    kernels = {line.split()[0] for line in lines}
    assert {"row_distance_kernel", "resident_kernel"} <= kernels
    assert len(lines) == len(kernels)
