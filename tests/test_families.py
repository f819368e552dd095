"""Families: units inside each unit of another group, and ops that mix what must be told apart."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Graph
from symmetry_cases import (
    Case,
    Sizes,
    assert_groups,
    assert_random_permutations_preserve,
    conv_between,
    parameter,
)
from torch import Tensor, nn

from gpu_align import discover

ROOTS: Sizes = [2, 3]
"""2 heads and 3 dimensions that have one order in all heads."""
INSIDE: Sizes = [2, (3, 0)]
"""3 dimensions inside each of 2 heads."""
TURNED: Sizes = [3, (2, 0)]
"""The heads have an order for each dimension."""


def heads(
    run: Callable[..., Tensor], sizes: Sizes, *, out: int = 6, **layers: nn.Module | nn.Parameter
) -> Case:
    """Linear(3, 6) as [batch, 2 heads, 3 dimensions], some ops, and Linear from `out` units."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = s.first(x).unflatten(1, (2, 3))
        return s.head((run(s, h) if layers else run(h)).flatten(1))

    return Case(
        lambda: Graph(forward, first=nn.Linear(3, 6), **layers, head=nn.Linear(out, 2)),
        (2, 3),
        sizes,
    )


def joined(first: int, second: int, layer: nn.Module, sizes: Sizes, out: int) -> Case:
    """Two convolutions side by side, a layer on both, and the mean over all places."""
    return Case(
        lambda: Graph(
            lambda s, x: s.head(s.layer(torch.cat([s.a(x), s.b(x)], 1)).mean(2)),
            a=nn.Conv1d(2, first, 1),
            b=nn.Conv1d(2, second, 1),
            layer=layer,
            head=nn.Linear(out, 2),
        ),
        (2, 2, 3),
        sizes,
    )


CASES = {
    # Nothing tells heads apart.
    "relu": heads(torch.relu, [6]),
    "sum_of_all": heads(lambda h: h.sum((1, 2))[:, None], [6], out=1),
    "layer_norm_of_all": heads(lambda h: F.layer_norm(h, (2, 3)), [6]),
    "softmax_of_all": heads(lambda h: h.flatten(1).softmax(1), [6]),
    # One of the axes is reduced, or normalised, for each unit of the other.
    "sum_of_dimensions": heads(lambda h: h.sum(2), INSIDE, out=2),
    "sum_of_heads": heads(lambda h: h.sum(1), TURNED, out=3),
    "sum_that_is_reduced": heads(lambda h: h.sum(1).relu().sum(1)[:, None], TURNED, out=1),
    "largest_head": heads(lambda h: h.amax(1, keepdim=True) * h, TURNED),
    "softmax_of_dimensions": heads(lambda h: h.softmax(2), INSIDE),
    "softmax_of_heads": heads(lambda h: h.softmax(1), TURNED),
    "centred_heads": heads(lambda h: h - h.mean(1, keepdim=True), TURNED),
    "norm_of_each_head": heads(lambda h: F.layer_norm(h, (3,)), INSIDE),
    "unit_heads": heads(lambda h: F.normalize(h, dim=-1), INSIDE),
    "group_norm": heads(lambda h: F.group_norm(h, 2), INSIDE),
    "batch_norm": heads(lambda h: F.batch_norm(h, None, None, training=True), INSIDE),
    # Both.
    "softmax_and_sum": heads(lambda h: h.softmax(1).sum(2), ROOTS, out=2),
    "softmax_of_either": heads(lambda h: h.softmax(1) + h.softmax(2), ROOTS),
    # Two heads meet.
    "gram_of_heads": heads(lambda h: h @ h.mT, ROOTS, out=4),
    "gram_of_dimensions": heads(lambda h: h.mT @ h, ROOTS, out=9),
    "outer_difference": heads(lambda h: (h[:, None] - h[:, :, None]).relu(), TURNED, out=12),
    "attention_among_heads": heads(lambda h: F.scaled_dot_product_attention(h, h, h), ROOTS),
    "mixed_heads": heads(
        lambda s, h: torch.einsum("gh,bhd->bgd", s.mix, h), [2, 3, 2], mix=parameter(2, 2)
    ),
    "mixed_and_added": heads(
        lambda s, h: h + torch.einsum("gh,bhd->bgd", s.mix, h), ROOTS, mix=parameter(2, 2)
    ),
    # A parameter knows some axes only.
    "scale_of_heads": heads(lambda s, h: h * s.scale, INSIDE, scale=parameter(2, 1)),
    "scale_of_dimensions": heads(lambda s, h: h * s.scale, TURNED, scale=parameter(3)),
    "scale_of_both": heads(lambda s, h: h * s.scale, INSIDE, scale=parameter(2, 3)),
    "scales_of_either": heads(lambda s, h: h * s.a * s.b, ROOTS, a=parameter(2, 1), b=parameter(3)),
    # One head is taken out.
    "first_head": heads(lambda h: h[:, 0] * h[:, 1].tanh(), [3], out=3),
    "heads_apart": heads(lambda h: torch.cat([h[:, 0], h[:, 1].tanh()], 1), [3, 3]),
    "heads_apart_and_summed": heads(
        lambda h: torch.cat([h[:, 0], h[:, 1].tanh(), h.sum(1)], 1), [3], out=9
    ),
    "shuffled": heads(lambda h: h.mT, INSIDE),
    # Three levels: two are inside the slowest.
    "three_levels": heads(
        lambda s, h: s.wide(h.flatten(1)).view(2, 2, 2, 3).sum(3).relu().sum(2),
        [6, 2, (2, 1), (3, 1)],
        out=2,
        wide=nn.Linear(6, 12),
    ),
    # Norm groups of 4 channels, then of 2: these are inside the first.
    "group_norms": conv_between(
        lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.GroupNorm(4, 8)), [2, (2, 0), (2, 0)], width=8
    ),
    # Groups that do not divide each other.
    "group_norms_across": conv_between(
        lambda: nn.Sequential(nn.GroupNorm(2, 6), nn.GroupNorm(3, 6)), [], width=6
    ),
    "group_norm_and_convolution": conv_between(
        lambda: nn.Sequential(nn.GroupNorm(3, 6), nn.Conv2d(6, 6, 1, groups=3)),
        [3, (2, 0), (2, 0)],
        width=6,
    ),
    # Each part of a concatenation has its own groups; a group across the joint is cut in two.
    "group_norm_of_parts": joined(4, 6, nn.GroupNorm(5, 10), [2, (2, 0), 3, (2, 2)], 10),
    "group_norm_across_parts": joined(2, 4, nn.GroupNorm(2, 6), [2, 3], 6),
    "group_norm_of_part": joined(3, 6, nn.GroupNorm(3, 9), [3, 2, (3, 1)], 9),
    # One axis of weights for the channels of either part.
    "grouped_convolution_of_parts": joined(4, 4, nn.Conv1d(8, 8, 1, groups=4), [2, 2, 2, 2], 8),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    spec = discover(model, inputs, verify=False)
    assert_groups(spec, case.sizes)
    assert_random_permutations_preserve(spec, model, inputs)
