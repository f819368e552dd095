"""Networks of the size of published alignments, with random weights, and what their time was."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.networks import Bottleneck, mlp
from gpu_align import PermutationSpec, discover


class BasicBlock(nn.Module):
    """ResNet's block of two convolutions, normalised over channels as in Git Re-Basin."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.short = nn.Sequential()
        if inputs != width:
            projection = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.short = nn.Sequential(projection, nn.GroupNorm(1, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.short(x))


class Classifier(nn.Sequential):
    """Layers, the mean over all places, and a linear layer."""

    def __init__(self, features: int, classes: int, *layers: nn.Module) -> None:
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.append(nn.Linear(features, classes))


def resnet50(classes: int = 1000) -> nn.Module:
    """Return ResNet50."""
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    stages = _stages(Bottleneck, 64, (64, 128, 256, 512), (3, 4, 6, 3), 4)
    return Classifier(2048, classes, *stem, nn.MaxPool2d(3, 2, 1), *stages)


def resnet20(times: int) -> nn.Module:
    """Return ResNet20 of so many times the width, for 10 classes."""
    width = 16 * times
    stem = (nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.GroupNorm(1, width), nn.ReLU())
    widths = (width, 2 * width, 4 * width)
    return Classifier(4 * width, 10, *stem, *_stages(BasicBlock, width, widths, (3, 3, 3), 1))


def vgg16() -> nn.Module:
    """Return the convolutions of VGG16 with a linear layer, for images of 32 x 32."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.GroupNorm(1, width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return Classifier(512, 10, *layers)


def _stages(
    block: Callable[[int, int, int], nn.Module],
    inputs: int,
    widths: Sequence[int],
    counts: Sequence[int],
    expansion: int,
) -> Iterator[nn.Module]:
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
        for number in range(count):
            yield block(inputs, width, 2 if stage and not number else 1)
            inputs = expansion * width


@dataclass(frozen=True)
class Network:
    """A network whose whole alignment is timed.

    Attributes:
        name: of the network.
        make: returns it.
        inputs: shape that it is traced with.
        pair: of trained checkpoints, see `load_pair`; "" for none.
        published: seconds of Git Re-Basin's weight matching on a V100, None where it gives none.
        noise: of a planted pair, in standard deviations of each tensor. With more the widest
            network's descent ends after two sweeps, near its start.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    pair: str = ""
    published: float | None = None
    noise: float = 1.0

    def spec(self) -> PermutationSpec:
        """Trace the network without its weights, so that size costs nothing."""
        with torch.device("meta"):
            return discover(self.make(), torch.empty(self.inputs), verify=False)


NETWORKS = (
    Network("MLP 3x512", lambda: mlp([784, 512, 512, 512, 10]), (2, 784), "mnist_mlp_512x3", 3.0),
    Network("VGG16", vgg16, (2, 3, 32, 32)),
    Network("ResNet50", resnet50, (2, 3, 64, 64), published=33.0),
    Network("ResNet20 x32", lambda: resnet20(32), (2, 3, 32, 32), published=194.0, noise=0.3),
)
