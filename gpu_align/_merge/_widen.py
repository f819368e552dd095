"""Two networks in one that is wider: some units are merged, others of both lie side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gpu_align._symmetry import (
    Factor,
    Fixed,
    PermutationSpec,
    StateDict,
    TensorSpec,
    duplicate,
)


@dataclass(frozen=True)
class Split:
    """Which units of a group are kept apart: n units become n + k.

    The first n places have the merged units, and the first network's own in the places of those
    apart; the k places behind them have the second network's own.

    Attributes:
        units: n.
        apart: int64 [k], numbers of units in order.
    """

    units: int
    apart: Tensor

    @property
    def size(self) -> int:
        """Number of units of the wider network."""
        return self.units + len(self.apart)

    def places(self, network: int) -> Tensor:
        """Return where the units of the first (0) or second (1) network are, int64 [n]."""
        places = torch.arange(self.units, device="cpu")
        if network == 1:
            places[self.apart] = torch.arange(self.units, self.size, device="cpu")
        return places

    @property
    def is_apart(self) -> Tensor:
        """Whether each unit is kept apart, bool [n]."""
        return torch.zeros(self.units, dtype=torch.bool, device="cpu").index_fill(0, self.apart, 1)


Splits = Mapping[str, Split]


def wide_tensors(
    spec: PermutationSpec, states: Sequence[StateDict], splits: Splits, model: nn.Module
) -> dict[str, Tensor]:
    """Return the tensors of the wider network that runs two aligned ones side by side.

    What makes a merged unit is averaged, and so is what makes an output; so the two networks count
    by half there, whether what they read is merged or their own. What makes a unit of one network
    is that network's, and reads nothing of the other's own. With all units apart, outputs are the
    means of the two networks' outputs.

    Args:
        spec: of both.
        states: the two; every tensor with a group of `splits` is floating point.
        splits: group without a parent -> its split.
        model: whose layers say which axis of a weight is read.

    Returns:
        name -> tensor in the dtype of the first network, for all names of the spec without ties;
        computed in float64 and rounded once.
    """
    tensors = {}
    for name, tensor_spec in spec.tensors.items():
        pair = [spec.tensor_of(name, state).detach() for state in states]
        if pair[0].is_floating_point():
            wide = _wide(tensor_spec, pair, splits, _read_axes(model, name))
            tensors[name] = wide.to(pair[0].device, pair[0].dtype)
        else:
            tensors[name] = pair[0]
    return tensors


def _wide(spec: TensorSpec, pair: Sequence[Tensor], splits: Splits, read: frozenset[int]) -> Tensor:
    """Return one tensor of the wider network in float64."""

    def wider(factor: Factor) -> Factor:
        if isinstance(factor, Fixed) or factor.group not in splits:
            return factor
        return replace(factor, size=splits[factor.group].size)

    grown = TensorSpec(tuple(axis.replaced(wider) for axis in spec.axes), spec.counted)
    made = torch.zeros(grown.shape, dtype=torch.float64, device="cpu")
    for old, new in zip(spec.blocks, grown.blocks, strict=True):
        axes = [axis for axis, piece in enumerate(old.pieces) for _ in piece.factors]
        for network, tensor in enumerate(pair):
            part = old.unfold(tensor.to("cpu", torch.float64))
            is_own = torch.zeros((), dtype=torch.bool, device="cpu")
            apart = {n: splits[f.group] for n, f in old.units.items() if f.group in splits}
            for number, split in apart.items():
                if axes[number] not in read:
                    behind = [1] * (len(axes) - number - 1)
                    is_own = is_own | split.is_apart.reshape(-1, *behind)
            part = torch.where(is_own, 1.0, 0.5) * part
            for number, split in apart.items():
                shape = [*part.shape[:number], split.size, *part.shape[number + 1 :]]
                part = part.new_zeros(shape).index_copy(number, split.places(network), part)
            new.unfold(made).add_(part)
    return made


def _read_axes(model: nn.Module, name: str) -> frozenset[int]:
    """Return the axes of a tensor along which a layer reads units; along others it makes them."""
    prefix, _, attribute = name.rpartition(".")
    layer = model.get_submodule(prefix)
    if attribute != "weight":
        return frozenset()
    match layer:
        case _ConvTransposeNd(groups=1) | nn.Embedding():
            return frozenset({0})
        case _ConvTransposeNd():
            return frozenset()  # a depthwise one makes the channel that it reads
        case _ConvNd() | nn.Linear():
            return frozenset({1})
        case nn.Bilinear():
            return frozenset({1, 2})
    return frozenset()


def wide_module(
    model: nn.Module, spec: PermutationSpec, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Return a copy of a module with wider tensors, and its layers' sizes set to theirs.

    Args:
        model: left as it is; its dtypes, devices and `requires_grad` are those of the copy.
        spec: whose ties say which names share a tensor.
        tensors: of the wider network.
    """
    wide = duplicate(model)
    made: dict[str, nn.Parameter | Tensor] = {}
    for name in wide.state_dict():
        kept = spec.ties.get(name, name)
        if kept not in tensors:
            continue
        prefix, _, attribute = name.rpartition(".")
        layer = wide.get_submodule(prefix)
        held, tensor = getattr(layer, attribute), tensors[kept]
        if held.shape == tensor.shape:
            with torch.no_grad():
                held.copy_(tensor)
            continue
        if kept not in made:
            new = tensor.to(held.device, held.dtype, copy=True)
            is_parameter = isinstance(held, nn.Parameter)
            made[kept] = nn.Parameter(new, held.requires_grad) if is_parameter else new
        if attribute == "weight" and isinstance(layer, _ConvNd) and layer.groups > 1:
            # The groups of a depthwise convolution are its channels.
            layer.groups = layer.groups * len(tensor) // len(held)
        setattr(layer, attribute, made[kept])
    for layer in wide.modules():
        _set_sizes(layer)
    return wide


def _set_sizes(layer: nn.Module) -> None:
    """Let the attributes of a layer say the sizes of its tensors."""
    match layer:
        case _ConvTransposeNd():
            layer.in_channels = layer.weight.shape[0]
            layer.out_channels = layer.weight.shape[1] * layer.groups
        case _ConvNd():
            layer.out_channels = layer.weight.shape[0]
            layer.in_channels = layer.weight.shape[1] * layer.groups
        case nn.Linear():
            layer.out_features, layer.in_features = layer.weight.shape
        case nn.Embedding():
            layer.num_embeddings, layer.embedding_dim = layer.weight.shape
        case _NormBase():
            counted = layer.weight if layer.running_mean is None else layer.running_mean
            layer.num_features = layer.num_features if counted is None else len(counted)
        case nn.PReLU():
            layer.num_parameters = len(layer.weight)
