"""State dicts that come one after another, put into stacks from which they are read again."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpu_align._align import state_of
from gpu_align._checkpoint import (
    TensorLayout,
    atomic_folder,
    make_folder,
    read_safetensors,
    write_safetensors,
)
from gpu_align._errors import CheckpointError, InputError
from gpu_align._zoo._find import Found
from gpu_align._zoo._pieces import Failure, Piece
from gpu_align._zoo._read import first_line, signature_of

_MOST, _BYTES = 1024, 2**26
_NAMES, _FAILED = "names", "failed.json"


def spool(networks: Iterable[Any] | Mapping[Any, Any], folder: Path) -> Found:
    """Write networks to stacks in a folder, or take what an earlier call has written.

    Args:
        networks: state dicts or modules, or pairs of a name and one; or a mapping.
        folder: made anew.

    Raises:
        InputError: there are none.
    """
    if not folder.exists():
        make_folder(folder.parent)
        with atomic_folder(folder, CheckpointError) as temporary:
            _write(networks, temporary)
    return _found(folder)


def _write(networks: Iterable[Any], folder: Path) -> None:
    pending: dict[Any, dict[str, dict[str, Tensor]]] = {}
    failed: list[tuple[str, str]] = []
    files = 0
    for name, network in _named(networks):
        try:
            state = state_of(network)
        except InputError as error:
            failed.append((name, first_line(error)))
            continue
        layouts = {n: TensorLayout(t.dtype, tuple(t.shape)) for n, t in state.items()}
        key = signature_of(layouts), tuple(sorted(layouts))
        held = pending.setdefault(key, {})
        held[name] = {n: tensor.detach().cpu() for n, tensor in state.items()}
        size = sum(tensor.nbytes for tensor in state.values())
        if len(held) >= min(_MOST, max(_BYTES // max(size, 1), 1)):
            _save(folder, files, pending.pop(key))
            files += 1
    for held in pending.values():
        _save(folder, files, held)
        files += 1
    (folder / _FAILED).write_text(json.dumps(failed), encoding="utf-8")


def _named(networks: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(networks, Mapping):
        networks = networks.items()
    for number, network in enumerate(networks):
        if isinstance(network, tuple) and len(network) == 2 and isinstance(network[0], str | int):
            yield str(network[0]), network[1]
        else:
            yield str(number), network


def _save(folder: Path, number: int, held: Mapping[str, Mapping[str, Tensor]]) -> None:
    first = next(iter(held.values()))
    stack = {name: torch.stack([state[name] for state in held.values()]) for name in first}
    path = folder / f"{number:06d}.safetensors"
    write_safetensors(path, stack, {_NAMES: json.dumps(list(held))})


def _found(folder: Path) -> Found:
    pieces = []
    for path in sorted(folder.glob("*.safetensors")):
        _, metadata = read_safetensors(path)
        names = json.loads((metadata or {})[_NAMES])
        pieces.append(Piece(path.name, str(path), count=len(names), stacked=True, names=names))
    failed = json.loads((folder / _FAILED).read_text(encoding="utf-8"))
    lost = tuple((Piece(name, ""), Failure("damaged", reason)) for name, reason in failed)
    if not pieces and not lost:
        raise InputError("expected at least one network, got none; pass state dicts or paths")
    return Found(folder, tuple(pieces), failed=lost)


def is_iterable_of_networks(source: Any) -> bool:
    """Say whether a source is no path, but networks that come one after another."""
    if isinstance(source, str | os.PathLike):
        return False
    if isinstance(source, nn.Module) or not isinstance(source, Iterable):
        raise InputError(
            f"expected a path, or an iterable of state dicts, got {type(source).__name__}; for one "
            "network call align()"
        )
    return True
