"""How the state of a group's units begins, and what a round of messages makes of it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from gpu_align.learn._cells import Cell, Features, Key
from gpu_align.learn._graph import (
    Node,
    States,
    is_alone,
    is_loop,
    loops,
    magnitude,
    message,
    nodes_of,
    own_entries,
)


@dataclass(frozen=True)
class Surroundings:
    """What the units of a network are connected by.

    Attributes:
        cells: of its weights.
        units: a cell for the units of each key.
        widths: channels of each cell in all, those of its fixed places.
        channels: of a state.
    """

    cells: tuple[Cell, ...]
    units: tuple[Cell, ...]
    widths: tuple[int, ...]
    channels: int

    @cached_property
    def nodes(self) -> list[tuple[Node, ...]]:
        """The nodes of each cell."""
        return [nodes_of(cell) for cell in self.cells]

    def of(self, key: Key) -> list[tuple[int, int]]:
        """Return the nodes that are units of a key: the numbers of their cells and in these."""
        return [
            (cell, number)
            for cell, nodes in enumerate(self.nodes)
            for number, node in enumerate(nodes)
            if node.key == key
        ]

    def around(self, unit: Cell) -> tuple[list[Key], list[Key]]:
        """Return the keys of a unit's parent and of the units inside it, as far as there are."""
        key = key_of(unit)
        parents = [axis.key for axis in unit.axes[:-1]]
        inside = [key_of(c) for c in self.units if key in [axis.key for axis in c.axes[:-1]]]
        return parents, inside


def key_of(unit: Cell) -> Key:
    """Return the key of the units that a cell is of."""
    return unit.axes[-1].key


class Start(nn.Module):
    """The first states of units: linear in the entries that they alone have.

    The even state also reads the sizes of all other entries.
    """

    def __init__(self, unit: Cell, around: Surroundings) -> None:
        super().__init__()
        nodes = around.nodes
        own = [(cell, nodes[cell][number]) for cell, number in around.of(key_of(unit))]
        self.unit, self.channels = unit, around.channels
        self.alone = [(n, node) for n, node in own if is_alone(around.cells[n], node)]
        self.sized = [item for item in own if item not in self.alone or item[1].odd]
        self.loops = sorted({n for n, _ in own if is_loop(nodes[n])})
        plain = [n for n, node in self.alone if not node.odd]
        signed = [n for n, node in self.alone if node.odd]
        read = [*plain, *(n for n, _ in self.sized), *self.loops]
        self.even = _linear(sum(around.widths[n] for n in read), self.channels, bias=True)
        self.odd = _linear(sum(around.widths[n] for n in signed), self.channels, bias=False)

    def forward(self, weights: Features) -> tuple[Tensor, Tensor | None]:
        """Return the even and the odd state, [b, *sizes of the units, channels].

        Without an entry to read they are 0; there is no odd state of units without signs.
        """
        even = [own_entries(weights[n], node) for n, node in self.alone if not node.odd]
        even += [magnitude(weights[n], node) for n, node in self.sized]
        even += [loops(weights[n]) for n in self.loops]
        odd = [own_entries(weights[n], node) for n, node in self.alone if node.odd]
        zero = weights[0].new_zeros(len(weights[0]), *self.unit.sizes, self.channels)
        even_state = zero if self.even is None else self.even(torch.cat(even, -1))
        if not self.unit.is_odd:
            return even_state, None
        return even_state, zero if self.odd is None else self.odd(torch.cat(odd, -1))


class Update(nn.Module):
    """One round: the states of units from their own, those around them, and messages.

    even' = even + MLP(norm(all that is even)),  odd' = odd + gate(even') * linear(norm(all odd)).
    Products of two linear maps of what is odd are even.
    """

    def __init__(self, unit: Cell, around: Surroundings) -> None:
        super().__init__()
        self.unit, self.nodes, channels = unit, around.nodes, around.channels
        self.parents, self.inside = around.around(unit)
        self.routes = [item for item in around.of(key_of(unit)) if len(self.nodes[item[0]]) > 1]
        sent = {False: 0, True: 0}
        for n, number in self.routes:
            sent[self.nodes[n][number].odd] += around.widths[n] * channels
        even = channels * (1 + len(self.parents) + len(self.inside)) + sent[False]
        if unit.is_odd:
            odd, even = channels + sent[True], even + channels
            self.odd_norm = nn.RMSNorm(odd)
            self.odd = nn.Linear(odd, 3 * channels, bias=False)
            self.gate = nn.Linear(channels, channels)
        self.even = nn.Sequential(
            nn.LayerNorm(even), nn.Linear(even, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, weights: Features, even: States, odd: States) -> tuple[Tensor, Tensor | None]:
        """Return the new even and odd state, [b, *sizes of the units, channels]."""
        key = key_of(self.unit)
        sent = {False: [even[key]], True: [odd[key]] if self.unit.is_odd else []}
        for n, number in self.routes:
            nodes = self.nodes[n]
            sent[nodes[number].odd].append(message(weights[n], nodes, number, even, odd))
        sent[False] += [even[parent][:, :, None].expand_as(even[key]) for parent in self.parents]
        sent[False] += [even[child].mean(2) for child in self.inside]
        if not self.unit.is_odd:
            return even[key] + self.even(torch.cat(sent[False], -1)), None
        linear, left, right = self.odd(self.odd_norm(torch.cat(sent[True], -1))).chunk(3, -1)
        state = even[key] + self.even(torch.cat([*sent[False], left * right], -1))
        return state, odd[key] + linear * torch.sigmoid(self.gate(state))


def _linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear | None:
    return nn.Linear(inputs, outputs, bias) if inputs else None
