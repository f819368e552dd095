"""Attention: heads, the dimensions inside each, and the ways in which models write it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from marks import every
from networks import Graph, randomised
from symmetry_cases import (
    Case,
    Fixed,
    Sizes,
    assert_groups,
    assert_random_permutations_preserve,
    parameter,
)
from torch import Tensor, nn

from gpu_align import discover

BOTH: Sizes = [6, 2, (3, 1), (3, 1)]
"""The stream, 2 heads, and inside each 3 dimensions of queries and keys, and 3 of values."""
SHARED: Sizes = [6, 2, (3, 1)]
"""The same where queries, keys and values have one order."""
Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]
Parts = Callable[[nn.Module, Tensor], tuple[Tensor, ...]]


def heads_of(x: Tensor, heads: int = 2) -> Tensor:
    """Bring [batch, tokens, heads x depth] to [batch, heads, tokens, depth]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def three_layers(s: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return heads_of(s.q(x)), heads_of(s.k(x)), heads_of(s.v(x))


def weighed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1) @ v


def case(
    weigh: Weigh | Callable[..., Tensor],
    sizes: Sizes,
    *,
    parts: Parts = three_layers,
    width: int = 6,
    outputs: int = 6,
    with_module: bool = False,
    **layers: nn.Module | nn.Parameter,
) -> Case:
    """A residual stream, attention written by `weigh`, and a linear head on every token."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = s.embed(x)
        q, k, v = parts(s, x)
        y = weigh(s, q, k, v) if with_module else weigh(q, k, v)
        return s.head(x + s.proj(y.transpose(1, 2).flatten(2)))

    return Case(
        lambda: Graph(
            forward,
            embed=nn.Linear(5, width),
            **{name: nn.Linear(width, width) for name in ("q", "k", "v") if parts is three_layers},
            **layers,
            proj=nn.Linear(outputs, width),
            head=nn.Linear(width, 2),
        ),
        (2, 4, 5),
        sizes,
    )


def packed(parts: Callable[[Tensor], tuple[Tensor, ...]], sizes: Sizes) -> Case:
    """Attention whose queries, keys and values come from one layer and are taken apart."""
    qkv = nn.Linear(6, 18)
    return case(weighed, sizes, parts=lambda s, x: parts(s.qkv(x)), qkv=qkv)


def packed_keys(s: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    k, v = s.kv(x).reshape(2, 4, 2, 2, 3).permute(2, 0, 3, 1, 4)
    return heads_of(s.q(x)), k, v


def slices(x: Tensor) -> tuple[Tensor, ...]:
    """As in timm."""
    return x.reshape(2, 4, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)


def merged_slices(x: Tensor) -> tuple[Tensor, ...]:
    """As in Segment Anything: batch and heads on one axis before slices are taken apart."""
    parts = x.reshape(2, 4, 3, 2, 3).permute(2, 0, 3, 1, 4).reshape(3, 4, 4, 3).unbind(0)
    return tuple(part.unflatten(0, (2, 2)) for part in parts)


# Ways to weigh values.


def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As nn.MultiheadAttention does: batch and heads on one axis."""
    q, k, v = (part.reshape(-1, *part.shape[2:]) for part in (q, k, v))
    scores = torch.baddbmm(torch.zeros(4, 4, dtype=q.dtype), q, k.mT)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (2, 2))


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
    return torch.einsum("...ij, ...jd -> ...id", weights, v)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
    return (q @ k.mT).masked_fill(hidden, -1e9).softmax(-1) @ v


def mask_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(4)
    mask = torch.where(places[:, None] >= places, 0.0, -1e9)[None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q).expand(2, 1, 4, 4))


def linear_biases(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ALiBi: each head has a slope of its own that is no parameter."""
    places = torch.arange(4.0)
    slopes = torch.tensor([0.5, 0.25])[:, None, None]
    return (q @ k.mT - slopes * (places[:, None] - places).abs()).softmax(-1) @ v


def cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighed(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions: dimension i and i + depth / 2 turn by an angle that depends on both."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(4.0), 10.0 ** -torch.arange(half)).repeat(1, 2).to(x)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos() + turned * angles.sin()


def rotary(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighed(rotated(q), rotated(k), v)


def talking(s: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Talking heads: the scores of all heads are mixed before the softmax."""
    scores = s.mix((q @ k.mT).movedim(1, -1)).movedim(-1, 1)
    return scores.softmax(-1) @ v


def learned_bias(s: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Relative positions as in Swin: a table with a column for each head."""
    places = torch.arange(4)
    bias = s.table[(places[:, None] - places + 3).view(-1)].view(4, 4, -1).permute(2, 0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def repeated(way: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Four query heads, two to each key head, with keys repeated in one of several ways."""

    def weigh(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if way == "flag":
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        if way == "interleave":
            return weighed(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        if way == "expand":
            k, v = (x[:, :, None].expand(2, 2, 2, 4, 3).reshape(2, 4, 4, 3) for x in (k, v))
            return weighed(q, k, v)
        return weighed(q.unflatten(1, (2, 2)), k[:, :, None], v[:, :, None]).flatten(1, 2)

    return weigh


def grouped_queries(s: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return heads_of(s.queries(x), 4), heads_of(s.keys(x)), heads_of(s.values(x))


def grouped(way: str) -> Case:
    return case(
        repeated(way),
        # Key heads; in each two query heads and the dimensions.
        [6, 2, (2, 1), (3, 1), (3, 1)],
        parts=grouped_queries,
        outputs=12,
        queries=nn.Linear(6, 12),
        keys=nn.Linear(6, 6),
        values=nn.Linear(6, 6),
    )


def all_packed_grouped(s: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """One layer makes four query heads, two key heads and two value heads."""
    return s.qkv(x).view(2, 4, 8, 3).transpose(1, 2).split([4, 2, 2], 1)


# Layers of PyTorch.


def attend(need_weights: bool = True, **options: bool) -> nn.Module:
    layer = nn.MultiheadAttention(6, 2, batch_first=True, **options)
    return Graph(lambda s, x: s.layer(x, x, x, need_weights=need_weights)[0], layer=layer)


def encoder(**options: object) -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 7, batch_first=True, **options)


def with_masks(layer: nn.Module) -> nn.Module:
    """Tokens look back only, and not at the last one of the second sequence."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
        padding = torch.tensor([[False] * 4, [False] * 3 + [True]])
        return s.layer(x, src_mask=hidden, src_key_padding_mask=padding)

    return Graph(forward, layer=layer)


def decoder() -> nn.Module:
    """Its rows for queries and for keys have one axis of inputs, so both have one order."""
    layer = nn.TransformerDecoderLayer(6, 2, 7, batch_first=True)
    return Graph(lambda s, x: s.layer(x, x), layer=layer)


CASES = {
    "fused": case(F.scaled_dot_product_attention, BOTH),
    "causal": case(lambda *p: F.scaled_dot_product_attention(*p, is_causal=True), BOTH),
    "written_out": case(weighed, BOTH),
    "merged_with_batch": case(merged, BOTH),
    "einsum": case(by_einsum, BOTH),
    "masked": case(masked, BOTH),
    "mask_added": case(mask_added, BOTH),
    "cosine": case(cosine, BOTH),
    "linear": case(lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v), BOTH),
    "softmax_over_heads": case(lambda q, k, v: (q @ k.mT).softmax(1) @ v, BOTH),
    # Heads are told apart, so they stay; what is inside has an order of its own in each.
    "heads_pinned": case(linear_biases, [6, Fixed(2), (3, 1), (3, 1)]),
    "learned_bias": case(learned_bias, BOTH, with_module=True, table=parameter(7, 2)),
    # Scores have other heads than what made them.
    "talking_heads": case(
        talking, [6, 2, (3, 1), 2, (3, 3)], with_module=True, mix=nn.Linear(2, 2)
    ),
    # One weight for a dimension of all heads.
    "norm_shared_by_heads": case(
        lambda s, q, k, v: weighed(s.norm(q), s.norm(k), v),
        [6, 2, 3, (3, 1)],
        with_module=True,
        norm=nn.RMSNorm(3),
    ),
    "norm_of_each_head": case(
        lambda s, q, k, v: weighed(s.scale * q / (1 + q.square().mean(-1, True)), k, v),
        BOTH,
        with_module=True,
        scale=parameter(2, 1, 3),
    ),
    # Values of all heads are compared, dimension by dimension.
    "values_meet": case(lambda q, k, v: weighed(q, k, v.softmax(1)), [6, 2, (3, 1), 3]),
    "rotary": case(rotary, [8, 2, (4, 1)], width=8, outputs=8),
    "shared_keys": case(
        lambda q, k, v: weighed(q, k, v),
        [6, 2, 3, 3],
        parts=lambda s, x: (heads_of(s.a(x)), heads_of(s.b(x), 1), heads_of(s.c(x), 1)),
        a=nn.Linear(6, 6),
        b=nn.Linear(6, 3),
        c=nn.Linear(6, 3),
    ),
    "grouped_flag": grouped("flag"),
    "grouped_interleave": grouped("interleave"),
    "grouped_expand": grouped("expand"),
    "grouped_broadcast": grouped("broadcast"),
    "grouped_packed": case(
        repeated("flag"),
        [6, 2, (2, 1), (3, 1), (3, 1)],
        parts=all_packed_grouped,
        outputs=12,
        qkv=nn.Linear(6, 24),
    ),
    "packed_unbind": packed(slices, BOTH),
    "packed_index": packed(
        lambda x: tuple(heads_of(x.view(2, 4, 3, 6)[:, :, n]) for n in range(3)), BOTH
    ),
    "packed_twice_split": packed(
        lambda x: x.view(2, 4, 3, 6).view(2, 4, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0), BOTH
    ),
    "packed_merged": packed(merged_slices, BOTH),
    "packed_chunk": packed(lambda x: tuple(map(heads_of, x.chunk(3, -1))), BOTH),
    "packed_chunk_of_slices": packed(
        lambda x: tuple(
            part.squeeze(2).transpose(1, 2) for part in x.view(2, 4, 3, 2, 3).chunk(3, 2)
        ),
        BOTH,
    ),
    "packed_scaled": packed(
        lambda x: (0.5 * x).view(2, 4, 3, 2, 3).mul(2.0).permute(2, 0, 3, 1, 4).unbind(0), BOTH
    ),
    "packed_keys": case(weighed, BOTH, parts=packed_keys, q=nn.Linear(6, 6), kv=nn.Linear(6, 12)),
    # Queries, keys and values of each head side by side.
    "packed_in_heads": packed(lambda x: x.view(2, 4, 2, 9).transpose(1, 2).chunk(3, -1), BOTH),
    "packed_last": packed(
        lambda x: tuple(x.view(2, 4, 2, 3, 3).transpose(1, 2)[..., n, :] for n in range(3)), BOTH
    ),
    "packed_unbound": packed(lambda x: x.view(2, 4, 2, 3, 3).transpose(1, 2).unbind(3), BOTH),
    # Another use of all slices at once ties them.
    "packed_and_added": packed(
        lambda x: (*slices(x)[:2], x.view(2, 4, 3, 2, 3).sum(2).transpose(1, 2)), SHARED
    ),
}
CASES |= {
    name: Case(
        lambda layer=layer: Graph(
            lambda s, x: s.head(s.layer(s.embed(x))),
            embed=nn.Linear(5, 6),
            layer=layer(),
            head=nn.Linear(6, 2),
        ),
        (2, 4, 5),
        sizes,
    )
    for name, layer, sizes in [
        ("encoder", lambda: encoder(), [*BOTH, 7]),
        ("encoder_norm_first", lambda: encoder(norm_first=True, activation="gelu"), [*BOTH, 7]),
        ("encoder_masked", lambda: with_masks(encoder()), [*BOTH, 7]),
        (
            "encoder_stack",
            lambda: nn.TransformerEncoder(encoder(), 2),
            [*BOTH, 7, 2, (3, 5), (3, 5), 7],
        ),
        ("decoder", lambda: decoder(), [*BOTH, 2, (3, 4), (3, 4), 7]),
        ("attention_only", lambda: attend(), [6, 2, (3, 1), (3, 1), 6]),
        ("attention_no_weights", lambda: attend(need_weights=False), [6, 2, (3, 1), (3, 1), 6]),
        ("attention_biases", lambda: attend(add_bias_kv=True), [6, 2, (3, 1), (3, 1), 6]),
        ("attention_zeros", lambda: attend(add_zero_attn=True), [6, 2, (3, 1), (3, 1), 6]),
    ]
}


@pytest.mark.parametrize("case", every(2, CASES))
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    spec = discover(model, inputs, verify=False)
    assert_groups(spec, case.sizes)
    assert_random_permutations_preserve(spec, model, inputs)


@pytest.mark.parametrize(
    ("average", "sizes"), [(True, BOTH), (False, [6, Fixed(2), (3, 1), (3, 1)])]
)
def test_weights_in_the_output_pin_heads_unless_averaged(average: bool, sizes: Sizes) -> None:
    def forward(s: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = s.embed(x)
        y, weights = s.attention(x, x, x, average_attn_weights=average)
        return s.head(x + y), weights

    model = randomised(
        Graph(
            forward,
            embed=nn.Linear(5, 6),
            attention=nn.MultiheadAttention(6, 2, batch_first=True),
            head=nn.Linear(6, 2),
        )
    )
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    spec = discover(model, inputs)
    assert_groups(spec, sizes)
    assert_random_permutations_preserve(spec, model, inputs)


def test_heads_are_named_after_what_their_layers_have_in_common() -> None:
    block = Graph(
        lambda s, x: s.proj(weighed(*three_layers(s, x)).transpose(1, 2).flatten(2)),
        **{name: nn.Linear(6, 6) for name in ("q", "k", "v", "proj")},
    )
    model = Graph(
        lambda s, x: s.head((y := s.block(s.embed(x))) + s.packed(y)),
        embed=nn.Linear(5, 6),
        block=block,
        packed=attend(),
        head=nn.Linear(6, 2),
    )
    spec = discover(model.double(), torch.randn(2, 4, 5, dtype=torch.float64))
    parents = {name: group.parent for name, group in spec.groups.items()}
    assert parents == {
        "embed": None,
        "block": None,
        "block.q": "block",
        "block.v": "block",
        "block.proj": None,
        "packed.layer": None,
        "packed.layer[1]": "packed.layer",
        "packed.layer[2]": "packed.layer",
    }


def test_axes_of_packed_heads() -> None:
    spec = discover(attend().double(), torch.randn(2, 4, 6, dtype=torch.float64))
    heads, depth, values = spec.groups
    weights = [spec.tensors[f"layer.{name}"] for name in ("in_proj_weight", "out_proj.weight")]
    found = [
        [tuple(factor.group for factor in segment) for segment in axis.segments]
        for axis in (weights[0].axes[0], weights[1].axes[1])
    ]
    assert found == [[(heads, depth), (heads, depth), (heads, values)], [(heads, values)]]
