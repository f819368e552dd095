"""Models that read networks: from all their weights in a row, equivariantly, or by running them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from gpu_align.learn._cells import Features
from gpu_align.learn._heads import InvariantHead
from gpu_align.learn._layers import ResidualBlock
from gpu_align.learn._linear import EquivariantLinear
from gpu_align.learn._messages import MessageHead, MessagePassing
from gpu_align.learn._space import WeightSpace

Make = Callable[[], nn.Module]


class FlatPerceptron(nn.Sequential):
    """A perceptron with one hidden layer on all features of a network in a row."""

    def __init__(self, inputs: int, outputs: int, hidden: int = 176, dropout: float = 0.5) -> None:
        """Draw the weights of the layers."""
        super().__init__(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
        )

    def forward(self, features: Features) -> Tensor:
        """Return [b, outputs]."""
        out: Tensor = super().forward(in_a_row(features))
        return out


class Probes(nn.Module):
    """A perceptron on the values of networks at points that are learned.

    Source: ProbeGen (Kahana et al., ICLR 2025), without its generator of points.
    """

    def __init__(
        self, space: WeightSpace, network: nn.Module, inputs: int, outputs: int, points: int = 64
    ) -> None:
        """Draw the points within -1 and 1, and the weights of the layers.

        Args:
            space: of the networks.
            network: how one of them is computed, [n, inputs] -> [n, 1].
            inputs: coordinates of a point.
            outputs: how many numbers.
            points: how many.
        """
        super().__init__()
        self.space, self.network = space, network.requires_grad_(False)
        self.points = nn.Parameter(2 * torch.rand(points, inputs) - 1)
        self.layers = nn.Sequential(
            *(nn.Linear(points, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
            nn.Linear(128, outputs),
        )

    def forward(self, features: Features) -> Tensor:
        """Return [b, outputs]."""
        states = self.space.to_state_dicts(features)
        run = vmap(lambda state: functional_call(self.network, state, (self.points,)))
        out: Tensor = self.layers(run(states)[..., 0])
        return out


def message_reader(
    space: WeightSpace, outputs: int, channels: int = 32, fixed_rank: int | None = None
) -> nn.Module:
    """Return message passing along the weights, and a head: features -> [b, outputs]."""
    network = MessagePassing(space, channels, fixed_rank=fixed_rank)
    return nn.Sequential(network, MessageHead(network, outputs))


def linear_reader(
    space: WeightSpace,
    outputs: int,
    channels: int = 16,
    blocks: int = 2,
    fixed_rank: int | None = None,
) -> nn.Module:
    """Return residual blocks of all equivariant linear maps, and a head: features -> [b, outputs].

    Source: DWSNets (Navon et al., ICML 2023), section 5.
    """
    return nn.Sequential(
        EquivariantLinear(space, 1, channels, fixed_rank=fixed_rank),
        *(ResidualBlock(space, channels, fixed_rank=fixed_rank) for _ in range(blocks)),
        InvariantHead(space, channels, outputs, fixed_rank=fixed_rank),
    )


def in_a_row(features: Features) -> Tensor:
    """Return features by cell as one row for each network, [b, k]."""
    return torch.cat([x.flatten(1) for x in features], 1)
