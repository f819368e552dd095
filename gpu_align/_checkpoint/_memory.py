"""Which tensors share memory."""

from collections.abc import Mapping

import torch
from torch import Tensor

MemoryKey = tuple[object, ...]


def memory_key(name: str, tensor: Tensor) -> MemoryKey:
    """Return a key that two names have in common exactly if their tensors are tied.

    Tied means the same elements of the same storage, seen with the same shape, strides and dtype.
    A tensor without elements has no memory to share and is tied to nothing.

    Args:
        name: the tensor's name.
        tensor: strided CPU tensor of any shape and dtype.
    """
    if tensor.numel() == 0:
        return (name,)
    views = (tensor.is_conj(), tensor.is_neg())
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, *views)


def overlapping_names(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Find pairs of names whose tensors share memory without being tied.

    Compares the first and last address only, so interleaved columns of one matrix count too.

    Args:
        tensors: name -> strided CPU tensor.
    """
    distinct: dict[MemoryKey, str] = {}
    for name, tensor in tensors.items():
        distinct.setdefault(memory_key(name, tensor), name)
    spans = sorted((*_span(tensors[name]), name) for name in distinct.values())
    pairs = []
    reach, owner = 0, ""
    for start, stop, name in spans:
        if start < reach:
            pairs.append((owner, name))
        if stop > reach:
            reach, owner = stop, name
    return pairs


def has_plain_values(tensor: Tensor) -> bool:
    """Tell whether a tensor is dense, not quantized and not on the meta device."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized
    return dense and not tensor.is_meta


def compact(tensor: Tensor) -> Tensor:
    """Return a contiguous CPU tensor whose storage holds its elements and nothing else.

    Args:
        tensor: strided tensor of any shape, dtype and device.

    Returns:
        `tensor` itself if it is like that already, else a copy; same shape and dtype.
    """
    result = tensor.detach().cpu().contiguous()
    if result.untyped_storage().nbytes() != result.numel() * result.element_size():
        result = result.clone(memory_format=torch.contiguous_format)
    return result


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order.

    Args:
        tensor: strided CPU tensor of any shape and dtype.
    """
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _span(tensor: Tensor) -> tuple[int, int]:
    if tensor.numel() == 0:
        return (0, 0)
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in pairs)
    return (tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size())
