"""Architectures of the planted bench beyond plain MLPs and CNNs: name -> model and inputs."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.networks import mlp


class Attention(nn.Module):
    """Self attention with one packed projection, as ViT implementations write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, places, width = x.shape
        qkv = self.qkv(x).reshape(batch, places, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Encoder(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 4 x 4, a class token, two blocks."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(Encoder(width, heads), Encoder(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class LSTM(nn.Module):
    """Embedding, two recurrent layers, the last state into a classifier."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.lstm = nn.LSTM(32, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])


class DenseNet(nn.Module):
    """Four layers, each on the concatenation of all before it."""

    def __init__(self, growth: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, padding=1)
        widths = [growth * (n + 1) for n in range(4)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.layers = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)
        self.head = nn.Linear(5 * growth, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


class Separable(nn.Sequential):
    """Depthwise and pointwise convolution with BatchNorm, as in MobileNet."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )


class Siren(nn.Module):
    """Coordinates to a value through sines."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [2, width, width, width, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.sin(30 * layer(x))
        return last(x)


def depthwise_cnn() -> nn.Module:
    stem = nn.Conv2d(3, 32, 3, padding=1)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))
    return nn.Sequential(stem, Separable(32, 64), Separable(64, 96), *pooled)


def gpt2() -> nn.Module:
    """Two layers of Hugging Face's GPT-2 with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=96, n_positions=32, n_embd=64, n_layer=2, n_head=4)
    config.use_cache = False
    return GPT2LMHeadModel(config)


IMAGE = (2, 3, 16, 16)
ARCHITECTURES = {
    "ViT": (ViT, lambda: torch.randn(IMAGE)),
    "GPT-2": (gpt2, lambda: torch.randint(96, (2, 12))),
    "LSTM": (LSTM, lambda: torch.randint(50, (2, 7))),
    "DenseNet": (DenseNet, lambda: torch.randn(IMAGE)),
    "depthwise CNN": (depthwise_cnn, lambda: torch.randn(IMAGE)),
    "SIREN, signs": (Siren, lambda: torch.randn(2, 2)),
    "ReLU MLP, scales": (lambda: mlp([64, 96, 96, 10]), lambda: torch.randn(2, 64)),
}
