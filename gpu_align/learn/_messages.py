"""Message passing along a network's own weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpu_align._errors import InputError
from gpu_align._symmetry import PermutationSpec
from gpu_align.learn._cells import Cell, Features, Key, check_features
from gpu_align.learn._graph import States, message
from gpu_align.learn._heads import by_group, unit_cells
from gpu_align.learn._narrow import Narrow
from gpu_align.learn._space import WeightSpace, space_of
from gpu_align.learn._update import Start, Surroundings, Update, key_of


@dataclass(frozen=True, eq=False)
class UnitStates:
    """What message passing knows of each unit.

    Attributes:
        units: a cell for the units of each key, with an axis for their parent if that can move.
        even: features that no sign changes, by key.
        odd: features that are negated with their unit, by the keys of units that may be.
        weights: the features by cell along which messages passed.
    """

    units: tuple[Cell, ...]
    even: States
    odd: States
    weights: Features

    def by_group(self, *, odd: bool = False) -> dict[str, Tensor]:
        """Return group -> [b, units, channels]; units are numbered as in `Permutation`.

        Args:
            odd: whether to return the features that are negated with their unit.
        """
        states = self.odd if odd else self.even
        cells = [unit for unit in self.units if key_of(unit) in states]
        return by_group(cells, [states[key_of(unit)] for unit in cells])


class MessagePassing(nn.Module):
    """Units pass messages to those they are connected with, along the weights between them.

    A message is a product with the network's own weights: W h forward, W^T h backward, one for
    each fixed place of a weight (of a kernel, of a stack of gates). So there are no features of
    connections, and a round costs as much as a few forward passes. Units that may be negated have
    odd features beside even ones: even ones gate the odd, products of two odd ones are even. Units
    inside others exchange features with them.

    The weights should be of unit scale, see `WeightSpace.standardise`.
    """

    def __init__(
        self,
        spec: PermutationSpec | WeightSpace,
        channels: int,
        *,
        rounds: int = 2,
        c_in: int = 1,
        fixed_rank: int | None = None,
    ) -> None:
        """Draw the weights of the layers.

        Args:
            spec: of the networks, or their space.
            channels: features of each unit, of either kind.
            rounds: how often messages pass.
            c_in: channels of the features by cell.
            fixed_rank: the most fixed places along which a cell sends: what has more is projected.

        Raises:
            InputError: a number is below 1.
        """
        super().__init__()
        if min(channels, rounds, c_in) < 1:
            raise InputError(
                "expected at least one channel and one round, got "
                f"channels={channels}, rounds={rounds}, c_in={c_in}"
            )
        space = space_of(spec)
        self.cells, self.c_in, units = space.cells, c_in, unit_cells(space)
        self.narrow = Narrow(self.cells, fixed_rank)
        widths = tuple(c_in * fixed for fixed in self.narrow.fixed)
        self.around = Surroundings(self.cells, units, widths, channels)
        self.start = nn.ModuleList(Start(unit, self.around) for unit in units)
        self.rounds = nn.ModuleList(
            nn.ModuleList(Update(unit, self.around) for unit in units) for _ in range(rounds)
        )

    def forward(self, features: Features) -> UnitStates:
        """Return the states of all units after the last round.

        Args:
            features: [b, *sizes, fixed * c_in] of each cell.

        Raises:
            InputError: the features are not those of the spec.
        """
        check_features(features, self.cells, self.c_in)
        weights, units = self.narrow(features), self.around.units
        even: dict[Key, Tensor] = {}
        odd: dict[Key, Tensor] = {}
        states = [start(weights) for start in self.start]
        for layer in [*self.rounds, None]:
            for unit, (even_state, odd_state) in zip(units, states, strict=True):
                even[key_of(unit)] = even_state
                if odd_state is not None:
                    odd[key_of(unit)] = odd_state
            if layer is not None:
                states = [update(weights, even, odd) for update in layer]
        return UnitStates(units, even, odd, weights)


class MessageHead(nn.Module):
    """Numbers of a whole network, read off the states of its units; no symmetry changes them.

    What a unit gets from a cell, the network gets as a whole: the sum of the entries times the
    states of all units that the cell connects. To this come the mean states of each group.
    """

    def __init__(self, network: MessagePassing, c_out: int, *, hidden: int = 64) -> None:
        """Draw the weights of the layers.

        Args:
            network: what makes the states.
            c_out: how many numbers.
            hidden: width of the hidden layer.
        """
        super().__init__()
        around = network.around
        self.nodes = around.nodes
        sent = [
            width * (around.channels if own else 1)
            for width, own in zip(around.widths, self.nodes, strict=True)
        ]
        inputs = sum(sent) + around.channels * len(around.units)
        self.layers = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, c_out)
        )

    def forward(self, states: UnitStates) -> Tensor:
        """Return [b, c_out]."""
        read = [states.even[key_of(unit)] for unit in states.units]
        read = [state.flatten(1, -2).mean(1) for state in read]
        for x, own in zip(states.weights, self.nodes, strict=True):
            read.append(message(x, own, None, states.even, states.odd) if own else x)
        out: Tensor = self.layers(torch.cat(read, -1))
        return out
