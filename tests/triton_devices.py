"""Where the Triton kernels are tested: in the interpreter without a GPU, else on the device."""

import os

import numpy as np
import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="compiled in this process")
    ),
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="interpreted here")],
    ),
]


def mend_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter multiply bfloat16: it holds them as uint16 and multiplies those.

    `conftest.py` does so for all tests: float32 weights are multiplied as bfloat16 planes.
    """
    from triton.language import bfloat16
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    original = builder.create_dot

    def widened(handle: object) -> object:
        if handle.dtype.scalar != bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    def create_dot(self: object, a: object, b: object, *rest: object) -> object:
        return original(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(builder, "create_dot", create_dot)


def rms(difference: Tensor) -> float:
    """Return the root of the mean square."""
    return float(difference.double().square().mean().sqrt()) if difference.numel() else 0.0


def assert_float32_grade(found: Tensor, exact: Tensor, float32: Tensor) -> None:
    """Check that an error is at most twice that of torch in float32, both against float64."""
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    assert not found.isnan().any()
    floor = 2**-24 * rms(exact)  # where torch happens to be exact, half a unit of the last place
    assert rms(found - exact) <= 2 * rms(float32 - exact) + floor
