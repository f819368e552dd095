"""The layout of images in memory: a CPU convolves and pools faster with their channels last."""

import math
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
"""Channels from which pooling gains by another layout more than two copies cost."""


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


class LastLayout(TorchFunctionMode):
    """Runs in the layout that is fastest what gains by it more than two copies cost.

    These are the pooling of many channels and the convolution of one. It is for modules that are
    run as they are and may look at how values are laid out: what an op returns is laid out as ever.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function; values differ by rounding at most."""
        kwargs = kwargs or {}
        if func in _GAINS and args and _is_image(args[0]) and args[0].is_contiguous():
            few, most = _GAINS[func]
            if few <= args[0].shape[1] <= most and not kwargs.get("return_indices"):
                return _places_last(func(_channels_last(args[0]), *args[1:], **kwargs))
        return func(*args, **kwargs)


_GAINS = {
    F.max_pool2d: (_MANY, math.inf),
    torch.max_pool2d: (_MANY, math.inf),
    F.conv2d: (1, 1),
}
"""Function -> the numbers of channels for which it gains."""


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.device.type == "cpu"


def _channels_last(value: Any) -> Any:
    """Return images with their channels last; of one channel the strides say that they are.

    Else a convolution takes the other layout, whose buffers cost it ten times as long.
    """
    if not _is_image(value):
        return value
    if value.shape[1] == 1:
        rows, columns = value.shape[2:]
        return value.contiguous().as_strided(value.shape, (rows * columns, 1, columns, 1))
    return value.contiguous(memory_format=torch.channels_last)


def _places_last(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_places_last, value))
    return value.contiguous() if _is_image(value) else value
