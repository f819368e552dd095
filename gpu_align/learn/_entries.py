"""What message passing says of each weight: features by cell, read off the states of units."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gpu_align.learn._cells import Features
from gpu_align.learn._graph import Node
from gpu_align.learn._messages import MessagePassing, UnitStates
from gpu_align.learn._update import key_of


class MessageEntries(nn.Module):
    """One number for each entry of a network's weights, which moves with its units.

    It is linear in the entry itself and in a product with one factor for each unit that the entry
    connects, and one for the network as a whole. Factors are affine in the states of units, linear
    where these change their signs; so a change of W has as many directions as there are channels.
    """

    def __init__(self, network: MessagePassing) -> None:
        """Draw the weights of the layers.

        Args:
            network: what makes the states; it reads one channel.
        """
        super().__init__()
        around = network.around
        self.narrow = network.narrow
        whole = around.channels * len(around.units)
        self.parts = nn.ModuleList(
            _Entries(nodes, width, around.channels, whole)
            for nodes, width in zip(around.nodes, around.widths, strict=True)
        )

    def forward(self, states: UnitStates) -> Features:
        """Return features of one channel, [b, *sizes, fixed] of each cell."""
        means = [states.even[key_of(unit)].flatten(1, -2).mean(1) for unit in states.units]
        whole = torch.cat(means, -1)
        return tuple(
            self.narrow.back(number, part(x, whole, states))
            for number, (part, x) in enumerate(zip(self.parts, states.weights, strict=True))
        )


class _Entries(nn.Module):
    """The entries of one cell."""

    def __init__(self, nodes: Sequence[Node], width: int, channels: int, whole: int) -> None:
        super().__init__()
        self.nodes = nodes
        self.own = nn.Linear(width, width, bias=not any(node.odd for node in nodes))
        self.whole = nn.Sequential(nn.LayerNorm(whole), nn.Linear(whole, channels))
        self.factors = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(channels), nn.Linear(channels, channels, bias=not node.odd))
            for node in nodes
        )
        self.product = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tensor, whole: Tensor, states: UnitStates) -> Tensor:
        """Return [b, *sizes, width] of a cell [b, *sizes, width]."""
        channel = x.ndim - 1
        operands: list[Tensor | list[int]] = [self.whole(whole), [0, channel]]
        for node, factor in zip(self.nodes, self.factors, strict=True):
            state = (states.odd if node.odd else states.even)[node.key]
            operands += [factor(state), [0, *(n + 1 for n in node.axes), channel]]
        product: Tensor = self.product(torch.einsum(*operands, [*range(channel), channel]))
        own: Tensor = self.own(x)
        return own + product
