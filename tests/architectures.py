"""Small copies of well-known architectures with random weights and example inputs.

Every factory returns a model in float64 whose units all differ, and inputs for `discover`. Widths
are small and as unlike as the architecture allows, so that a wrong group shows in the count.
"""

import torch
import torch.nn.functional as F
from networks import Graph, mlp, randomised
from torch import Tensor, nn

from bench.networks import Bottleneck

Example = tuple[nn.Module, object]
"""A model and example inputs."""


def normal(*shape: int) -> Tensor:
    """Return standard normal inputs, the same in every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    """Return token numbers below 7."""
    return torch.randint(7, shape, generator=torch.Generator().manual_seed(1))


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, size, 1, size // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def classifier(channels: int) -> nn.Sequential:
    """Return the mean over all places and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


# Convolutional networks whose branches are added or joined.


class DenseLayer(nn.Module):
    """A bottleneck layer of DenseNet on everything that was made before it."""

    def __init__(self, inputs: int, bottleneck: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, bottleneck, 1)
        self.norm2 = nn.BatchNorm2d(bottleneck)
        self.conv2 = nn.Conv2d(bottleneck, growth, 3, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.ModuleList):
    """Dense layers, each on all features so far."""

    def __init__(self, inputs: int, bottleneck: int, growth: int, layers: int) -> None:
        super().__init__(DenseLayer(inputs + n * growth, bottleneck, growth) for n in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


def dense_net() -> Example:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        DenseBlock(4, bottleneck=5, growth=3, layers=2),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 6, 1),
        nn.AvgPool2d(2),
        DenseBlock(6, bottleneck=7, growth=2, layers=3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        classifier(12),
    )
    return randomised(model), normal(2, 3, 6, 6)


class UNet(nn.Module):
    """Two levels down and up, joined by concatenation; every width occurs once or is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(ConvNorm(1, 3, 3), ConvNorm(3, 4, 3))
        self.down2 = nn.Sequential(ConvNorm(4, 5, 3), ConvNorm(5, 6, 3))
        self.bottom = nn.Sequential(ConvNorm(6, 7, 3), ConvNorm(7, 8, 3))
        self.up2 = nn.ConvTranspose2d(8, 6, 2, 2)
        self.join2 = nn.Sequential(ConvNorm(12, 6, 3), ConvNorm(6, 5, 3))
        self.up1 = nn.ConvTranspose2d(5, 4, 2, 2)
        self.join1 = nn.Sequential(ConvNorm(8, 4, 3), ConvNorm(4, 3, 3))
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        middle = self.down2(F.max_pool2d(fine, 2))
        coarse = self.bottom(F.max_pool2d(middle, 2))
        middle = self.join2(torch.cat([self.up2(coarse), middle], 1))
        return self.head(self.join1(torch.cat([self.up1(middle), fine], 1)))


def u_net() -> Example:
    return randomised(UNet()), normal(2, 1, 8, 8)


class Inception(nn.Module):
    """Four branches side by side: 1 x 1, 3 x 3 and 5 x 5 after a reduction, pooling."""

    def __init__(
        self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int
    ) -> None:
        super().__init__()
        self.one = ConvNorm(inputs, one, 1)
        self.three = nn.Sequential(ConvNorm(inputs, three[0], 1), ConvNorm(*three, 3))
        self.five = nn.Sequential(ConvNorm(inputs, five[0], 1), ConvNorm(*five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def inception() -> Example:
    model = nn.Sequential(
        ConvNorm(3, 4, 3),
        Inception(4, one=3, three=(2, 5), five=(3, 4), pool=2),
        Inception(14, one=2, three=(4, 3), five=(2, 5), pool=6),
        classifier(16),
    )
    return randomised(model), normal(2, 3, 5, 5)


class ResidualBlock(nn.Module):
    """A branch and a shortcut, added."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from the means of all."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


def se_resnet() -> Example:
    def block(inputs: int, outputs: int, inner: int, squeezed: int) -> nn.Module:
        branch = nn.Sequential(
            ConvNorm(inputs, inner, 3),
            nn.Conv2d(inner, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            SqueezeExcitation(outputs, squeezed),
        )
        same = inputs == outputs
        return ResidualBlock(branch, nn.Identity() if same else nn.Conv2d(inputs, outputs, 1))

    model = nn.Sequential(
        ConvNorm(3, 6, 3), block(6, 6, 5, 2), block(6, 8, 7, 3), block(8, 8, 4, 2), classifier(8)
    )
    return randomised(model), normal(2, 3, 5, 5)


def group_norm_resnet() -> Example:
    def branch() -> nn.Module:
        return nn.Sequential(
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 9, 3, padding=1),
            nn.GroupNorm(3, 9),
            nn.ReLU(),
            nn.Conv2d(9, 8, 3, padding=1),
        )

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        ResidualBlock(branch(), nn.Identity()),
        ResidualBlock(branch(), nn.Identity()),
        classifier(8),
    )
    return randomised(model), normal(2, 3, 6, 6)


def autoencoder() -> Example:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 2, 2),
        nn.ReLU(),
        nn.Conv2d(4, 5, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
        nn.Linear(3, 24),
        nn.ReLU(),
        nn.Unflatten(1, (6, 2, 2)),
        nn.ConvTranspose2d(6, 7, 2, 2),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.ConvTranspose2d(7, 1, 2, 2),
    )
    return randomised(model), normal(2, 1, 8, 8)


# Grouped convolution.


def depthwise_separable() -> Example:
    """A depthwise layer of one output for each channel, then one of two."""
    model = nn.Sequential(
        ConvNorm(3, 4, 3),
        ConvNorm(4, 4, 3, groups=4),
        ConvNorm(4, 6, 1),
        ConvNorm(6, 12, 3, groups=6),
        ConvNorm(12, 5, 1),
        classifier(5),
    )
    return randomised(model), normal(2, 3, 5, 5)


def resnext() -> Example:
    def block(inputs: int, outputs: int, inner: int, groups: int) -> nn.Module:
        branch = nn.Sequential(
            ConvNorm(inputs, inner, 1),
            ConvNorm(inner, inner, 3, groups),
            nn.Conv2d(inner, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs
        return ResidualBlock(branch, nn.Identity() if same else nn.Conv2d(inputs, outputs, 1))

    model = nn.Sequential(ConvNorm(3, 5, 3), block(5, 7, 12, 3), block(7, 7, 12, 4), classifier(7))
    return randomised(model), normal(2, 3, 5, 5)


def grouped_chain() -> Example:
    """Grouped convolutions of the same groups, one after another."""
    model = nn.Sequential(
        ConvNorm(3, 6, 1),
        ConvNorm(6, 12, 3, groups=3),
        ConvNorm(12, 9, 3, groups=3),
        ConvNorm(9, 5, 1),
        classifier(5),
    )
    return randomised(model), normal(2, 3, 5, 5)


# Multilayer perceptrons.


class MixerBlock(nn.Module):
    """A perceptron over the tokens of each channel, then one over the channels of each token."""

    def __init__(self, count: int, channels: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = mlp([count, token_hidden, count], nn.GELU)
        self.channels = mlp([channels, channel_hidden, channels], nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def mlp_mixer() -> Example:
    model = Graph(
        lambda s, x: s.head(s.norm(s.blocks(s.patches(x).flatten(2).mT)).mean(1)),
        patches=nn.Conv2d(3, 8, 2, 2),
        blocks=nn.Sequential(*(MixerBlock(4, 8, 5, 7) for _ in range(2))),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 3),
    )
    return randomised(model), normal(2, 3, 4, 4)


def siren() -> Example:
    """Coordinates to colours through sines, the first of a high frequency."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = torch.sin(30.0 * s.first(x))
        return s.head(torch.sin(s.third(torch.sin(s.second(x)))))

    model = Graph(
        forward,
        first=nn.Linear(2, 8),
        second=nn.Linear(8, 9),
        third=nn.Linear(9, 7),
        head=nn.Linear(7, 3),
    )
    return randomised(model), normal(6, 2)


# Full sizes. They are on the meta device: discovery looks at shapes, never at weights.


def wide_mlp() -> Example:
    with torch.device("meta"):
        return mlp([784, 512, 512, 512, 10]), torch.empty(2, 784)


def vgg16() -> Example:
    """VGG16 with the names of torchvision."""
    features: list[nn.Module] = []
    inputs = 3
    with torch.device("meta"):
        for widths in ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3):
            for width in widths:
                features += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
            features.append(nn.MaxPool2d(2, 2))
        hidden = [nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Dropout()]
        hidden += [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()]
        model = Graph(
            lambda s, x: s.classifier(s.avgpool(s.features(x)).flatten(1)),
            features=nn.Sequential(*features),
            avgpool=nn.AdaptiveAvgPool2d(7),
            classifier=nn.Sequential(*hidden, nn.Linear(4096, 1000)),
        )
        return model, torch.empty(2, 3, 224, 224)


def resnet50() -> Example:
    """ResNet50 with the names of torchvision."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(s.bn1(s.conv1(x))), 3, 2, 1)
        return s.fc(s.layer4(s.layer3(s.layer2(s.layer1(x)))).mean((2, 3)))

    def stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Module:
        first = Bottleneck(inputs, width, stride)
        return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))

    with torch.device("meta"):
        model = Graph(
            forward,
            conv1=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            bn1=nn.BatchNorm2d(64),
            layer1=stage(64, 64, 3, 1),
            layer2=stage(256, 128, 4, 2),
            layer3=stage(512, 256, 6, 2),
            layer4=stage(1024, 512, 3, 2),
            fc=nn.Linear(2048, 1000),
        )
        return model, torch.empty(2, 3, 224, 224)
