"""Finding the state dict in an object read from a torch file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gpu_align._checkpoint._inert import foreign_names, parts
from gpu_align._checkpoint._memory import (
    MemoryKey,
    has_plain_values,
    memory_key,
    overlapping_names,
)
from gpu_align._checkpoint._refusal import quoted, unreadable
from gpu_align._checkpoint._types import TorchContent, entries
from gpu_align._checkpoint._unfit import quantised
from gpu_align._errors import CheckpointError

# Under these a file keeps the network itself; what is beside it, it keeps for another use.
WRAPPER_KEYS = (
    *("state_dict", "model_state_dict", "model", "net", "weights", "params", "network"),
    *("model_state", "model_weights", "module"),
)

_REMEDY = "save `model.state_dict()`, or a dict with it under one of " + quoted(
    list(WRAPPER_KEYS[:5])
)
_MAX_DEPTH = 8
_MOST_PLACES = 1000
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|avg|averaged?|shadow|polyak)([^a-z]|$)|EMA")
_TRAINING = re.compile(r"optim|sched|scaler|rng|amp$", re.IGNORECASE)

Place = tuple[Any, ...]


def find_content(path: Path, root: Any, key: str | None = None) -> TorchContent:
    """Find the state dict in an object.

    Args:
        path: where the object came from, for messages.
        root: a state dict, or an object with state dicts in it, up to 8 dicts or lists deep.
        key: which of them is meant, the keys that lead to it joined by dots; default the only one,
            the only one under keys of `WRAPPER_KEYS`, or the only one that is no average.

    Raises:
        CheckpointError: there is no state dict, none under `key`, or several of equal right; or it
            is not flat.
    """
    foreign = foreign_names(root)
    found = _state_dicts(root, nested=key is not None)
    if not found:
        raise _nothing_found(path, root, foreign)
    chosen = _choose(root, found) if key is None else _under(key, found)
    if len(chosen) != 1:
        names = quoted([dotted(place) for place in chosen or found])
        if key is None:
            raise unreadable(
                path,
                f"several entries could be the state dict: {names}",
                "choose one by key (--key), or save the one to be aligned to a file of its own",
            )
        raise unreadable(path, f'no state dict under the key "{key}"', f"choose one of {names}")
    content = TorchContent(root, chosen[0], foreign)
    _check_flat(path, content.state())
    return content


def dotted(place: Sequence[Any]) -> str:
    """Write keys that lead to a state dict as one text."""
    return ".".join(map(str, place))


def _state_dicts(root: Any, *, nested: bool) -> list[Place]:
    """List where the state dicts are in an object; with `nested` those inside others too."""
    known: dict[int, list[Place]] = {}

    def inside(node: Any, depth: int) -> list[Place]:
        # A pickle may hold a dict that contains itself, or one that is in many places.
        if depth > _MAX_DEPTH or id(node) in known:
            return known.get(id(node), [])
        known[id(node)] = []
        below = [
            (key, *place)
            for key, value in entries(node)
            if isinstance(value, dict | list) and not _is_of_training(key, value)
            for place in inside(value, depth + 1)
        ]
        known[id(node)] = _with_own(node, below[:_MOST_PLACES], nested=nested)
        return known[id(node)]

    return inside(root, 0)


def _with_own(node: Any, below: list[Place], *, nested: bool) -> list[Place]:
    """Add to the state dicts below a node the node, or put it in their place."""
    if not isinstance(node, dict) or not any(isinstance(v, Tensor) for v in node.values()):
        return below
    if nested:
        return [*below, ()]
    wrapped = any(_is_usual(place) for place in below)
    return below if below and (wrapped or not _has_weights(node)) else [()]


def _is_of_training(key: Any, value: Any) -> bool:
    if isinstance(key, str) and (_TRAINING.search(key) or key.endswith("_extra_state")):
        return True
    return isinstance(value, dict) and "param_groups" in value


def _choose(root: Any, found: list[Place]) -> list[Place]:
    """Return the state dicts that could be meant, one if it is clear.

    Those with weights go before those with numbers only, then those that are no averages before
    averages; among equals the only one under usual keys is meant.
    """
    for fits in (
        lambda place: True,
        lambda place: _has_weights(TorchContent(root, place).state()),
        lambda place: not _is_average(place),
    ):
        chosen = [place for place in found if fits(place)]
        usual = [place for place in chosen if _is_usual(place)]
        if len(chosen) == 1 or len(usual) == 1:
            return usual if len(usual) == 1 else chosen
        found = chosen or found
    return usual or found


def _under(key: str, found: list[Place]) -> list[Place]:
    """Return the state dict under a key; else those further inside."""
    exact = [place for place in found if dotted(place) == key]
    return exact or [place for place in found if dotted(place).startswith(f"{key}.")]


def _is_usual(place: Sequence[Any]) -> bool:
    return all(key in WRAPPER_KEYS for key in place)


def _is_average(place: Sequence[Any]) -> bool:
    return any(isinstance(key, str) and _AVERAGE.search(key) for key in place)


def _has_weights(state: dict[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) and value.dim() > 0 for value in state.values())


def _nothing_found(path: Path, root: Any, foreign: tuple[str, ...]) -> CheckpointError:
    if any("ndarray" in name for name in foreign) and isinstance(root, dict | list):
        return unreadable(
            path, "expected tensors, got NumPy arrays", "save tensors (`torch.from_numpy`) instead"
        )
    if foreign:
        return unreadable(
            path,
            "expected a state dict, the tensors need code to be loaded "
            f"({quoted(list(foreign), 5)}), and files with code are never executed",
            "where the model was made, save `model.state_dict()`",
        )
    if not isinstance(root, dict | list):
        return unreadable(path, f"expected a dict, got {type(root).__name__}", _REMEDY)
    return unreadable(path, f"no tensors in it (keys: {_keys(root)})", _REMEDY)


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
            stale = _state_dicts(value, nested=False)
            advice = f'; reorder them too, by key "{dotted((key, *stale[0]))}"' if stale else ""
            found.append(
                f'tensors in "{key}" are copied unchanged: they refer to the old order of units'
                f"{advice}"
            )
    for first, second in overlapping_names(tensors):
        found.append(
            f'"{first}" and "{second}" share part of their memory: they are written separately'
        )
    if content.foreign:
        found.append(
            f"classes that were not loaded, and are copied by name: {quoted(list(content.foreign))}"
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
            f"{_REMEDY}; or choose a state dict inside by key (--key)",
        )


def _check_dense(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_quantized:
        raise quantised(path, name, str(tensor.dtype))
    if not has_plain_values(tensor):
        kind = f"{tensor.layout}, {tensor.dtype}, device {tensor.device.type}"
        raise unreadable(
            path,
            f'"{name}" must be a dense tensor with values, got {kind}',
            "convert it (`to_dense()`, `dequantize()`) and save again",
        )


def _holds_tensors(value: Any, min_dimensions: int = 0) -> bool:
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, Tensor):
            if item.dim() >= min_dimensions:
                return True
        elif id(item) not in seen:
            seen.add(id(item))
            pending.extend(parts(item))
    return False


def _keys(node: dict[Any, Any] | list[Any]) -> str:
    return quoted([str(key) for key, _ in entries(node)]) or "none"
