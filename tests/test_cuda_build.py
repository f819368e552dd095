"""The CUDA kernels, compiled by NVRTC for real devices; needs no GPU."""

import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-bindings and nvidia-cuda-nvrtc")


def test_every_kernel_compiles_without_spills() -> None:
    from bench.compile_cuda import KERNELS, SHARED_LIMIT, compile_all, faults, table

    rows = compile_all()
    print("\n" + table(rows))
    assert len(rows) == len(KERNELS) * len(SHARED_LIMIT)
    for row in rows:
        assert faults(row) == "", row["log"]
        assert "warning" not in row["log"], row["log"]
