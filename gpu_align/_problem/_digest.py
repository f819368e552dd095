"""Hashes of weights, by which a kept search is known to be that of the same networks."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def hash_tensors(states: Iterable[Mapping[str, Tensor]]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values, as hexadecimal digits."""
    digest = hashlib.sha256()
    for number, state in enumerate(states):
        for name in sorted(state):
            tensor = state[name]
            digest.update(f"{number} {name!r} {tensor.dtype} {list(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
