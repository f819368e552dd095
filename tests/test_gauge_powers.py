"""Where signs and scales are seen, and rows whose scale a batch norm frees."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Graph, mlp, randomised
from test_gauge import CASES, Case, assert_random_gauges_preserve, found_gauges
from torch import Tensor, nn

from gpu_align import PermutationSpec, discover
from gpu_align._symmetry._axis import Units


def powers(spec: PermutationSpec, group: str) -> dict[str, list[int]]:
    """Return the powers of a group along each tensor on which it lies, in order."""
    return {
        name: [
            f.power
            for axis in tensor.axes
            for f in axis.factors()
            if isinstance(f, Units) and f.group == group
        ]
        for name, tensor in spec.tensors.items()
        if group in tensor.groups
    }


def traced(build: Case) -> PermutationSpec:
    return discover(randomised(build.build()), build.inputs())


def test_powers_of_a_chain() -> None:
    spec = discover(randomised(mlp([3, 4, 5, 2])), torch.randn(2, 3, dtype=torch.float64))
    assert powers(spec, "0") == {"0.weight": [1], "0.bias": [1], "2.weight": [-1]}
    assert powers(spec, "2") == {"2.weight": [1], "2.bias": [1], "4.weight": [-1]}


def test_powers_of_a_gated_layer() -> None:
    spec = traced(CASES["swiglu"])
    assert powers(spec, "gate") == {
        "gate.weight": [0],
        "gate.bias": [0],
        "up.weight": [1],
        "up.bias": [1],
        "down.weight": [-1],
    }
    halves = traced(CASES["glu"])
    assert powers(halves, "up")["up.weight"] == [1, 0]


def test_powers_of_a_norm() -> None:
    conv = powers(traced(CASES["batch_norm_relu"]), "conv")
    assert conv == {
        "conv.weight": [0],
        "conv.bias": [0],
        "head.weight": [-1],
        "n.weight": [1],
        "n.bias": [1],
        "n.running_mean": [0],
        "n.running_var": [0],
    }


def test_powers_of_a_recurrent_layer() -> None:
    [name] = (spec := traced(CASES["rnn_tanh"])).groups
    assert powers(spec, name) == {
        "rnn.weight_ih_l0": [1],
        "rnn.weight_hh_l0": [1, -1],
        "rnn.bias_ih_l0": [1],
        "rnn.bias_hh_l0": [1],
        "head.weight": [-1],
    }


def test_powers_of_a_tied_embedding() -> None:
    """Made and read by one tensor: a sign is its own inverse, a scale is not."""
    model = Graph(lambda s, x: F.linear(s.embed(x), s.embed.weight), embed=nn.Embedding(7, 4))
    tokens = torch.randint(7, (2, 5))
    spec = discover(randomised(model), tokens)
    assert found_gauges(spec) == ("s",)
    assert spec.tensors["embed.weight"].axes[1].segments == ((Units(4, "embed", 1),),)


# Attention


class Attention(nn.Module):
    """Self-attention with queries, keys and values packed in one of three ways."""

    def __init__(self, packing: str, fused: bool) -> None:
        super().__init__()
        self.packing, self.fused = packing, fused
        self.qkv, self.proj = nn.Linear(6, 36), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x)
        if self.packing == "chunks":
            q, k, v = (part.unflatten(-1, (3, 4)) for part in packed.chunk(3, -1))
        elif self.packing == "first":
            q, k, v = packed.unflatten(-1, (3, 3, 4)).unbind(2)
        else:
            q, k, v = packed.unflatten(-1, (3, 12)).split(4, -1)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.mT / 2).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [False, True], ids=["by_hand", "fused"])
@pytest.mark.parametrize("packing", ["chunks", "first"])
def test_attention_has_signs_and_scales_inside_each_head(packing: str, fused: bool) -> None:
    model = randomised(Attention(packing, fused))
    inputs = torch.randn(2, 5, 6, dtype=torch.float64)
    spec = discover(model, inputs)
    assert_random_gauges_preserve(spec, model, inputs)
    heads = next(name for name, group in spec.groups.items() if group.parent is None)
    # Whole heads could only do what the values inside them can do.
    assert (spec.groups[heads].signed, spec.groups[heads].scaled) == (False, False)
    inside = [name for name, group in spec.groups.items() if group.parent == heads]
    queries, values = inside
    assert all(spec.groups[name].signed and spec.groups[name].scaled for name in inside)
    assert powers(spec, queries) == {"qkv.weight": [1, -1], "qkv.bias": [1, -1]}
    assert powers(spec, values) == {"qkv.weight": [1], "qkv.bias": [1], "proj.weight": [-1]}


def test_attention_packed_inside_each_head_keeps_its_function() -> None:
    model = randomised(Attention("inside", fused=False))
    inputs = torch.randn(2, 5, 6, dtype=torch.float64)
    spec = discover(model, inputs)
    assert_random_gauges_preserve(spec, model, inputs)


# Rows in front of a batch norm


def norm_scales(model: nn.Module, *shape: int) -> list[str]:
    model, inputs = randomised(model), torch.randn(shape, dtype=torch.float64)
    spec = discover(model, inputs)
    assert spec.verify(model, inputs) <= 1e-9
    return [scale.weight for scale in spec.norm_scales]


@pytest.mark.parametrize("bias", [False, True])
def test_rows_in_front_of_a_batch_norm_have_scales(bias: bool) -> None:
    chain = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 1, groups=2, bias=bias), nn.BatchNorm2d(6, affine=False)),
        *(nn.Flatten(), nn.Linear(54, 5, bias=bias), nn.BatchNorm1d(5)),
    )
    assert norm_scales(chain, 2, 2, 5, 5) == ["0.weight", "3.weight", "6.weight"]


NO_NORM_SCALES = {
    "read_twice": (
        lambda s, x: (h := s.conv(x)).sum((2, 3)) + s.norm(h).mean((2, 3)),
        {"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4)},
    ),
    "called_twice": (
        lambda s, x: s.norm(s.conv(x)) + s.other(s.conv(x)),
        {"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4), "other": nn.BatchNorm2d(4)},
    ),
    "norm_called_twice": (
        lambda s, x: s.norm(s.conv(x)) + s.norm(x.repeat(1, 2, 1, 1)).mean((2, 3), keepdim=True),
        {"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4)},
    ),
    "rows_are_not_channels": (
        lambda s, x: s.norm(s.linear(x.flatten(2))),
        {"linear": nn.Linear(25, 3), "norm": nn.BatchNorm1d(2)},
    ),
    "something_between": (
        lambda s, x: s.norm(s.conv(x).sin()),
        {"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4)},
    ),
    "statistics_of_the_batch": (
        lambda s, x: s.norm(s.conv(x)),
        {"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4, track_running_stats=False)},
    ),
    "other_norms": (
        lambda s, x: s.norm(s.conv(x)),
        {"conv": nn.Conv2d(2, 4, 3), "norm": nn.GroupNorm(4, 4)},
    ),
}


@pytest.mark.parametrize("case", NO_NORM_SCALES.values(), ids=NO_NORM_SCALES)
def test_other_rows_have_no_scales(case: tuple[Callable, dict[str, nn.Module]]) -> None:
    run, layers = case
    assert norm_scales(Graph(run, **layers), 2, 2, 5, 5) == []


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_decomposed_programs_have_the_same_gauges() -> None:
    model = randomised(
        nn.Sequential(
            *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Tanh()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6), nn.LeakyReLU()),
            nn.Linear(6, 2),
        )
    )
    inputs = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    expected = discover(model, inputs)
    assert found_gauges(expected) == ("c", "s", "c")
    program = torch.export.export(model, (inputs,)).run_decompositions()
    decomposed = discover(program, None)
    assert found_gauges(decomposed) == found_gauges(expected)
    assert decomposed.norm_scales == expected.norm_scales
    assert decomposed.tensors == expected.tensors
