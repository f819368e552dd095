"""Known architectures: every symmetry that was derived by hand is found, and no wrong one."""

import functools
import math
from collections.abc import Callable
from functools import partial

import architectures as own
import hf_architectures as hf
import pytest
import sequence_architectures as sequence
import torch
from architectures import Example
from marks import slow
from oracles import assert_same_function
from torch import nn
from torch.overrides import TorchFunctionMode

from gpu_align import Permutation, PermutationSpec, discover

pytestmark = pytest.mark.filterwarnings(
    # torch.export of any nn.RNN, nn.GRU and nn.LSTM says so about their own private list.
    "ignore:The tensor attributes? .*_flat_weights.* assigned during export:UserWarning"
)


def orders(*sizes: int) -> float:
    """Return log10 of the number of ways to order groups of these sizes, each on its own."""
    return sum(math.lgamma(size + 1) for size in sizes) / math.log(10)


def attention(heads: int, depth: int) -> float:
    """Heads as a whole; inside each, what queries and keys share, and what values carry."""
    return orders(heads) + heads * (orders(depth) + orders(depth))


def transformer(width: int, layers: int, heads: int, hidden: int) -> float:
    """One residual stream through all layers; attention and a hidden layer in each."""
    return orders(width) + layers * (attention(heads, width // heads) + orders(hidden))


def grouped(groups: int, inside: int, outside: int) -> float:
    """Groups of a convolution as a whole; the channels that each reads and makes."""
    return orders(groups) + groups * (orders(inside) + orders(outside))


def bottlenecks(width: int, blocks: int) -> float:
    """A stage of ResNet50: two inner layers to a block, one stream of four times the width."""
    return blocks * orders(width, width) + orders(4 * width)


_MOBILENET_WIDTHS = [8, 8, 8, 16, 16, 16, 24, 24, 24, 24, 32, 32, 32, 56, 56, 56, 112]
"""Outputs of the 17 blocks: 16, 24, 32, 64, 96, 160, 320 times 0.35, in multiples of 8."""

SMALL: dict[str, tuple[Callable[[], Example], float]] = {
    # The stem, two layers of bottleneck and growth, the transition, three more layers. Batch norm
    # over all features moves with the parts.
    "dense_net": (own.dense_net, orders(4) + 2 * orders(5, 3) + orders(6) + 3 * orders(7, 2)),
    # Two layers down, down, at the bottom; an enlargement and two layers up, up. What is joined
    # keeps its own order on either side of the joint.
    "u_net": (own.u_net, orders(3, 4, 5, 6, 7, 8) + orders(6, 6, 5) + orders(4, 4, 3)),
    # The stem, then 1 x 1, 3 x 3 (reduced and not), 5 x 5 (the same) and pooling of either block.
    "inception": (own.inception, orders(4) + orders(3, 2, 5, 3, 4, 2) + orders(2, 4, 3, 2, 5, 6)),
    # Streams of 6 and 8; an inner and a squeezed layer in each of three blocks.
    "se_resnet": (own.se_resnet, orders(6, 8) + orders(5, 2) + orders(7, 3) + orders(4, 2)),
    # The stream of 8 has two norm groups of 4; the inner layers three of 3.
    "group_norm_resnet": (
        own.group_norm_resnet,
        (orders(2) + 2 * orders(4)) + 2 * (orders(3) + 3 * orders(3)),
    ),
    # 5 channels of 2 x 2 places are flattened and 6 are unflattened; the code is 3.
    "autoencoder": (own.autoencoder, orders(4, 5, 3, 6, 7)),
    # The depthwise layer of one output passes the 4 channels on; the other makes 2 of each of 6.
    "depthwise_separable": (own.depthwise_separable, orders(4, 6, 5) + 6 * orders(2)),
    # Streams of 5 and 7; 12 inner channels in 3 groups of 4, then in 4 groups of 3.
    "resnext": (own.resnext, orders(5, 7) + grouped(3, 4, 4) + grouped(4, 3, 3)),
    # 3 groups move as one through two layers, with 2, 4 and 3 channels in each.
    "grouped_chain": (own.grouped_chain, orders(3) + 3 * orders(2, 4, 3) + orders(5)),
    # The embedding and two layers.
    "lstm": (sequence.lstm, orders(5, 6, 6)),
    "gru": (sequence.gru, orders(6, 6)),
    # Both directions have their own units.
    "bidirectional_gru": (sequence.bidirectional_gru, orders(6, 6)),
    # Cells and projections in two layers of two directions.
    "projected_lstm": (sequence.projected_lstm, 2 * 2 * orders(6, 3)),
    "rnn": (sequence.rnn, orders(6)),
    # The code, the embedding, and the cells with the two layers that make their first state.
    "captioner": (sequence.captioner, orders(5, 3, 6)),
    "lstm_cell": (sequence.lstm_cell, orders(6)),
    # The stream and 3 heads of 4.
    "self_attention": (sequence.self_attention, orders(12) + attention(3, 4)),
    # The memory has an order of its own.
    "cross_attention": (partial(sequence.cross_attention, 6), orders(12, 6) + attention(3, 4)),
    # The packed weight reads the stream in its first rows and the memory in the others. A spec
    # has one order for all rows of a tensor, so the two orders become one: 12! is given away.
    "cross_attention_packed": (
        partial(sequence.cross_attention, 12),
        orders(12) + attention(3, 4),
    ),
    "transformer_encoder": (
        partial(sequence.transformer_encoder, False),
        transformer(12, 2, 3, 10),
    ),
    "transformer_encoder_pre": (
        partial(sequence.transformer_encoder, True),
        transformer(12, 2, 3, 10),
    ),
    # A stream on both sides, which packed cross attention ties (see above); attention to itself
    # and a hidden layer on both, attention from one side to the other.
    "encoder_decoder": (
        sequence.encoder_decoder,
        orders(12) + 3 * attention(4, 3) + orders(10, 10),
    ),
    "packed_vit": (partial(sequence.packed_vit, False), transformer(12, 2, 3, 10)),
    "packed_vit_fused": (partial(sequence.packed_vit, True), transformer(12, 2, 3, 10)),
    # The stream of 8 channels; 5 hidden units over the tokens and 7 over the channels in each
    # block. The tokens are places of the image, so they stay.
    "mlp_mixer": (own.mlp_mixer, orders(8) + 2 * orders(5, 7)),
    "siren": (own.siren, orders(8, 9, 7)),
    # The output embedding is the input embedding: the same stream.
    "gpt2": (partial(hf.gpt2, "sdpa"), transformer(12, 2, 3, 10)),
    "gpt2_eager": (partial(hf.gpt2, "eager"), transformer(12, 2, 3, 10)),
    # The pooler is one layer more.
    "bert": (partial(hf.bert, "sdpa"), transformer(12, 2, 3, 10) + orders(12)),
    "bert_eager": (partial(hf.bert, "eager"), transformer(12, 2, 3, 10) + orders(12)),
    "vit": (partial(hf.vit, "sdpa"), transformer(12, 2, 3, 10)),
    "vit_eager": (partial(hf.vit, "eager"), transformer(12, 2, 3, 10)),
    # In each layer 2 key heads, 2 query heads inside each, 4 values inside each and 10 gated units.
    # Rotary positions tell queries and keys apart, so these keep their order.
    "llama": (
        partial(hf.llama, "sdpa"),
        orders(16) + 2 * (orders(2) + 2 * orders(2, 4) + orders(10)),
    ),
    "llama_eager": (
        partial(hf.llama, "eager"),
        orders(16) + 2 * (orders(2) + 2 * orders(2, 4) + orders(10)),
    ),
    # The stem, two streams; one inner layer to each of 2 + 2 blocks, or two of a quarter's width.
    "resnet_basic": (
        partial(hf.resnet, "basic"),
        orders(5, 8, 12) + 2 * orders(8) + 2 * orders(12),
    ),
    "resnet_bottleneck": (
        partial(hf.resnet, "bottleneck"),
        orders(5, 8, 12) + 2 * orders(2, 2) + 2 * orders(3, 3),
    ),
    # 16 channels of the stem, through a depthwise layer into 8; 16 blocks that widen theirs six
    # times; a stream wherever the width changes (and at the first block, which halves the map),
    # and the last layer.
    "mobilenet_v2": (
        hf.mobilenet_v2,
        orders(16, 8)
        + sum(orders(6 * width) for width in _MOBILENET_WIDTHS[:-1])
        + orders(8, 16, 24, 32, 56, 112)
        + orders(1280),
    ),
    # The stem, two streams; groups of 4 channels: 2 to a layer in the first stage, 3 in the second.
    "regnet_x": (
        partial(hf.regnet, "x"),
        orders(5, 8, 12) + 2 * grouped(2, 4, 4) + 2 * grouped(3, 4, 4),
    ),
    # Squeezed to a quarter of each block's inputs, 5, 8, 8 and 12, rounded.
    "regnet_y": (
        partial(hf.regnet, "y"),
        orders(5, 8, 12) + 2 * grouped(2, 4, 4) + 2 * grouped(3, 4, 4) + orders(1, 2, 2, 3),
    ),
    # Two streams; two layers of four times the width on each. Depthwise layers pass them on.
    "convnext": (hf.convnext, orders(4, 6) + 2 * orders(16) + 2 * orders(24)),
}
REPEATED = (
    *("gpt2_eager", "bert_eager", "vit", "llama_eager", "transformer_encoder_pre"),
    *("encoder_decoder", "packed_vit_fused", "inception", "mobilenet_v2", "regnet_x", "regnet_y"),
    *("resnet_basic", "resnet_bottleneck", "resnext", "gru", "bidirectional_gru", "lstm_cell"),
    *("self_attention", "cross_attention", "vit_eager"),
)
"""Those whose kinds of layers the others have too."""
each_small = pytest.mark.parametrize(
    "name", slow(SMALL, but=[name for name in SMALL if name not in REPEATED])
)

FULL: dict[str, tuple[Callable[[], Example], float]] = {
    "wide_mlp": (own.wide_mlp, 3 * orders(512)),
    # 13 convolutions and 2 hidden linear layers.
    "vgg16": (
        own.vgg16,
        2 * orders(64, 128) + 3 * orders(256) + 6 * orders(512) + 2 * orders(4096),
    ),
    "resnet50": (
        own.resnet50,
        orders(64)
        + bottlenecks(64, 3)
        + bottlenecks(128, 4)
        + bottlenecks(256, 6)
        + bottlenecks(512, 3),
    ),
    "gpt2_small": (hf.gpt2_small, transformer(768, 12, 12, 3072)),
}


@functools.cache
def discovered(name: str) -> tuple[nn.Module, object, PermutationSpec]:
    """Return a small architecture, its inputs and what is found, once for both tests."""
    model, inputs = SMALL[name][0]()
    return model, inputs, discover(model, inputs, verify=False)


@each_small
def test_the_symmetries_are_those_derived_by_hand(name: str) -> None:
    _, expected = SMALL[name]
    _, _, spec = discovered(name)
    assert spec.log10_symmetries == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", slow(FULL, but=("wide_mlp", "vgg16")))
def test_full_sizes(name: str) -> None:
    build, expected = FULL[name]
    spec = discover(*build(), verify=False)
    assert spec.log10_symmetries == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "known"), [("wide_mlp", 3499.6), ("vgg16", 35168.5), ("resnet50", 25638.3)]
)
def test_derivations_agree_with_known_figures(name: str, known: float) -> None:
    assert FULL[name][1] == pytest.approx(known, abs=0.05)


class InDouble(TorchFunctionMode):
    """Leave float64 as it is where a model asks for float32, as transformers does in its norms."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        # Not tree_map: deepcopy passes its whole memory as an argument.
        named = {name: _long(value) for name, value in (kwargs or {}).items()}
        return func(*map(_long, args), **named)


def _long(value: object) -> object:
    return torch.float64 if value is torch.float32 else value


@each_small
def test_random_permutations_leave_the_function_unchanged(name: str) -> None:
    model, inputs, spec = discovered(name)
    state = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        moved = Permutation.random(spec, generator=generator).apply(state)
        with InDouble():
            assert_same_function(model, inputs, state, moved)
