"""The k best matchings of many problems on a CUDA device: the launcher of ``k_best.cu``.

CuPy compiles the kernel and launches it; memory is PyTorch's, the stream is PyTorch's current one,
and nothing here waits for the device. ``kernels/README.md`` has the method and its limits; its twin
in torch is ``gpu_align/_assignment/_k_best.py``.
"""

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align.kernels._cuda import Kernel, compiled, current_stream
from gpu_align.kernels._cuda import limits as _limits

KERNEL = Kernel("k_best.cu", "k_best", ("--std=c++17", "--fmad=false"))

_DEVICE = "cuda"
_WARP, _MOST_WARPS = 32, 16
_WARP_ROWS = 4


def plan(n: int) -> tuple[int, int]:
    """Return the threads of a block for n rows, and the bytes of its shared memory."""
    warps = max(1, min(_MOST_WARPS, -(-n // _WARP_ROWS)))
    return _WARP * warps, 8 * n * n + 16 * n + 16 * _MOST_WARPS


def fits(n: int, device: torch.device) -> bool:
    """Say whether the matrix of one problem of n rows fits the shared memory of a block."""
    return plan(n)[1] <= _limits(device)[0]


def rank_matchings(cost: Tensor, best: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best matchings of every problem by one launch on PyTorch's current stream.

    The first call compiles the kernel.

    Args:
        cost: [b, n, n], float64, on a CUDA device, n at least 1 and such that it `fits`;
            integers below 2**51, infinite where rows and columns may not be matched.
        best: [b, n], int64; the best matchings.
        k: how many, at least 1.

    Returns:
        col_ind [b, k, n], int64, which repeats the best where none is left, and the costs [b, k],
        float64, infinite there. A `best` which is not shows by costs that fall from one rank to
        the next.

    Raises:
        InputError: a tensor has the wrong shape, dtype or device, or k is below 1.
    """
    _check(cost, best, k)
    batch, n = best.shape
    threads, shared_bytes = plan(n)
    if not fits(n, cost.device):
        raise InputError(
            f"cost: expected a matrix that fits {_limits(cost.device)[0]} bytes of shared memory; "
            f"got {n} rows, which need {shared_bytes}. Call gpu_align._assignment.k_best."
        )
    by_column, best = cost.mT.contiguous(), best.contiguous()
    col_ind = best.new_empty(batch, k, n)
    total, child = cost.new_empty(batch, k), cost.new_empty(batch, k, n)
    banned, last_free = (
        best.new_empty(shape, dtype=torch.int32) for shape in ((batch, k, n), (batch, k))
    )
    tensors = (col_ind, total, child, banned, last_free)
    arguments = [by_column.data_ptr(), best.data_ptr(), batch, n, k]
    arguments += [tensor.data_ptr() for tensor in tensors]
    if batch:
        _call(batch, threads, shared_bytes, arguments, cost.device)
    return col_ind, total


def _check(cost: Tensor, best: Tensor, k: int) -> None:
    """Raise InputError for what the kernel cannot read."""
    if k < 1:
        raise InputError(f"k: expected at least 1; got {k}.")
    if cost.ndim != 3 or cost.shape[1] != cost.shape[2] or cost.shape[1] == 0:
        raise InputError(f"cost: expected shape [b, n, n], n at least 1; got {list(cost.shape)}.")
    if cost.dtype != torch.float64 or cost.device.type != _DEVICE:
        raise InputError(
            f"cost: expected float64 on a CUDA device; got {cost.dtype} on {cost.device}. "
            "Convert it with .double() and .cuda()."
        )
    wanted = (cost.shape[:2], torch.int64, cost.device)
    if (best.shape, best.dtype, best.device) != wanted:
        raise InputError(
            f"best: expected torch.int64 of shape {list(wanted[0])} on {cost.device}; got "
            f"{best.dtype} of shape {list(best.shape)} on {best.device}."
        )


def _call(
    blocks: int, threads: int, shared_bytes: int, arguments: list[int], device: torch.device
) -> None:
    """Hand a launch to CuPy, on PyTorch's current stream."""
    with current_stream(device):
        kernel = compiled(KERNEL, device, shared_bytes)
        kernel((blocks,), (threads,), tuple(arguments), shared_mem=shared_bytes)
