"""Running a module's forward without a trace in the module."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

Memo = dict[int, Callable[[], None]]
"""Identity of an object -> what puts it back as it was."""


@contextmanager
def untouched(model: nn.Module, *, weights: bool) -> Iterator[None]:
    """Put back what the body changes in a module: counters, caches, lists that it fills, buffers.

    Args:
        model: with its submodules; lazy ones, which their first forward makes, are left alone.
        weights: whether the values of parameters and buffers are put back too, which takes a copy
            of them. Those of other tensors among the attributes always are.
    """
    memo: Memo = {}
    if not weights:
        memo |= {id(tensor): _nothing for tensor in (*model.parameters(), *model.buffers())}
    _remember(model, memo)
    try:
        yield
    finally:
        for put_back in memo.values():
            put_back()


def _remember(value: Any, memo: Memo) -> None:
    """Add what puts an object back, and all that is reached from it."""
    pending = [value]
    while pending:
        value = pending.pop()
        if id(value) in memo:
            continue
        if isinstance(value, Tensor):
            memo[id(value)] = _for_tensor(value)
        elif isinstance(value, dict | list | deque | set) and not value:
            memo[id(value)] = partial(_empty, value)
        elif isinstance(value, dict):
            memo[id(value)] = _for_mapping(value)
            pending += value.values()
        elif isinstance(value, list | deque):
            memo[id(value)] = _for_sequence(value)
            pending += value
        elif isinstance(value, set):
            memo[id(value)] = _for_set(value)
        elif isinstance(value, tuple):
            pending += value
        elif _has_state(value):
            pending.append(vars(value))


def _has_state(value: Any) -> bool:
    """Whether an object is a module, or a plain holder of values."""
    if isinstance(value, nn.Module):
        return not isinstance(value, LazyModuleMixin)
    of_torch = type(value).__module__.partition(".")[0] == "torch"
    return hasattr(value, "__dict__") and not callable(value) and not of_torch


def _empty(value: Any) -> None:
    """Empty a container that was empty; one that cannot be changed stays."""
    if value:
        value.clear()


def _nothing() -> None:
    """There is nothing to put back."""


def _for_tensor(tensor: Tensor) -> Callable[[], None]:
    if tensor.is_meta or tensor.layout != torch.strided:
        return _nothing
    saved = tensor.detach().clone()

    def put_back() -> None:
        if tensor.shape != saved.shape:
            tensor.data = saved
        elif not torch.equal(tensor.detach(), saved):
            tensor.data.copy_(saved)

    return put_back


def _for_mapping(value: dict[Any, Any]) -> Callable[[], None]:
    saved = list(value.items())

    def put_back() -> None:
        same = len(value) == len(saved) and all(
            name is kept and inner is held
            for (name, inner), (kept, held) in zip(value.items(), saved, strict=True)
        )
        if not same:
            value.clear()
            value.update(saved)

    return put_back


def _for_sequence(value: "list[Any] | deque[Any]") -> Callable[[], None]:
    saved = list(value)

    def put_back() -> None:
        value.clear()
        value.extend(saved)

    return put_back


def _for_set(value: set[Any]) -> Callable[[], None]:
    saved = set(value)

    def put_back() -> None:
        value.clear()
        value.update(saved)

    return put_back
