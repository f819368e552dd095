"""Small networks that zoos are made of."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Siren(nn.Sequential):
    """A perceptron with sines: coordinates to values.

    x -> sin(w0 (W x + b)) in every hidden layer, then a linear layer plus `offset`. Weights begin
    uniform: within 1 / inputs in the first layer, sqrt(6 / inputs) / w0 in the others (Sitzmann et
    al., NeurIPS 2020, section 3.2); biases at 0, as in the zoos of DWSNets.
    """

    def __init__(self, widths: Sequence[int], w0: float = 6.0, offset: float = 0.5) -> None:
        """Draw the weights from torch's generator.

        Args:
            widths: number of coordinates, of the units of each hidden layer, of values.
            w0: the frequency.
            offset: added to the values: the middle of their range.
        """
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        super().__init__(*layers)
        self.w0, self.offset = w0, offset
        for number, layer in enumerate(layers):
            inputs = layer.in_features
            bound = math.sqrt(6 / inputs) / w0 if number else 1 / inputs
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [.., values] of [.., coordinates]."""
        *hidden, last = self
        for layer in hidden:
            x = torch.sin(self.w0 * layer(x))
        values: Tensor = last(x)
        return values + self.offset


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Return Linear layers with ReLU between them, numbered as nn.Sequential does."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def coordinates(height: int, width: int) -> Tensor:
    """Return the places of pixels, row after row, from -1 to 1: [height * width, 2]."""
    rows, columns = (torch.linspace(-1, 1, n, device="cpu") for n in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
