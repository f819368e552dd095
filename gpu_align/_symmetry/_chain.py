"""The spec of a plain chain of layers, from the names and shapes of a state dict alone."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gpu_align._errors import SpecError
from gpu_align._symmetry._axis import Axis, Factor
from gpu_align._symmetry._spec import Group, PermutationSpec, Pin, StateDict, TensorSpec

_ADVICE = (
    "a state dict does not show how layers are connected, so only plain chains of Linear, Conv and "
    "norm layers are read without a model; pass the model (`--model package.module:factory "
    "--input-shape ...`, or modules and example_inputs) or a spec"
)
_BRANCHES = re.compile(
    r"(?:^|[._])(short(?:cut)?|skip|residual|down(?:sample)?|attn|attention|self_attn|gate|branch"
    r"|q_proj|in_proj_weight|weight_hh_l\d+|blocks?|layers?\d*\.\d+)(?:[._]|$)"
)
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class _Layer:
    """The tensors of one module: its name and its parameters by their last name."""

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weight(self) -> Tensor:
        return self.tensors["weight"]

    @property
    def is_norm(self) -> bool:
        return self.weight.ndim == 1


def chain_spec(state_dict: StateDict) -> PermutationSpec:
    """Read a state dict as a chain: every layer feeds the next one and nothing else.

    Layers are Linear or Conv (weight [out, in, ...]) and norms (one-dimensional weight) in the
    order of the state dict. A Linear after a Conv may have a multiple of its channels as inputs:
    the map was flattened.

    Args:
        state_dict: name -> tensor.

    Raises:
        SpecError: the names or shapes are not those of a plain chain, or leave it open whether
            they are.
    """
    layers = _layers(state_dict)
    groups: dict[str, Group] = {}
    tensors: dict[str, TensorSpec] = {}
    last = [layer for layer in layers if not layer.is_norm][-1]
    previous: _Layer | None = None
    incoming: Group | None = None
    for layer in layers:
        if layer.is_norm:
            _check_norm(layer, previous)
            width = Axis.of_group(incoming.name, incoming.size) if incoming else None
            width = width or Axis.fixed(len(layer.weight))
        else:
            inputs = _inputs(layer, previous, incoming)
            size = len(layer.weight)
            incoming = Group(layer.name, size) if layer is not last and size > 1 else None
            if incoming:
                groups[layer.name] = incoming
            width = Axis.of_group(layer.name, size) if incoming else Axis.fixed(size)
            rest = tuple(Axis.fixed(extent) for extent in layer.weight.shape[2:])
            tensors[_key(layer, "weight")] = TensorSpec((width, inputs, *rest))
            previous = layer
        _add_vectors(tensors, layer, width)
    ordered = {name: tensors[name] for name in state_dict}
    names = " -> ".join(layer.name for layer in layers if not layer.is_norm)
    origin = f"state dict read as the plain chain {names}; skip connections would not be seen"
    return PermutationSpec(groups, ordered, pins=tuple(_pins(ordered)), origin=origin)


def _layers(state_dict: StateDict) -> list[_Layer]:
    layers: dict[str, _Layer] = {}
    for key, tensor in state_dict.items():
        name, _, last = key.rpartition(".")
        if _BRANCHES.search(key):
            raise SpecError(f"{key!r} looks like part of a branch or block; {_ADVICE}")
        if last not in ("weight", "bias", *_BUFFERS):
            raise SpecError(f"{key!r} is not a weight, bias or running statistic; {_ADVICE}")
        layers.setdefault(name, _Layer(name)).tensors[last] = tensor
    parents = {name.rpartition(".")[0] for name in layers}
    if len(parents) > 2:
        raise SpecError(f"layers lie in several modules ({', '.join(sorted(parents))}); {_ADVICE}")
    for layer in layers.values():
        if "weight" not in layer.tensors or layer.weight.ndim not in (1, 2, 3, 4, 5):
            raise SpecError(f"{layer.name!r} has no weight of 1 to 5 axes; {_ADVICE}")
    if all(layer.is_norm for layer in layers.values()):
        raise SpecError(f"no Linear or Conv layer was found; {_ADVICE}")
    return list(layers.values())


def _check_norm(layer: _Layer, previous: _Layer | None) -> None:
    if previous is None:
        return
    if len(layer.weight) != len(previous.weight):
        raise SpecError(
            f"norm {layer.name!r} has {len(layer.weight)} units, the layer before it "
            f"({previous.name!r}) has {len(previous.weight)}; {_ADVICE}"
        )
    if previous.weight.ndim > 2 and "running_mean" not in layer.tensors:
        raise SpecError(
            f"norm {layer.name!r} after a convolution has no running statistics: it may be a "
            f"GroupNorm, whose number of groups the state dict does not say; {_ADVICE}"
        )


def _inputs(layer: _Layer, previous: _Layer | None, incoming: Group | None) -> Axis:
    size = layer.weight.shape[1]
    if previous is None:
        return Axis.fixed(size)
    width = len(previous.weight)
    flattened = layer.weight.ndim == 2 and previous.weight.ndim > 2
    if size == width:
        repeat = 1
    elif flattened and size % width == 0:
        repeat = size // width
    else:
        raise SpecError(
            f"{layer.name!r} has {size} inputs, the layer before it ({previous.name!r}) has "
            f"{width} units: not a plain chain; {_ADVICE}"
        )
    if incoming is None:
        return Axis.fixed(size)
    factors = (Factor(width, incoming.name), *([Factor(repeat)] if repeat > 1 else []))
    return Axis((factors,))


def _add_vectors(tensors: dict[str, TensorSpec], layer: _Layer, width: Axis) -> None:
    for last, tensor in layer.tensors.items():
        key = _key(layer, last)
        if key in tensors:
            continue
        if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != width.size):
            raise SpecError(f"{key!r} has shape {list(tensor.shape)}; {_ADVICE}")
        tensors[key] = TensorSpec((width,) * tensor.ndim, counted=last not in _BUFFERS)


def _key(layer: _Layer, last: str) -> str:
    return f"{layer.name}.{last}" if layer.name else last


def _pins(tensors: Mapping[str, TensorSpec]) -> Iterable[Pin]:
    for name, tensor in tensors.items():
        for number, axis in enumerate(tensor.axes):
            if not axis.groups and axis.size > 1:
                reason = "spatial extent" if number > 1 else "input or output of the chain"
                yield Pin(name, number, reason)
