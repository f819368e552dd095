"""The CUDA kernels, compiled by NVRTC for real devices; needs no GPU.

The quickest of each source here; the slow tests and `make proofs` compile all of them.
"""

import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-bindings and nvidia-cuda-nvrtc")


@pytest.mark.parametrize("name", ["auction_warp", "k_best"])
def test_a_kernel_compiles_without_spills(name: str) -> None:
    from bench.compile_cuda import KERNELS, compile_kernel

    (kernel,) = (kernel for kernel in KERNELS if kernel.name == name)
    check([compile_kernel(kernel, 90)])


@pytest.mark.slow
def test_every_kernel_compiles_without_spills() -> None:
    from bench.compile_cuda import KERNELS, SHARED_LIMIT, compile_all

    rows = compile_all()
    assert len(rows) == len(KERNELS) * len(SHARED_LIMIT)
    check(rows)


def check(rows: list[dict]) -> None:
    from bench.compile_cuda import faults, table

    print("\n" + table(rows))
    for row in rows:
        assert faults(row) == "", row["log"]
        assert "warning" not in row["log"], row["log"]
