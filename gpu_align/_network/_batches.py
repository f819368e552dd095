"""Batches as loaders give them, read into memory."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gpu_align._errors import InputError
from gpu_align._network._examples import Batch, Examples
from gpu_align._network._own_code import where

LABELS = "labels"
"""The key under which Hugging Face's collators give the targets."""

IGNORED = -100
"""A target that does not count, as in `torch.nn.functional.cross_entropy`."""


def read_batches(source: Iterable[Any], most: int) -> Examples:
    """Read the first examples of an iterable of batches onto the host.

    Args:
        source: of batches, see `batch_of`.
        most: how many examples are read.

    Raises:
        InputError: there are none, reading fails, or a batch has another form.
    """
    batches: list[Batch] = []
    missing = most
    for number, item in enumerate(_items(source)):
        try:
            batch = batch_of(item)[:missing]
        except InputError as error:
            raise InputError(f"batch {number} of the data: {error}") from error
        batches.append(batch)
        missing -= len(batch)
        if missing == 0:
            break
    if not batches:
        raise InputError("the data have no batches; an iterator can be read only once")
    return Examples.gathered([batch for batch in batches if len(batch)])


def _items(source: Iterable[Any]) -> Iterator[Any]:
    """Go through an iterable of the caller's; what fails in it is said with its line."""
    try:
        yield from source
    except Exception as error:
        raise InputError(
            f"the data cannot be read: {where(error)}; go through them without gpu-align first"
        ) from error


def batch_of(item: Any) -> Batch:
    """Return a batch on the host.

    Args:
        item: a pair (inputs, targets), a mapping of keyword arguments in which "labels" are the
            targets, a tensor (in a list or tuple of its own, too) without targets, or a Batch.
            NumPy arrays are taken for tensors.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(item, Batch):
        return Batch(_on_host(item.inputs), _on_host(item.targets))
    if isinstance(item, Mapping):
        return _from_mapping(dict(item))
    if isinstance(item, Tensor | np.ndarray):
        return Batch(_on_host(item))
    if isinstance(item, list | tuple):
        if len(item) == 1 and isinstance(item[0], Tensor | np.ndarray):
            return Batch(_on_host(item[0]))
        if is_pair(item):
            return pair_of(item)
        kinds = ", ".join(type(part).__name__ for part in item)
        got = f"{type(item).__name__} of {len(item)} ({kinds})"
    else:
        got = type(item).__name__
    raise InputError(
        "expected a pair (inputs, targets), a dict with its targets as 'labels' or a tensor, got "
        f"{got}; put several inputs into one tuple, ((first, second), targets)"
    )


def is_pair(item: Any) -> bool:
    """Whether something is a pair of inputs and targets; None stands for no targets."""
    return (
        len(item) == 2
        and isinstance(item[0], Tensor | np.ndarray | Mapping | tuple | list)
        and isinstance(item[1], Tensor | np.ndarray | None)
    )


def pair_of(item: Any) -> Batch:
    """Return a pair of inputs and targets as a batch on the host."""
    inputs, targets = item
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    return Batch(_on_host(inputs), _on_host(targets))


def _from_mapping(inputs: dict[str, Any]) -> Batch:
    inputs = {name: _on_host(value) for name, value in inputs.items()}
    labels = inputs.pop(LABELS, None)
    ids = inputs.get("input_ids")
    if isinstance(labels, Tensor) and isinstance(ids, Tensor) and _repeat(labels, ids):
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return Batch(inputs, labels)


def _repeat(labels: Tensor, ids: Tensor) -> bool:
    """Whether labels are the inputs again: a causal model of Hugging Face shifts them inside."""
    if labels.ndim != 2 or labels.shape != ids.shape:
        return False
    return bool(((labels == ids) | (labels == IGNORED)).all())


def _on_host(value: Any) -> Any:
    return tree_map(_leaf_on_host, value)


def _leaf_on_host(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return tensor_of(leaf)
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf


def tensor_of(array: np.ndarray) -> Tensor:
    """Return an array as a tensor of its own memory; tokens in two bytes and more as int64.

    Raises:
        InputError: torch has no such dtype.
    """
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch can do little with these
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise InputError(
            f"expected numbers, got an array of the dtype {array.dtype}; torch has none such"
        ) from error
