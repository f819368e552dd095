"""The spec of a plain chain of layers, from the names and shapes of a state dict alone."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gpu_align._errors import SpecError
from gpu_align._symmetry._axis import Axis
from gpu_align._symmetry._parts import Group, Pin
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._stacks import stack_advice
from gpu_align._symmetry._tensor_spec import TensorSpec

_ADVICE = (
    "a state dict does not show how layers are connected, so only plain chains of Linear, Conv and "
    "norm layers are read without a model; pass the model (`--model package.module:factory "
    "--input-shape ...`, or modules and example_inputs) or a spec"
)
_BRANCHES = re.compile(
    r"(?:^|[._])(short(?:cut)?|skip|residual|down(?:sample)?|attn|attention|self_attn|gate|branch"
    r"|q_proj|in_proj_weight|weight_hh_l\d+|blocks?|layers?\d*\.\d+)(?:[._]|$)"
)
_NUMBER = re.compile(r"\d+(?=\D*$)")
_MOST_ORDERS = 1000
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
    def stem(self) -> str:
        """The name without its last number: `features.` of `features.3`."""
        return _NUMBER.sub("", self.name)

    @property
    def number(self) -> int:
        """The last number of the name, -1 without one."""
        found = _NUMBER.search(self.name)
        return int(found[0]) if found else -1

    def key(self, last: str) -> str:
        """Return the state-dict name of one of its tensors."""
        return f"{self.name}.{last}" if self.name else last

    @property
    def is_norm(self) -> bool:
        return self.weight.ndim == 1


def chain_spec(state_dict: StateDict) -> PermutationSpec:
    """Read a state dict as a chain: every layer feeds the next one and nothing else.

    Layers are Linear or Conv (weight [out, in, ...]) and norms (one-dimensional weight). A Linear
    after a Conv that reads several places of each channel is refused: whether the map was flattened
    with the channels first or last is not in the state dict. Files do not
    keep the order of layers, so it is read off the numbers in their names, or off their shapes
    where these leave one order only.

    Args:
        state_dict: name -> tensor.

    Raises:
        SpecError: the names or shapes are not those of a plain chain, or leave it open whether
            they are.
    """
    # AveragedModel counts beside the layers.
    state_dict = {name: t for name, t in state_dict.items() if name != "n_averaged"}
    layers = _layers(state_dict)
    _check_one_model(layers)
    chain = _in_order([layer for layer in layers if not layer.is_norm])
    widths, inputs = _axes(chain)
    groups = {
        layer.name: Group(layer.name, len(layer.weight))
        for layer in chain
        if widths[layer.name].groups
    }
    tensors: dict[str, TensorSpec] = {}
    for layer in layers:
        if layer.is_norm:
            owner = _norm_owner(layer, layers, chain)
            width = Axis.fixed(len(layer.weight)) if owner is None else widths[owner.name]
        else:
            width = widths[layer.name]
            rest = tuple(Axis.fixed(extent) for extent in layer.weight.shape[2:])
            tensors[layer.key("weight")] = TensorSpec((width, inputs[layer.name], *rest))
        _add_vectors(tensors, layer, width)
    ordered = {name: tensors[name] for name in state_dict}
    names = " -> ".join(layer.name for layer in chain)
    origin = (
        f"state dict read as the plain chain {names}; skip connections, grouped convolutions and "
        "group norms after Linear layers would not be seen"
    )
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


def _check_one_model(layers: list[_Layer]) -> None:
    """Refuse a stack of models by its biases, which have an axis more than those of a layer."""
    tensors = [tensor for layer in layers for tensor in layer.tensors.values()]
    counts = {tensor.shape[0] if tensor.ndim else None for tensor in tensors}
    biases = [layer.tensors["bias"] for layer in layers if "bias" in layer.tensors]
    if len(counts) == 1 and biases and all(bias.ndim == 2 for bias in biases):
        raise SpecError(f"this looks like {stack_advice(counts.pop())}")


def _in_order(layers: list[_Layer]) -> list[_Layer]:
    """Return the Linear and Conv layers in the order of the chain."""
    orders = _orders_by_shape(layers)
    if len(orders) == 1:
        return orders[0]
    numbered = sorted(layers, key=lambda layer: (layer.weight.ndim == 2, layer.number))
    stems = {(layer.weight.ndim == 2, layer.stem) for layer in layers}
    distinct = len({(layer.stem, layer.number) for layer in layers}) == len(layers)
    counted = len(stems) <= 2 and distinct and all(layer.number >= 0 for layer in layers)
    if counted and all(_fits(a, b) for a, b in itertools.pairwise(numbered)):
        return numbered
    names = ", ".join(layer.name for layer in layers)
    raise SpecError(f"the order of the layers {names} cannot be told; {_ADVICE}")


def _orders_by_shape(layers: list[_Layer]) -> list[list[_Layer]]:
    """Return up to two orders in which each layer's inputs fit the units of the one before it.

    Layers of one shape can change places, and where many orders must be tried shapes tell little:
    then there is no answer.
    """
    found: list[list[_Layer]] = []
    tried = 0
    if len({layer.weight.shape for layer in layers}) < len(layers):
        return found

    def extend(chain: list[_Layer], rest: list[_Layer]) -> None:
        nonlocal tried
        tried += 1
        if not rest:
            found.append(chain)
        for layer in rest:
            if len(found) < 2 and tried < _MOST_ORDERS and (not chain or _fits(chain[-1], layer)):
                extend([*chain, layer], [other for other in rest if other is not layer])

    extend([], layers)
    return found if tried < _MOST_ORDERS else []


def _fits(before: _Layer, after: _Layer) -> bool:
    units, size = len(before.weight), after.weight.shape[1]
    flattened = after.weight.ndim == 2 and before.weight.ndim > 2
    return size == units or (flattened and size % units == 0)


def _axes(chain: list[_Layer]) -> tuple[dict[str, Axis], dict[str, Axis]]:
    """Return the output axis and the input axis of each layer of the chain."""
    widths, inputs = {}, {}
    previous = Axis.fixed(chain[0].weight.shape[1])
    for layer in chain:
        size = len(layer.weight)
        places = layer.weight.shape[1] // max(previous.size, 1)
        if places > 1 and previous.size > 1:
            raise SpecError(
                f"{layer.name!r} reads {previous.size} channels of {places} places each, flattened "
                f"with the channels first or last (as in ports from Keras); {_ADVICE}"
            )
        inputs[layer.name] = Axis.fixed(places) if previous.size == 1 else previous
        free = layer is not chain[-1] and size > 1
        widths[layer.name] = Axis.of_group(layer.name, size) if free else Axis.fixed(size)
        previous = widths[layer.name]
    return widths, inputs


def _norm_owner(norm: _Layer, layers: list[_Layer], chain: list[_Layer]) -> _Layer | None:
    """Return the layer whose units a norm scales.

    None if it scales the inputs of the chain, or all by one number: a PReLU, a norm of one unit.
    """
    size = len(norm.weight)
    if size == 1:
        return None
    same_size = [layer for layer in chain if len(layer.weight) == size]
    before = [layer for layer in chain if layer.stem == norm.stem and layer.number < norm.number]
    paired = [layer for layer in same_size if layer.number == norm.number >= 0]
    if before:
        owner = max(before, key=lambda layer: layer.number)
    elif norm.stem == chain[0].stem and 0 <= norm.number < chain[0].number:
        return None
    elif len(same_size) == 1:
        owner = same_size[0]
    elif len(paired) == 1:
        owner = paired[0]
    else:
        raise SpecError(f"it cannot be told which layer the norm {norm.name!r} follows; {_ADVICE}")
    if len(owner.weight) != size:
        raise SpecError(
            f"norm {norm.name!r} has {size} units, the layer before it ({owner.name!r}) has "
            f"{len(owner.weight)}; {_ADVICE}"
        )
    if owner.weight.ndim > 2 and "running_mean" not in norm.tensors:
        raise SpecError(
            f"norm {norm.name!r} after a convolution has no running statistics: it may be a "
            f"GroupNorm, whose number of groups the state dict does not say; {_ADVICE}"
        )
    return owner


def _add_vectors(tensors: dict[str, TensorSpec], layer: _Layer, width: Axis) -> None:
    for last, tensor in layer.tensors.items():
        key = layer.key(last)
        if key in tensors:
            continue
        if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != width.size):
            raise SpecError(f"{key!r} has shape {list(tensor.shape)}; {_ADVICE}")
        tensors[key] = TensorSpec((width,) * tensor.ndim, counted=last not in _BUFFERS)


def _pins(tensors: Mapping[str, TensorSpec]) -> Iterable[Pin]:
    for name, tensor in tensors.items():
        for number, axis in enumerate(tensor.axes):
            if not axis.groups and axis.size > 1:
                reason = "spatial extent" if number > 1 else "input or output of the chain"
                yield Pin(name, number, reason)
