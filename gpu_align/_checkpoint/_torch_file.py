"""One file written by `torch.save`: a state dict, or an object with a state dict in it."""

import copy
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from gpu_align._checkpoint import _inert
from gpu_align._checkpoint._memory import MemoryKey, compact, memory_key, raw_bytes
from gpu_align._checkpoint._refusal import opened_once, unreadable
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
        The object that was saved, with its tensors on the CPU, and placeholders (`Foreign`, `Name`)
        in the place of what needs classes other than those of torch.

    Raises:
        CheckpointError: the file is damaged or not a torch file.
    """
    with opened_once(path) as file:
        return parse_torch(path, file)


def parse_torch(path: Path, file: IO[bytes]) -> Any:
    """Read an open torch file; see `read_torch`.

    Args:
        path: what it is called in messages.
        file: at its beginning.

    Raises:
        CheckpointError: as for `read_torch`.
    """
    try:
        with MODULES, warnings.catch_warnings():
            # torch warns of unusual files, which then either load or fail with our own error.
            warnings.simplefilter("ignore")
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                file.seek(0)
                # The unpickler loads no class either: see there.
                return torch.load(
                    file, map_location="cpu", pickle_module=_inert, weights_only=False
                )
    except _DAMAGE as failure:
        raise _explain(path, failure) from failure


def write_torch(
    file: IO[bytes], tensors: Mapping[str, Tensor], content: TorchContent | None
) -> None:
    """Write a torch file; names whose tensors share memory stay tied.

    Args:
        file: open for writing, for torch would store the temporary name of a path in the file.
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
    module = _inert if content is not None and content.foreign else pickle
    try:
        torch.save(document, file, pickle_module=module)
    except RecursionError as failure:
        raise CheckpointError(
            "what surrounds the tensors is nested too deep to be written back; save the state dict "
            "alone"
        ) from failure
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


def _with_state(node: Any, path: tuple[Any, ...], state: dict[str, Tensor]) -> Any:
    # copy.copy keeps the class, the order and the `_metadata` attribute of an OrderedDict.
    result = copy.copy(node)
    if path:
        result[path[0]] = _with_state(node[path[0]], path[1:], state)
    else:
        result.update(state)
    return result


def _explain(path: Path, failure: Exception) -> CheckpointError:
    text = str(failure)
    if "magic number" in text:
        return unreadable(
            path,
            "expected a file written by torch.save, got a plain pickle or a damaged file",
            "save `model.state_dict()` with torch.save, or download the file again",
        )
    return unreadable(
        path,
        f"the torch file is truncated or damaged ({type(failure).__name__}: "
        f"{text.splitlines()[0] if text else 'end of file'})",
        "copy or download it again",
    )
