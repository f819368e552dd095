"""Which tensors share memory."""

from collections.abc import Mapping

from torch import Tensor


def memory_of(tensor: Tensor) -> object:
    """Return a key that two tensors share exactly if they are the same memory (tied)."""
    if tensor.numel() == 0:
        return id(tensor)
    place = (_storage_of(tensor), tensor.storage_offset())
    return tensor.device, tensor.dtype, place, tensor.shape, tensor.stride()


def overlapping(state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of tensors that share storage and are different views of it."""
    views: dict[int, set[object]] = {}
    held = {name: tensor for name, tensor in state.items() if tensor.numel()}
    for tensor in held.values():
        views.setdefault(_storage_of(tensor), set()).add(memory_of(tensor))
    return {name for name, tensor in held.items() if len(views[_storage_of(tensor)]) > 1}


def _storage_of(tensor: Tensor) -> int:
    """Return a number that two tensors share exactly if they share storage."""
    return tensor.untyped_storage()._cdata
