"""Finding the state dict in an object read from a torch file."""

from pathlib import Path
from typing import Any

from torch import Tensor

from gpu_align._checkpoint._memory import (
    MemoryKey,
    has_plain_values,
    memory_key,
    overlapping_names,
)
from gpu_align._checkpoint._refusal import quoted, unreadable
from gpu_align._checkpoint._types import TorchContent

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")

_REMEDY = "save `model.state_dict()`, or a dict with it under one of " + quoted(list(WRAPPER_KEYS))
_MAX_DEPTH = 8


def find_content(path: Path, root: Any) -> TorchContent:
    """Find the state dict in an object.

    Args:
        path: where the object came from, for messages.
        root: a state dict, or a dict with one under a key of `WRAPPER_KEYS` (also several deep).

    Raises:
        CheckpointError: there is no state dict, or more than one, or it is not flat.
    """
    if not isinstance(root, dict):
        raise unreadable(path, f"expected a dict, got {type(root).__name__}", _REMEDY)
    if not _holds_tensors(root):
        raise unreadable(path, f"no tensors in it (keys: {_keys(root)})", _REMEDY)
    keys: list[str] = []
    node = root
    # Bounded, because a pickle may hold a dict that contains itself.
    while len(keys) < _MAX_DEPTH:
        inner = [key for key in WRAPPER_KEYS if _is_tensor_dict(node.get(key))]
        if len(inner) > 1:
            raise unreadable(
                path,
                f"several entries could be the state dict: {quoted(inner)}",
                "save the one to be aligned to a file of its own",
            )
        if not inner:
            break
        keys += inner
        node = node[inner[0]]
    _check_flat(path, node)
    return TorchContent(root, tuple(keys))


def state_tensors(path: Path, content: TorchContent) -> dict[str, Tensor]:
    """Return the tensors of a state dict, without gradient; tied names get the same object.

    Args:
        path: where they came from, for messages.
        content: the result of `find_content`.

    Raises:
        CheckpointError: a tensor is sparse, quantized or without values.
    """
    first: dict[MemoryKey, Tensor] = {}
    tensors = {}
    for name, value in content.state().items():
        if not isinstance(value, Tensor):
            continue
        _check_dense(path, name, value)
        key = memory_key(name, value)
        if key not in first:
            plain = type(value) is Tensor and not value.requires_grad
            first[key] = value if plain else value.detach()
        tensors[name] = first[key]
    return tensors


def content_warnings(content: TorchContent, tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Say what will be copied as it is although reordered units would need more.

    Args:
        content: the result of `find_content`.
        tensors: the result of `state_tensors`.
    """
    found = []
    for key, value in content.surroundings().items():
        if "optim" in key.lower() and value is not None:
            found.append(
                f'optimizer state "{key}" is copied unchanged: it refers to the old order of units'
            )
        elif _holds_tensors(value, min_dimensions=1):
            found.append(
                f'tensors in "{key}" are copied unchanged: they refer to the old order of units'
            )
    for first, second in overlapping_names(tensors):
        found.append(
            f'"{first}" and "{second}" share part of their memory: they are written separately'
        )
    return tuple(found)


def _check_flat(path: Path, state: dict[Any, Any]) -> None:
    strange = [repr(key) for key in state if not isinstance(key, str)]
    if strange:
        raise unreadable(
            path, f"state dict keys must be strings, got {', '.join(strange[:20])}", _REMEDY
        )
    # Modules may store any object under `_extra_state`; elsewhere tensors one level down are
    # parameters that would be left in their old order.
    nested = [
        key
        for key, value in state.items()
        if not isinstance(value, Tensor)
        and not key.endswith("_extra_state")
        and _holds_tensors(value)
    ]
    if nested:
        raise unreadable(
            path,
            f"expected tensors, got nested tensors under {quoted(nested)} (keys: {_keys(state)})",
            _REMEDY,
        )


def _check_dense(path: Path, name: str, tensor: Tensor) -> None:
    if not has_plain_values(tensor):
        kind = f"{tensor.layout}, {tensor.dtype}, device {tensor.device.type}"
        raise unreadable(
            path,
            f'"{name}" must be a dense tensor with values, got {kind}',
            "convert it (`to_dense()`, `dequantize()`) and save again",
        )


def _is_tensor_dict(value: Any) -> bool:
    return isinstance(value, dict) and _holds_tensors(value)


def _holds_tensors(value: Any, min_dimensions: int = 0) -> bool:
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, Tensor):
            if item.dim() >= min_dimensions:
                return True
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(item.values() if isinstance(item, dict) else item)
    return False


def _keys(node: dict[Any, Any]) -> str:
    return quoted([str(key) for key in node]) or "none"
