"""The layout of images in memory: a CPU convolves and pools faster with their channels last."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gpu_align._symmetry import Op, TracedModel

_FASTER = frozenset({"conv2d", "max_pool2d"})
"""Ops that take twice to ten times as long on a CPU with the places last."""

_EITHER = _FASTER | {
    *("batch_norm", "relu", "relu_", "gelu", "silu", "silu_", "hardtanh", "hardtanh_", "sigmoid"),
    *("leaky_relu", "leaky_relu_", "add", "add_", "avg_pool2d", "adaptive_avg_pool2d", "dropout"),
}
"""Ops that do the same in both layouts, and keep them."""

_MANY = 8
"""Channels from which pooling gains by another layout what two copies cost."""


class ImageLayout:
    """Chooses the layout of what each op of a model is called with; values stay the same.

    Args:
        model: left alone if an op other than these writes into a value, of which a copy in another
            layout would not be told.
    """

    def __init__(self, model: TracedModel) -> None:
        names = {node: Op(node).name for node in model.computed}
        writers = {names[node] for node in model.computed if Op(node).writes}
        self._names = names if writers <= _EITHER else {}

    def arguments(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of an op in the layout that it takes."""
        name = self._names.get(node)
        if name in _FASTER:
            return (_channels_last(args[0]), *args[1:]), dict(kwargs)
        if name is None or name in _EITHER:
            return args, dict(kwargs)
        return tuple(map(_places_last, args)), {k: _places_last(v) for k, v in kwargs.items()}


class PoolingLastLayout(TorchFunctionMode):
    """Pools images of many channels with their channels last; nothing but that op sees it.

    For modules that are run as they are, which may look at the layout of what they compute.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function; what is returned is laid out as it would have been."""
        kwargs = kwargs or {}
        is_pooling = func in (F.max_pool2d, torch.max_pool2d) and args and type(args[0]) is Tensor
        if not (is_pooling and args[0].ndim == 4 and args[0].shape[1] >= _MANY):
            return func(*args, **kwargs)
        if kwargs.get("return_indices") or not args[0].is_contiguous():
            return func(*args, **kwargs)
        return _places_last(func(_channels_last(args[0]), *args[1:], **kwargs))


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 4 and value.device.type == "cpu":
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _places_last(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_places_last, value))
    if isinstance(value, Tensor) and value.ndim == 4 and value.device.type == "cpu":
        return value.contiguous()
    return value
