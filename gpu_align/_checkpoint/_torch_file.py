"""One file written by `torch.save`: a state dict, or a dict with a state dict in it."""

import copy
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_align._checkpoint._memory import MemoryKey, compact, memory_key, raw_bytes
from gpu_align._checkpoint._refusal import leading_bytes, opened_once, unreadable
from gpu_align._checkpoint._types import TorchContent
from gpu_align._errors import CheckpointError
from gpu_align._process import MODULES

# What `torch.load(weights_only=True)` was seen to raise on files with flipped or missing bytes.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
)


def read_torch(path: Path) -> Any:
    """Read a torch file without executing code from it.

    Args:
        path: an existing file.

    Returns:
        The object that was saved, with its tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged, not a torch file, or needs code to be loaded.
    """
    _check_content(path)
    try:
        with opened_once(path) as file, MODULES, warnings.catch_warnings():
            # torch warns of unusual files, which then either load or fail with our own error.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as failure:
        raise _explain(path, failure) from failure


def write_torch(path: Path, tensors: Mapping[str, Tensor], content: TorchContent | None) -> None:
    """Write a torch file; names whose tensors share memory stay tied.

    Args:
        path: the file to create or overwrite.
        tensors: name -> strided tensor.
        content: what to put around them; None for a plain dict.

    Raises:
        CheckpointError: names that were tied have different values now.
        OSError: the file cannot be written.
    """
    if content is None:
        document: Any = _compact_all(tensors, {})
    else:
        state = content.state()
        compacted = _compact_all(tensors, state)
        dressed = {name: _dress(state[name], tensor) for name, tensor in compacted.items()}
        document = _with_state(content.root, content.path, dressed)
    # A file object, because torch would store the temporary name of a path inside the archive.
    with open(path, "wb") as file:
        try:
            torch.save(document, file)
        except RuntimeError as failure:
            # torch's zip writer hides the system's error (a full disk, mostly) behind its own.
            raise OSError(f"torch.save failed ({failure})") from failure


def _compact_all(tensors: Mapping[str, Tensor], before: Mapping[str, Any]) -> dict[str, Tensor]:
    written: dict[MemoryKey, Tensor] = {}
    tied: dict[MemoryKey, tuple[str, Tensor]] = {}
    result = {}
    for name, tensor in tensors.items():
        key = memory_key(name, tensor)
        if key not in written:
            written[key] = compact(tensor)
        result[name] = written[key]
        if name in before:
            old_key = memory_key(name, before[name])
            first, result[name] = tied.setdefault(old_key, (name, result[name]))
            _check_still_equal(first, name, result[name], written[key])
    return result


def _check_still_equal(first: str, second: str, a: Tensor, b: Tensor) -> None:
    if a is not b and raw_bytes(a) != raw_bytes(b):
        raise CheckpointError(
            f'"{first}" and "{second}" are one tied tensor in the input, but were given different '
            "values; reorder both in the same way"
        )


def _dress(before: Tensor, tensor: Tensor) -> Tensor:
    if isinstance(before, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=before.requires_grad)
    if before.requires_grad:
        return tensor.detach().requires_grad_()
    return tensor


def _with_state(node: Any, path: tuple[str, ...], state: dict[str, Tensor]) -> Any:
    # copy.copy keeps the class, the order and the `_metadata` attribute of an OrderedDict.
    result = copy.copy(node)
    if path:
        result[path[0]] = _with_state(node[path[0]], path[1:], state)
    else:
        result.update(state)
    return result


def _check_content(path: Path) -> None:
    expected = "a file written by torch.save"
    start = leading_bytes(path, expected)
    if start[8:10] == b'{"':
        raise unreadable(
            path, f"expected {expected}, got a safetensors file", "rename it to .safetensors"
        )
    if not start.startswith((b"PK", b"\x80")):
        raise unreadable(
            path, f"expected {expected}, got something else", "save `model.state_dict()` to it"
        )


def _explain(path: Path, failure: Exception) -> CheckpointError:
    text = str(failure)
    code = re.search(r"GLOBAL (\S+)|(TorchScript)|[Uu]nsupported class (\S+)", text)
    if code:
        needed = next(group for group in code.groups() if group)
        return unreadable(
            path,
            f"expected tensors and plain values, the file needs code to be loaded ({needed}), and "
            "files with code are never executed",
            "where the model was made, save `model.state_dict()` and plain Python values only",
        )
    if "Unsupported operand" in text:
        return unreadable(
            path,
            "expected a file written by torch.save with its default pickle protocol, got something "
            "else or a damaged file",
            "save `model.state_dict()` again, or download the file again",
        )
    return unreadable(
        path,
        f"the torch file is truncated or damaged ({type(failure).__name__}: "
        f"{text.splitlines()[0] if text else 'end of file'})",
        "copy or download it again",
    )
