"""Small recurrent networks and transformers; see architectures.py."""

import torch
import torch.nn.functional as F
from architectures import Example, normal, tokens
from networks import Graph, randomised
from torch import Tensor, nn

# Recurrent networks: all take sequences of five steps, batch first.


def lstm() -> Example:
    """Two layers on embedded tokens; the last step is classified."""
    model = Graph(
        lambda s, x: s.head(s.lstm(s.embed(x))[0][:, -1]),
        embed=nn.Embedding(7, 5),
        lstm=nn.LSTM(5, 6, num_layers=2, batch_first=True),
        head=nn.Linear(6, 3),
    )
    return randomised(model), tokens(2, 5)


def gru() -> Example:
    """Two layers; the final state of the last is classified."""
    model = Graph(
        lambda s, x: s.head(s.gru(x)[1][-1]),
        gru=nn.GRU(4, 6, num_layers=2, batch_first=True),
        head=nn.Linear(6, 3),
    )
    return randomised(model), normal(2, 5, 4)


def bidirectional_gru() -> Example:
    """The final states of both directions are joined and classified."""
    model = Graph(
        lambda s, x: s.head(torch.cat([(state := s.gru(x)[1])[-2], state[-1]], 1)),
        gru=nn.GRU(4, 6, batch_first=True, bidirectional=True),
        head=nn.Linear(12, 3),
    )
    return randomised(model), normal(2, 5, 4)


def projected_lstm() -> Example:
    """Two layers in both directions with projected states; the mean over time is classified."""
    model = Graph(
        lambda s, x: s.head(s.lstm(x)[0].mean(1)),
        lstm=nn.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=True, proj_size=3),
        head=nn.Linear(6, 3),
    )
    return randomised(model), normal(2, 5, 4)


def rnn() -> Example:
    """Every step is classified."""
    model = Graph(
        lambda s, x: s.head(s.rnn(x)[0]),
        rnn=nn.RNN(4, 6, nonlinearity="relu", batch_first=True),
        head=nn.Linear(6, 3),
    )
    return randomised(model), normal(2, 5, 4)


def captioner() -> Example:
    """An LSTM that starts from an encoded image, as in image captioning."""

    def forward(s: nn.Module, image: Tensor, words: Tensor) -> Tensor:
        code = F.relu(s.encode(image))
        states = s.hidden(code)[None], s.cell(code)[None]
        return s.head(s.lstm(s.embed(words), states)[0])

    model = Graph(
        forward,
        encode=nn.Linear(4, 5),
        hidden=nn.Linear(5, 6),
        cell=nn.Linear(5, 6),
        embed=nn.Embedding(7, 3),
        lstm=nn.LSTM(3, 6, batch_first=True),
        head=nn.Linear(6, 7),
    )
    return randomised(model), (normal(2, 4), tokens(2, 5))


def lstm_cell() -> Example:
    """A cell called step by step."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = s.cell(step, state)
        return s.head(state[0])

    model = Graph(forward, cell=nn.LSTMCell(4, 6), head=nn.Linear(6, 3))
    return randomised(model), normal(2, 3, 4)


# Attention.


def self_attention() -> Example:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = s.embed(x)
        return s.head(s.norm(x + s.attention(x, x, x)[0]))

    model = Graph(
        forward,
        embed=nn.Linear(5, 12),
        attention=nn.MultiheadAttention(12, 3, batch_first=True),
        norm=nn.LayerNorm(12),
        head=nn.Linear(12, 2),
    )
    return randomised(model), normal(2, 4, 5)


def cross_attention(memory: int) -> Example:
    """Queries of width 12 on a memory; the projections are packed if it has width 12 too."""

    def forward(s: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x, y = s.embed(x), s.remember(y)
        return s.head(x + s.attention(x, y, y, need_weights=False)[0])

    model = Graph(
        forward,
        embed=nn.Linear(5, 12),
        remember=nn.Linear(3, memory),
        attention=nn.MultiheadAttention(12, 3, kdim=memory, vdim=memory, batch_first=True),
        head=nn.Linear(12, 2),
    )
    return randomised(model), (normal(2, 4, 5), normal(2, 6, 3))


def transformer_encoder(norm_first: bool) -> Example:
    layer = nn.TransformerEncoderLayer(12, 3, 10, batch_first=True, norm_first=norm_first)
    model = Graph(
        lambda s, x: s.head(s.encoder(s.embed(x) + s.positions).mean(1)),
        embed=nn.Embedding(7, 12),
        positions=nn.Parameter(torch.empty(1, 5, 12)),
        encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        head=nn.Linear(12, 2),
    )
    return randomised(model), tokens(2, 5)


def encoder_decoder() -> Example:
    """nn.Transformer with a causal mask, a layer on either side."""

    def forward(s: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        # Without tgt_is_causal the forward looks at the mask's values, which cannot be traced.
        x, y = s.source(x), s.target(y)
        return s.head(s.both(x, y, tgt_mask=s.causal, tgt_is_causal=True))

    model = Graph(
        forward,
        source=nn.Embedding(7, 12),
        target=nn.Embedding(7, 12),
        both=nn.Transformer(12, 4, 1, 1, 10, batch_first=True),
        head=nn.Linear(12, 7),
    )
    model.register_buffer("causal", torch.ones(4, 4, dtype=torch.bool).triu(1), persistent=False)
    return randomised(model), (tokens(2, 5), tokens(2, 4))


class PackedBlock(nn.Module):
    """A transformer block with one projection to queries, keys and values, as in timm."""

    def __init__(self, width: int, heads: int, hidden: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def attention(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        depth = width // self.heads
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, depth).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * depth**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, count, width))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions and packed blocks."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.empty(1, 1, 12))
        self.positions = nn.Parameter(torch.empty(1, 5, 12))
        self.blocks = nn.Sequential(*(PackedBlock(12, 3, 10, fused) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def packed_vit(fused: bool) -> Example:
    return randomised(VisionTransformer(fused)), normal(2, 3, 8, 8)
