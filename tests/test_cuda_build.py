"""The CUDA kernels, compiled by NVRTC for real devices; needs no GPU.

The quickest of each source here; `make proofs` compiles all of them.
"""

import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-bindings and nvidia-cuda-nvrtc")


@pytest.mark.parametrize("name", ["auction_warp", "k_best"])
def test_a_kernel_compiles_without_spills(name: str) -> None:
    from bench.compile_cuda import KERNELS, compile_kernel, faults

    (kernel,) = (kernel for kernel in KERNELS if kernel.name == name)
    row = compile_kernel(kernel, 90)
    assert faults(row) == "", row["log"]
