"""The networks of the instances, all of them small."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers with an activation between two of them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def _conv(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _head(channels: int) -> Sequence[nn.Module]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)


def cnn() -> nn.Module:
    """Return two convolutions with batch norm, and a flattened map of 2 x 2 places."""
    maps = (_conv(1, 16), nn.MaxPool2d(2), _conv(16, 24), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*maps, nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10))


class Residual(nn.Module):
    """A branch that is added to what it was made of."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


def resnet(width: int, blocks: int) -> nn.Module:
    """Return a residual network with batch norm."""

    def block() -> nn.Module:
        last = nn.Conv2d(width, width, 3, padding=1, bias=False)
        return Residual(_conv(width, width), last, nn.BatchNorm2d(width))

    body = (block() for _ in range(blocks))
    return nn.Sequential(_conv(1, width), nn.MaxPool2d(2), *body, *_head(width))


def depthwise() -> nn.Module:
    """Return depthwise separable convolutions."""

    def separable(inputs: int, outputs: int) -> Sequence[nn.Module]:
        return _conv(inputs, inputs, groups=inputs), nn.Conv2d(inputs, outputs, 1), nn.ReLU()

    return nn.Sequential(
        _conv(1, 16), *separable(16, 24), nn.MaxPool2d(2), *separable(24, 32), *_head(32)
    )


def group_norm() -> nn.Module:
    """Return convolutions with GroupNorm: groups move as wholes, and channels inside each."""
    layers = []
    for inputs, outputs in ((1, 16), (16, 24)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_head(24))


LETTERS = 32
"""Different characters in the text."""


class Recurrent(nn.Module):
    """A language model of characters: an embedding, two recurrent layers, a linear one."""

    def __init__(self, kind: type[nn.RNNBase], width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS, 16)
        self.body = kind(16, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x))[0])


class Block(nn.Module):
    """A block of a transformer, norms first."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = batch, length, self.heads, width // self.heads
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """A language model of characters like GPT-2."""

    def __init__(self, width: int = 32, heads: int = 4, layers: int = 2, length: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(LETTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        places = self.place(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(self.embed(x) + places)))


class Vit(nn.Module):
    """A classifier of images in patches of 2 x 2."""

    def __init__(self, width: int = 24, heads: int = 3, layers: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.place = nn.Parameter(torch.randn(16, width) / 10)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(patches)).mean(1))


class Sine(nn.Module):
    """sin(w x)."""

    def __init__(self, frequency: float = 6.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)


def siren() -> nn.Module:
    """Return a sine network 2-24-24-1 with SIREN's initial weights, whose units have signs."""
    model = mlp(2, 24, 24, 1, activation=Sine)
    for number, layer in enumerate(each for each in model if isinstance(each, nn.Linear)):
        bound = 1 / 2 if number == 0 else (6 / layer.in_features) ** 0.5 / 6
        nn.init.uniform_(layer.weight, -bound, bound)
    return model


def inr() -> nn.Module:
    """Return a network 2-48-48-1 with GELU, which shows an image too."""
    return mlp(2, 48, 48, 1, activation=nn.GELU)


def images() -> Tensor:
    """Return inputs to trace classifiers of images with."""
    return torch.zeros(2, 1, 8, 8)


def text() -> Tensor:
    """Return inputs to trace language models with."""
    return torch.zeros(2, 32, dtype=torch.int64)


def points() -> Tensor:
    """Return inputs to trace networks of places with."""
    return torch.zeros(2, 2)


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp_16": ("MLP 64-16-16-10", lambda: mlp(64, 16, 16, 10), images),
    "mlp_32": ("MLP 64-32-32-10", lambda: mlp(64, 32, 32, 10), images),
    "mlp_64x3": ("MLP 64-64-64-64-10", lambda: mlp(64, 64, 64, 64, 10), images),
    "cnn": ("CNN with BatchNorm, flattened", cnn, images),
    "resnet_12": ("ResNet, width 12, 2 blocks", lambda: resnet(12, 2), images),
    "resnet_16": ("ResNet, width 16, 4 blocks", lambda: resnet(16, 4), images),
    "depthwise": ("Depthwise separable CNN", depthwise, images),
    "group_norm": ("CNN with GroupNorm", group_norm, images),
    "lstm": ("LSTM, 2 layers of 24, characters", lambda: Recurrent(nn.LSTM, 24), text),
    "gru": ("GRU, 2 layers of 24, characters", lambda: Recurrent(nn.GRU, 24), text),
    "vit": ("ViT, width 24, 3 heads, 2 layers", Vit, images),
    "gpt": ("GPT-2-like, width 32, 4 heads, 2 layers, characters", Gpt, text),
    "siren": ("SIREN 2-24-24-1, with signs", siren, points),
    "inr": ("INR 2-48-48-1, GELU", inr, points),
    "planted_mlp": ("MLP 64-48-48-10, planted", lambda: mlp(64, 48, 48, 10), images),
    "planted_vit": ("ViT, planted", Vit, images),
}
"""Name -> title, what makes the network, inputs to trace it with."""
