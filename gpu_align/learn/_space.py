"""WeightSpace: a batch of networks of one spec as features by cell, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._symmetry import PermutationSpec, StateDict, stack_size, tensors_of
from gpu_align.learn._cells import BlockCell, Features, cells_of, check_features
from gpu_align.learn._elements import Elements


@dataclass(frozen=True)
class Statistics:
    """Means and standard deviations of the features of a space.

    They are the same at all entries that the symmetries can exchange, so standardising commutes
    with the symmetries. Where entries change their signs with units the mean is 0, and the
    deviation is from 0. It is 1 where all values are equal.

    Attributes:
        mean, std: one tensor for each cell, [fixed]: per tensor, all are equal.
    """

    mean: Features
    std: Features


class WeightSpace:
    """The weights of networks of one architecture, as equivariant layers take them.

    Every block of a tensor is a cell: its groups are axes, its fixed factors are channels.
    Features are a tuple with one tensor for each cell, [b, *sizes, fixed * channels]; weights have
    one channel. Tensors without entries have no cell.

    Attributes:
        spec: the architecture and its symmetries.
        cells: in the order of the spec's tensors.
        signs: whether the symmetries include negated units.
        buffers: whether there are cells of buffers too.
    """

    def __init__(self, spec: PermutationSpec, *, buffers: bool = False, signs: bool = True) -> None:
        """Cut the tensors of a spec into cells.

        Args:
            spec: from `discover`, `chain_spec` or a file.
            buffers: whether running statistics are part of the weights.
            signs: whether the symmetries include negated units where the spec has them.
        """
        self.spec, self.buffers, self.signs = spec, buffers, signs
        self.cells: tuple[BlockCell, ...] = cells_of(spec, buffers=buffers, signs=signs)

    def __repr__(self) -> str:
        sizes = [list((*cell.sizes, cell.fixed)) for cell in self.cells]
        return f"WeightSpace({', '.join(map(str, sizes))})"

    def from_state_dicts(
        self, states: StateDict | Sequence[StateDict], dtype: torch.dtype | None = None
    ) -> Features:
        """Return the features of networks, one channel each, sharing no memory with them.

        Args:
            states: state dicts, or a stack of them with a leading axis of networks.
            dtype: of the features; by default that of the weights, float64 where they differ.

        Raises:
            SpecError: names or shapes do not fit the spec.
            InputError: there are none.
        """
        return self.from_stacks(self._stacks(states), dtype)

    def from_stacks(
        self, stacks: Mapping[str, Tensor], dtype: torch.dtype | None = None
    ) -> Features:
        """Return what `from_state_dicts` does of stacks that are known to fit the spec.

        Args:
            stacks: the names of the cells -> [b, *shape].
            dtype: of the features.
        """
        found = {stacks[cell.name].dtype for cell in self.cells}
        dtype = dtype or (found.pop() if len(found) == 1 else torch.float64)
        features = []
        for cell in self.cells:
            part = cell.view(stacks[cell.name])
            shape = (len(part), *cell.sizes, cell.fixed)
            wide = part.to(dtype, memory_format=torch.contiguous_format, copy=True)
            features.append(wide.contiguous().reshape(shape))
        return tuple(features)

    def to_state_dicts(
        self, features: Features, like: StateDict | Sequence[StateDict] | None = None
    ) -> dict[str, Tensor]:
        """Return features of one channel as a stack of state dicts, name -> [b, *shape].

        Gradients pass. `torch.func.functional_call` under `torch.func.vmap` runs a stack.

        Args:
            features: of this space.
            like: networks that have the dtypes of the result, and the tensors that are not part of
                the space; without it the result has the names of the space, tied ones too.

        Raises:
            InputError: the features are not of this space; SpecError: `like` does not fit it.
        """
        check_features(features, self.cells, 1)
        made: dict[str, Tensor] = {}
        by_name: dict[str, list[tuple[BlockCell, Tensor]]] = {}
        for cell, x in zip(self.cells, features, strict=True):
            by_name.setdefault(cell.name, []).append((cell, x))
        for name, parts in by_name.items():
            made[name] = _joined(parts, self.spec.tensors[name].shape)
        names = dict.fromkeys([*self.spec.tensors, *self.spec.ties])
        if like is not None:
            given = self._stacks(like, everything=True)
            first = like if isinstance(like, Mapping) else like[0]
            names = dict.fromkeys(first)
            made = {n: made[n].to(t) if n in made else t.clone() for n, t in given.items()}
        kept = {name: self.spec.ties.get(name, name) for name in names}
        return {name: made[source] for name, source in kept.items() if source in made}

    def random_elements(
        self,
        count: int,
        *,
        phases: int = 0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Elements:
        """Draw symmetries uniformly and independently.

        Args:
            count: how many.
            phases: most half periods by which biases in front of sines are shifted to either side.
            seed: of the draws.
            generator: what to draw from, in place of a seed; by default torch's own.

        Raises:
            InputError: there are a seed and a generator.
        """
        if seed is not None:
            if generator is not None:
                raise InputError("expected a seed or a generator, got both; leave one out")
            generator = torch.Generator().manual_seed(seed)
        return Elements.random(
            self.spec, count, signs=self.signs, phases=phases, generator=generator
        )

    def act(self, elements: Elements, features: Features, channels: int = 1) -> Features:
        """Return features with the units of each network reordered by its own symmetry.

        Args:
            elements: b of them, or one for all networks.
            features: of this space, with any number of channels.
            channels: at each place.

        Raises:
            InputError: the features are not of this space.
        """
        return elements.act(features, self.cells, channels)

    def statistics(
        self, features: Features, per: Literal["tensor", "place"] = "tensor"
    ) -> Statistics:
        """Return means and deviations over networks and entries, in float64.

        Args:
            features: of one channel.
            per: whether each fixed place of a tensor has its own, or all share one.

        Raises:
            InputError: the features are not of this space, or there are no networks.
        """
        check_features(features, self.cells, 1)
        if not all(map(len, features)):
            raise InputError("expected at least one network to take statistics of, got none")
        means, stds = [], []
        for number, cell in enumerate(self.cells):
            others = [n for n, c in enumerate(self.cells) if c.name == cell.name]
            chosen = others if per == "tensor" else [number]
            parts = [features[n].reshape(-1, self.cells[n].fixed) for n in chosen]
            values = torch.cat([p.flatten() if per == "tensor" else p for p in parts]).double()
            odd = any(self.cells[n].is_odd for n in chosen)
            mean = torch.zeros_like(values[0]) if odd else values.mean(0)
            std = (values - mean).square().mean(0).sqrt()
            equal = std == 0 if odd else values.amin(0) == values.amax(0)
            std = torch.where(equal, torch.ones_like(std), std)
            means.append(mean.expand(cell.fixed).clone())
            stds.append(std.expand(cell.fixed).clone())
        return Statistics(tuple(means), tuple(stds))

    def standardise(self, features: Features, statistics: Statistics) -> Features:
        """Return features of one channel with their means taken off, divided by deviations."""
        every = zip(features, statistics.mean, statistics.std, strict=True)
        return tuple((x - mean.to(x)) / std.to(x) for x, mean, std in every)

    def unstandardise(self, features: Features, statistics: Statistics) -> Features:
        """Return what `standardise` was given."""
        every = zip(features, statistics.mean, statistics.std, strict=True)
        return tuple(x * std.to(x) + mean.to(x) for x, mean, std in every)

    def _stacks(
        self, states: StateDict | Sequence[StateDict], *, everything: bool = False
    ) -> dict[str, Tensor]:
        """Return tensors [b, *shape] by name: those with a cell, or all."""
        names = self.spec.tensors if everything else dict.fromkeys(c.name for c in self.cells)
        if isinstance(states, Mapping):
            shapes = {n: self.spec.lookup(n).shape for n in states if n in self.spec.keys}
            if stack_size(states, shapes):
                self.spec.validate({name: tensor[0] for name, tensor in states.items()})
                return {name: _stacked(self.spec, name, states) for name in names}
            states = [states]
        if not states:
            raise InputError("expected at least one network, got none")
        for state in states:
            self.spec.validate(state)
        return {name: torch.stack(tensors_of(self.spec, name, states)) for name in names}


def _stacked(spec: PermutationSpec, name: str, states: StateDict) -> Tensor:
    """Return a tensor of a stack; a missing count of a batch norm is 0 in each network."""
    tensor = spec.tensor_of(name, states)
    shape, count = spec.tensors[name].shape, len(next(iter(states.values())))
    return tensor if tensor.ndim > len(shape) else tensor.expand(count, *shape)


def _joined(parts: list[tuple[BlockCell, Tensor]], shape: tuple[int, ...]) -> Tensor:
    """Return the tensors [b, *shape] that cells were cut from."""
    first, x = parts[0]
    if (
        len(parts) == 1 and not first.chosen
    ):  # the cell is the tensor with its factors in another order
        sizes = [first.block.factors[n].size for n in first.order]
        back = [1 + first.order.index(n) for n in range(len(sizes))]
        return x.reshape(len(x), *sizes).permute(0, *back).reshape(len(x), *shape)
    whole = x.new_empty(len(x), *shape)
    for cell, x in parts:
        place = cell.view(whole)
        place.copy_(x.reshape(place.shape))
    return whole


def space_of(spec: PermutationSpec | WeightSpace) -> WeightSpace:
    """Return the space of a spec, or the one given."""
    return spec if isinstance(spec, WeightSpace) else WeightSpace(spec)
