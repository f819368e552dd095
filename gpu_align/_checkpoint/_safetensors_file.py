"""One safetensors file, by the safetensors library."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpu_align._checkpoint._memory import memory_key
from gpu_align._checkpoint._refusal import leading_bytes, opened_once, unreadable
from gpu_align._errors import CheckpointError


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Read a safetensors file.

    Args:
        path: an existing file.

    Returns:
        The CPU tensors in the order of the library, and the metadata (None if there is none).

    Raises:
        CheckpointError: the file is damaged or not a safetensors file.
    """
    _check_content(path)
    try:
        with opened_once(path), safe_open(path, framework="pt", device="cpu") as file:
            # The library maps the file; what is not copied would change, or end, with it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
    except SafetensorError as failure:
        raise unreadable(
            path,
            f"expected a whole safetensors file, the reader says: {failure}",
            "the file is truncated or damaged: copy or download it again",
        ) from failure
    return tensors, metadata


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> None:
    """Write a safetensors file.

    Tensors that share memory are written as separate entries.

    Args:
        path: the file to create or overwrite.
        tensors: name -> strided CPU tensor.
        metadata: the header's `__metadata__`; None for none.

    Raises:
        CheckpointError: a name or a dtype that the format cannot hold.
        OSError: the file cannot be written.
    """
    if "__metadata__" in tensors:
        raise CheckpointError(
            'a tensor named "__metadata__" cannot be stored in a safetensors file; choose a .pt '
            "output"
        )
    separate: dict[str, Tensor] = {}
    seen: set[object] = set()
    for name, tensor in tensors.items():
        key = memory_key(name, tensor)
        copy = tensor.clone() if key in seen else tensor.resolve_conj().resolve_neg()
        separate[name] = copy.detach().contiguous()
        seen.add(key)
    try:
        save_file(separate, path, None if metadata is None else dict(metadata))
    except (SafetensorError, ValueError, KeyError) as failure:
        raise CheckpointError(
            f"cannot be stored in a safetensors file: {failure}; choose a .pt output"
        ) from failure


def _check_content(path: Path) -> None:
    expected = "a safetensors file"
    start = leading_bytes(path, expected)
    # Any first byte is possible in a safetensors file, so look for the header too.
    if start[8:9] != b"{" and (start.startswith(b"PK") or start[0] == 0x80):
        raise unreadable(path, f"expected {expected}, got a torch file", "rename it to .pt")
