"""Running a forward in float64, whatever it casts to a shorter type, and whatever has no kernel."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

PRESERVED = 1e-9
"""Largest relative difference of outputs, in float64, that counts as the same function."""

SHORT_TOLERANCE = math.sqrt(torch.finfo(torch.float32).eps)
"""Accepted relative difference of outputs if an op was run in float32.

Rounding errors of a network grow to some hundred times that of its ops, 1e-7; what is no symmetry
changes outputs by a hundredth at least.
"""


class InDouble(TorchFunctionMode):
    """Keep in float64 whatever the forward casts to a shorter floating-point type.

    An op that has no kernel for float64 is run in float32, if that is what it takes.

    Args:
        shortened: is filled with the names of such ops.
    """

    def __init__(self, shortened: set[str]) -> None:
        super().__init__()
        self.shortened = shortened

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function with float64 in place of shorter types."""
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        args, kwargs = tree_map(_lengthen, (args, kwargs or {}))
        if func is _GROUPED_PRODUCT and _are_grouped_rows(*args, **kwargs):
            return grouped_product(args[0], args[1], kwargs["offs"])
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            return self._shortened(func, args, kwargs, error)

    def _shortened(self, func: Any, args: Any, kwargs: Any, error: RuntimeError) -> Any:
        """Call a function in float32.

        Raises:
            RuntimeError: `error`, if that is no help.
        """
        name = getattr(func, "__name__", str(func))
        leaves = tree_leaves((args, kwargs))
        writes = "out" in kwargs or (name.endswith("_") and not name.endswith("__"))
        if writes or not any(_is_double(leaf) for leaf in leaves):
            raise error
        args, kwargs = tree_map(lambda x: x.float() if _is_double(x) else x, (args, kwargs))
        try:
            made = func(*args, **kwargs)
        except (RuntimeError, TypeError):
            raise error from None
        self.shortened.add(name)
        return tree_map(double, made)


def double(value: Any) -> Any:
    """Return a tensor of floating-point numbers in float64, anything else as it is."""
    is_float = isinstance(value, Tensor) and torch.is_floating_point(value)
    return value.double() if is_float else value


def _lengthen(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return double(value)


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float64


_GROUPED_PRODUCT = getattr(torch, "_grouped_mm", None)


def _are_grouped_rows(rows: Tensor, weights: Tensor, **options: Any) -> bool:
    ends, bias = options.get("offs"), options.get("bias")
    return _is_double(rows) and (rows.ndim, weights.ndim) == (2, 3) and ends is not None is bias


def grouped_product(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Return what `torch._grouped_mm` does, which takes no float64.

    Args:
        rows: [s, d], one group after another.
        weights: [e, d, n], those of each group.
        ends: int [e], where each group of rows ends.
    """
    out = rows.new_zeros(len(rows), weights.shape[2])
    start = 0
    for weight, end in zip(weights, ends.tolist(), strict=True):
        out[start:end] = rows[start:end] @ weight
        start = end
    return out
