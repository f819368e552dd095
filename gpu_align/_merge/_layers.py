"""Layers as regressions: ops with weights whose outputs are linear in these.

Every such op is brought to the form `y = x W + c` in each of its blocks: one for a linear layer,
one for each group of a convolution, one for each channel of a norm.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Layer(ABC):
    """One op with weights.

    Attributes:
        weight: what it is called with; None if only its bias can be changed.
        bias: likewise, or None.
        source: name of the argument that the weights are applied to.
    """

    weight: Tensor | None
    bias: Tensor | None
    source: str = field(default="input", kw_only=True)

    @abstractmethod
    def inputs(self, arguments: Arguments) -> Tensor:
        """Return x of a call, [blocks, samples, k]."""

    @abstractmethod
    def outputs(self, value: Tensor) -> Tensor:
        """Return y of what a call gave, [blocks, samples, n]."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return W, [blocks, k, n]; a new tensor."""

    def mean_inputs(self, calls: Sequence[Arguments], weights: Sequence[float]) -> Tensor:
        """Return the weighted mean of x over several calls."""
        given = [call[self.source] for call in calls]
        return self.inputs({**calls[0], self.source: weighted_mean(given, weights)})

    def apply(self, x: Tensor) -> Tensor:
        """Return y of inputs, [blocks, samples, n]."""
        y = x @ self.matrix()
        if self.bias is not None:
            y = y + self.bias.detach().reshape(len(y), 1, -1)
        return y

    def is_batched(self, arguments: Arguments) -> bool:
        """Whether the first axis of input and output is that of the examples."""
        return True

    @abstractmethod
    def write(self, matrix: Tensor, shift: Tensor | None) -> None:
        """Put W [blocks, k, n] and c [blocks, n] into the weights, in place."""

    def scale_outputs(self, scale: Tensor, shift: Tensor | None) -> None:
        """Change the weights so that y becomes `y * scale + shift`, each [blocks, n]."""
        old = None if self.bias is None else self.bias.detach().reshape(scale.shape)
        added = None
        if old is not None:
            added = old * scale if shift is None else old * scale + shift
        self.write(self.matrix() * scale[:, None], added)


class Linear(Layer):
    """`linear`, and products with a matrix; the weight is [n, k]."""

    def inputs(self, arguments: Arguments) -> Tensor:
        """See `Layer.inputs`."""
        x: Tensor = arguments[self.source]
        return x.flatten(0, -2)[None] if x.ndim > 1 else x[None, None]

    def is_batched(self, arguments: Arguments) -> bool:
        """See `Layer.is_batched`."""
        return bool(arguments[self.source].ndim > 1)

    def outputs(self, value: Tensor) -> Tensor:
        """See `Layer.outputs`."""
        return value.flatten(0, -2)[None] if value.ndim > 1 else value[None, None]

    def matrix(self) -> Tensor:
        """See `Layer.matrix`."""
        assert self.weight is not None
        return self.weight.detach().T[None].clone()

    def write(self, matrix: Tensor, shift: Tensor | None) -> None:
        """See `Layer.write`."""
        assert self.weight is not None
        self.weight.copy_(matrix[0].T)
        _write_bias(self.bias, shift)


@dataclass(frozen=True)
class Convolution(Layer):
    """A convolution of any number of axes, transposed ones too.

    Attributes:
        stride, padding, dilation, more: one number for each axis; `more` is the output padding.
        groups: number of blocks.
        transposed: whether the weight is [k, n / groups, ...] and not [n, k / groups, ...].
    """

    stride: Sequence[int]
    padding: Sequence[tuple[int, int]]
    dilation: Sequence[int]
    more: Sequence[int]
    groups: int
    transposed: bool

    def inputs(self, arguments: Arguments) -> Tensor:
        """See `Layer.inputs`."""
        assert self.weight is not None
        x: Tensor = arguments["input"]
        kernel = self.weight.shape[2:]
        x = x if x.ndim == len(kernel) + 2 else x[None]
        stride, padding = self.stride, self.padding
        if self.transposed:
            x = _stuffed(x, stride)
            sides = zip(kernel, self.dilation, padding, self.more, strict=True)
            padding = [(d * (k - 1) - p[0], d * (k - 1) - p[1] + m) for k, d, p, m in sides]
            stride = [1] * len(kernel)
        x = F.pad(x, [side for pair in reversed(padding) for side in pair])
        return _windows(x, kernel, stride, self.dilation, self.groups)

    def is_batched(self, arguments: Arguments) -> bool:
        """See `Layer.is_batched`."""
        assert self.weight is not None
        return bool(arguments["input"].ndim == self.weight.ndim)

    def outputs(self, value: Tensor) -> Tensor:
        """See `Layer.outputs`."""
        assert self.weight is not None
        value = value if value.ndim == self.weight.ndim else value[None]
        blocks = value.unflatten(1, (self.groups, -1)).movedim((1, 2), (0, -1))
        return blocks.flatten(1, -2)

    def matrix(self) -> Tensor:
        """See `Layer.matrix`."""
        assert self.weight is not None
        weight = self.weight.detach().unflatten(0, (self.groups, -1))
        if self.transposed:
            return self._flipped(weight.movedim(2, -1)).flatten(1, -2).clone()
        return weight.flatten(2).transpose(1, 2).clone()

    def write(self, matrix: Tensor, shift: Tensor | None) -> None:
        """See `Layer.write`."""
        assert self.weight is not None
        kernel = self.weight.shape[2:]
        if self.transposed:
            weight = self._flipped(matrix.unflatten(1, (-1, *kernel))).movedim(-1, 2)
        else:
            weight = matrix.transpose(1, 2).unflatten(2, (-1, *kernel))
        self.weight.copy_(weight.flatten(0, 1))
        _write_bias(self.bias, shift)

    @staticmethod
    def _flipped(blocks: Tensor) -> Tensor:
        """Turn the kernel round, [blocks, k, *kernel, n]."""
        return blocks.flip(tuple(range(2, blocks.ndim - 1)))


@dataclass(frozen=True)
class Affine(Layer):
    """A weight and a bias for each entry of a normalised value.

    Attributes:
        axes: of the value along which they lie, in order; other axes are samples.
        norm: name of the op.
    """

    axes: Sequence[int]
    norm: str

    def mean_inputs(self, calls: Sequence[Arguments], weights: Sequence[float]) -> Tensor:
        """See `Layer.mean_inputs`; what is normalised is no linear function of what is given."""
        return weighted_mean(list(map(self.inputs, calls)), weights)

    def inputs(self, arguments: Arguments) -> Tensor:
        """See `Layer.inputs`."""
        return self._entries(_normalised(self.norm, arguments))

    def outputs(self, value: Tensor) -> Tensor:
        """See `Layer.outputs`."""
        return self._entries(value)

    def is_batched(self, arguments: Arguments) -> bool:
        """See `Layer.is_batched`."""
        return 0 not in self.axes

    def _entries(self, value: Tensor) -> Tensor:
        lead = value.movedim(tuple(self.axes), tuple(range(len(self.axes))))
        count = math.prod(lead.shape[: len(self.axes)])
        return lead.reshape(count, -1, 1)

    def matrix(self) -> Tensor:
        """See `Layer.matrix`."""
        assert self.weight is not None
        return self.weight.detach().reshape(-1, 1, 1).clone()

    def write(self, matrix: Tensor, shift: Tensor | None) -> None:
        """See `Layer.write`."""
        assert self.weight is not None
        self.weight.copy_(matrix.reshape(self.weight.shape))
        _write_bias(self.bias, shift)


def layer_of(op: str, arguments: Arguments, value: Any) -> Layer | None:
    """Return an op as a layer; None if it is none.

    Args:
        op: its name.
        arguments: what it was called with.
        value: what it gives, or its form in the trace.
    """
    make = _MAKERS.get(op)
    return None if make is None or not isinstance(value, Tensor) else make(arguments, value)


def _linear(arguments: Arguments, value: Tensor) -> Layer | None:
    return Linear(arguments["weight"], arguments.get("bias"))


def _addmm(arguments: Arguments, value: Tensor) -> Layer | None:
    plain = arguments.get("beta", 1) == arguments.get("alpha", 1) == 1
    bias = arguments["self"]
    return Linear(arguments["mat2"].T, bias, source="mat1") if plain and bias.ndim == 1 else None


def _product(arguments: Arguments, value: Tensor) -> Layer | None:
    weight = arguments.get("other", arguments.get("mat2"))
    assert isinstance(weight, Tensor)
    return Linear(weight.T, None, source="self") if weight.ndim == 2 else None


def _convolution(arguments: Arguments, value: Tensor) -> Layer | None:
    weight: Tensor = arguments["weight"]
    kernel = weight.shape[2:]

    def each(name: str, default: int) -> list[int]:
        given = arguments.get(name, default)
        numbers = [given] if isinstance(given, int) else list(given)
        return numbers * len(kernel) if len(numbers) == 1 else numbers

    dilation, given = each("dilation", 1), arguments.get("padding", 0)
    if given == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [(total // 2, total - total // 2) for total in totals]
    else:
        padding = (
            [(0, 0)] * len(kernel) if given == "valid" else [(p, p) for p in each("padding", 0)]
        )
    return Convolution(
        *(weight, arguments.get("bias"), each("stride", 1), padding, dilation),
        *(each("output_padding", 0), arguments.get("groups", 1)),
        transposed=bool(arguments.get("transposed", "output_padding" in arguments)),
    )


def _transposed(arguments: Arguments, value: Tensor) -> Layer | None:
    return _convolution({"output_padding": 0, **arguments}, value)


def _channels(name: str) -> Any:
    """Return the maker of a norm with one weight for each channel, the second axis."""

    def make(arguments: Arguments, value: Tensor) -> Layer | None:
        if arguments.get("weight") is None:
            return None
        return Affine(arguments["weight"], arguments.get("bias"), (1,), name)

    return make


def _last_axes(name: str) -> Any:
    """Return the maker of a norm with one weight for each entry of the last axes."""

    def make(arguments: Arguments, value: Tensor) -> Layer | None:
        weight = arguments.get("weight")
        if weight is None:
            return None
        axes = tuple(range(value.ndim - weight.ndim, value.ndim))
        return Affine(weight, arguments.get("bias"), axes, name)

    return make


_MAKERS = {
    "linear": _linear,
    "addmm": _addmm,
    "mm": _product,
    "matmul": _product,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **{name: _channels(name) for name in ("batch_norm", "group_norm", "instance_norm")},
    **{name: _last_axes(name) for name in ("layer_norm", "rms_norm")},
}


def _normalised(name: str, arguments: Arguments) -> Tensor:
    x: Tensor = arguments["input"]
    match name:
        case "batch_norm":
            mean, variance = arguments["running_mean"], arguments["running_var"]
            return F.batch_norm(x, mean, variance, eps=arguments["eps"])
        case "group_norm":
            return F.group_norm(x, arguments["num_groups"], eps=arguments.get("eps", 1e-5))
        case "instance_norm":
            return F.instance_norm(x, eps=arguments["eps"])
        case "layer_norm":
            return F.layer_norm(x, arguments["normalized_shape"], eps=arguments.get("eps", 1e-5))
    return F.rms_norm(x, arguments["normalized_shape"], eps=arguments.get("eps"))


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of tensors; one of weight 1 as it is."""
    if len(tensors) == 1 and weights[0] == 1:
        return tensors[0]
    total = weights[0] * tensors[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + weight * tensor
    return total


def _write_bias(bias: Tensor | None, shift: Tensor | None) -> None:
    if bias is not None and shift is not None:
        bias.copy_(shift.reshape(bias.shape))


def _stuffed(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Put zeros between the places of a map, as a transposed convolution does."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    out = x.new_zeros(*x.shape[:2], *sizes)
    places: tuple[Any, ...] = (..., *(slice(None, None, s) for s in stride))
    out[places] = x
    return out


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Return what each place of a convolution sees, [groups, b * places, channels * kernel]."""
    steps = x.stride()[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sizes = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    channels = x.shape[1] // groups
    seen = x.as_strided(
        (groups, x.shape[0], *sizes, channels, *kernel),
        (
            *(channels * x.stride(1), x.stride(0)),
            *(a * s for a, s in zip(steps, stride, strict=True)),
            x.stride(1),
            *(a * d for a, d in zip(steps, dilation, strict=True)),
        ),
    )
    return seen.reshape(groups, x.shape[0] * math.prod(sizes), channels * math.prod(kernel))
