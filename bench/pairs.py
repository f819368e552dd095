"""Pairs of trained checkpoints that the user gives, and the architectures they belong to."""

import itertools
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_align import PermutationSpec, discover, load_checkpoint

PAIRS = "GPU_ALIGN_PAIRS"
"""Environment variable: a folder with NAME_0.safetensors and NAME_1.safetensors."""


def mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class CNN(nn.Module):
    """Three convolutions with BatchNorm, a flatten with 3 x 3 places, two Linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, width, 3, padding=1)
        self.n1 = nn.BatchNorm2d(width)
        self.c2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.n2 = nn.BatchNorm2d(2 * width)
        self.c3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.n3 = nn.BatchNorm2d(2 * width)
        self.fc1 = nn.Linear(2 * width * 9, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.c1, self.n1), (self.c2, self.n2), (self.c3, self.n3)):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.short = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet(nn.Module):
    """A stem and five basic blocks, 1 x 14 x 14 inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.l1 = Block(width, width, 1)
        self.l2 = Block(width, 2 * width, 2)
        self.l3 = Block(2 * width, 2 * width, 1)
        self.l4 = Block(2 * width, 4 * width, 2)
        self.l5 = Block(4 * width, 4 * width, 1)
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        for block in (self.l1, self.l2, self.l3, self.l4, self.l5):
            x = block(x)
        return self.fc(x.mean((2, 3)))


ARCHITECTURES = {
    "mnist_mlp_128x3": (lambda: mlp([784, 128, 128, 128, 10]), (2, 784)),
    "mnist_mlp_512x3": (lambda: mlp([784, 512, 512, 512, 10]), (2, 784)),
    "mnist_cnn_bn": (lambda: CNN(24), (2, 1, 28, 28)),
    "mnist_resnet_w16": (lambda: ResNet(16), (2, 1, 14, 14)),
}
"""Pair -> how its model is made, and the shape of its inputs."""


COURSEWORK = (lambda: mlp([784, 64, 24, 10]), (2, 784))
"""The same of the pair `coursework`, which has its own bench."""


def spec_of(name: str) -> PermutationSpec:
    """Return the discovered spec of a pair's architecture."""
    factory, shape = ARCHITECTURES[name]
    return discover(factory(), torch.randn(shape))


def load_pair(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Return source (NAME_0) and target (NAME_1), or None where the user gave no pairs."""
    folder = os.environ.get(PAIRS)
    if not folder:
        return None
    first, second = ("1", "2") if name == "coursework" else ("0", "1")
    source, target = (
        dict(load_checkpoint(Path(folder) / f"{name}_{number}.safetensors").tensors)
        for number in (first, second)
    )
    return source, target


def random_pair(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return two networks with random weights: the shapes of a pair without its training."""
    factory, _ = ARCHITECTURES.get(name, COURSEWORK)
    states = []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            states.append(dict(factory().state_dict()))
    return states[0], states[1]
