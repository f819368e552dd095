"""Discovery: groups worked out by hand for every family of ops, and functions preserved."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from networks import CNN, Graph, ResNet, mlp, randomised
from oracles import assert_same_function
from torch import Tensor, nn

from gpu_align import Permutation, PermutationSpec, discover


@dataclass(frozen=True)
class Case:
    """A model, the shape of its inputs, and the sizes of its groups in topological order."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sizes: list[int]

    def model(self) -> nn.Module:
        return randomised(self.build())

    def inputs(self) -> Tensor:
        return torch.randn(self.shape, dtype=torch.float64)


def linear_between(run: Callable[[Tensor], Tensor], sizes: list[int], out: int = 4) -> Case:
    """Linear(3, 4), an op, and Linear from `out` units to the outputs."""
    return Case(
        lambda: Graph(
            lambda s, x: s.head(run(s.first(x))), first=nn.Linear(3, 4), head=nn.Linear(out, 2)
        ),
        (2, 3),
        sizes,
    )


def conv_between(
    layer: Callable[[], nn.Module], sizes: list[int], *, width: int = 4, dims: int = 2
) -> Case:
    """A convolution to `width` channels, a layer, and the mean over all places into a Linear."""
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    places = tuple(range(2, 2 + dims))
    return Case(
        lambda: Graph(
            lambda s, x: s.head(s.layer(s.conv(x)).mean(places)),
            conv=convolution(2, width, 3, padding=1),
            layer=layer(),
            head=nn.Linear(width, 2),
        ),
        (2, 2, *[4] * dims),
        sizes,
    )


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


def flattened(run: Callable[[Tensor], Tensor]) -> Case:
    """Three channels of 2 x 2 places, brought into one axis of 12 by `run`."""
    return Case(
        lambda: Graph(
            lambda s, x: s.head(run(s.conv(x))), conv=nn.Conv2d(1, 3, 2), head=nn.Linear(12, 2)
        ),
        (2, 1, 3, 3),
        [3],
    )


def residual(projection: bool, width: int = 4) -> Case:
    out = 6 if projection else width
    return Case(
        lambda: Graph(
            lambda s, x: s.head(s.down(F.relu(s.up(h := s.stem(x)))) + s.short(h)),
            stem=nn.Linear(3, width),
            up=nn.Linear(width, 5),
            down=nn.Linear(5, out),
            short=nn.Linear(width, out) if projection else nn.Identity(),
            head=nn.Linear(out, 2),
        ),
        (2, 3),
        [width, 5, 6] if projection else [width, 5],
    )


def reused_module() -> nn.Module:
    return Graph(
        lambda s, x: s.head(torch.tanh(s.mix(torch.tanh(s.mix(s.first(x)))))),
        first=nn.Linear(3, 4),
        mix=nn.Linear(4, 4),
        head=nn.Linear(4, 2),
    )


def tied_layers() -> nn.Module:
    model = mlp([3, 4, 4, 2])
    model[2].weight = nn.Parameter(torch.empty(4, 4))
    return Graph(
        lambda s, x: s.net[4](torch.tanh(s.again(torch.tanh(s.net[2](s.net[0](x)))))),
        net=model,
        again=tied_copy(model[2]),
    )


def tied_copy(layer: nn.Linear) -> nn.Linear:
    copied = nn.Linear(layer.in_features, layer.out_features)
    copied.weight = layer.weight
    return copied


def in_place(h: Tensor) -> Tensor:
    return F.relu(h, inplace=True).mul_(2.0).add_(1.0)


CASES = {
    "linear": Case(lambda: mlp([3, 4, 5, 2]), (2, 3), [4, 5]),
    "linear_without_bias": Case(
        lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)), (2, 3), [4]
    ),
    "one_unit": Case(lambda: mlp([3, 1, 5, 2]), (2, 3), [5]),
    "conv1d": conv_between(nn.Identity, [4], dims=1),
    "conv2d": conv_between(nn.Identity, [4]),
    "conv3d": conv_between(nn.Identity, [4], dims=3),
    "conv_chain": conv_between(lambda: nn.Conv2d(4, 4, 3, padding="same", stride=1), [4, 4]),
    "conv_only": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 1)), (2, 2, 5), [4]
    ),
    "batch_norm_1d": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), (2, 3), [4]
    ),
    "batch_norm_2d": conv_between(lambda: nn.BatchNorm2d(4), [4]),
    "batch_norm_plain": conv_between(lambda: nn.BatchNorm2d(4, affine=False), [4]),
    "instance_norm": conv_between(lambda: nn.InstanceNorm2d(4, affine=True), [4]),
    "layer_norm": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (2, 3), [4]
    ),
    "layer_norm_map": conv_between(lambda: nn.LayerNorm([4, 4, 4]), [4]),
    "rms_norm": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Linear(4, 2)), (2, 3), [4]
    ),
    "group_norm_1": conv_between(lambda: nn.GroupNorm(1, 6), [6], width=6),
    "group_norm_all": conv_between(lambda: nn.GroupNorm(6, 6), [6], width=6),
    "group_norm_2": conv_between(lambda: nn.GroupNorm(2, 6), [3, 3], width=6),
    "group_norm_3": conv_between(lambda: nn.GroupNorm(3, 6), [2, 2, 2], width=6),
    "group_norm_flattened": Case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 2), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(24, 2)
        ),
        (2, 1, 3, 3),
        [3, 3],
    ),
    "prelu_shared": conv_between(lambda: nn.PReLU(), [4]),
    "prelu_per_channel": conv_between(lambda: nn.PReLU(4), [4]),
    "dropout": conv_between(lambda: nn.Dropout(0.5), [4]),
    "dropout2d": conv_between(lambda: nn.Dropout2d(0.5), [4]),
    "max_pool_1d": conv_between(lambda: nn.MaxPool1d(2), [4], dims=1),
    "max_pool_2d": conv_between(lambda: nn.MaxPool2d(2), [4]),
    "max_pool_3d": conv_between(lambda: nn.MaxPool3d(2), [4], dims=3),
    "avg_pool_1d": conv_between(lambda: nn.AvgPool1d(2), [4], dims=1),
    "avg_pool_2d": conv_between(lambda: nn.AvgPool2d(3, 1, 1), [4]),
    "avg_pool_3d": conv_between(lambda: nn.AvgPool3d(2), [4], dims=3),
    "adaptive_pool_1d": conv_between(lambda: nn.AdaptiveAvgPool1d(2), [4], dims=1),
    "adaptive_pool_2d": conv_between(lambda: nn.AdaptiveAvgPool2d(1), [4]),
    "adaptive_pool_3d": conv_between(lambda: nn.AdaptiveAvgPool3d(1), [4], dims=3),
    "flatten": flattened(lambda h: h.flatten(1)),
    "view": flattened(lambda h: h.view(h.shape[0], -1)),
    "reshape": flattened(lambda h: h.reshape(-1, 12)),
    "reshape_in_two": flattened(lambda h: h.reshape(2, 3, 4).reshape(2, 12)),
    "channels_last": flattened(lambda h: h.permute(0, 2, 3, 1).flatten(1)),
    "transposed": flattened(lambda h: h.flatten(2).transpose(1, 2).reshape(2, 12)),
    "squeezed": linear_between(lambda h: h.unsqueeze(1).squeeze(1), [4]),
    # The sum over the second factor does not see its order; the first factor goes on.
    "unflatten": linear_between(lambda h: h.unflatten(1, (2, 2)).mean(2), [2, 2], out=2),
    "expanded": linear_between(lambda h: h[:, None].expand(2, 3, 4).sum(1), [4]),
    "residual_identity": residual(projection=False),
    "residual_projection": residual(projection=True),
    "resnet": Case(lambda: ResNet(2), (2, 1, 8, 8), [2, 2, 4, 4, 4, 8, 8, 8]),
    "cnn": Case(lambda: CNN(2, hidden=3, side=16), (2, 1, 16, 16), [2, 4, 4, 3]),
    "recurrent": Case(reused_module, (2, 3), [4]),
    "tied_names": Case(tied_layers, (2, 3), [4]),
    "tied_transposed": Case(
        lambda: Graph(
            lambda s, x: F.linear(torch.tanh(s.encode(x)), s.encode.weight.t()),
            encode=nn.Linear(3, 4),
        ),
        (2, 3),
        [4],
    ),
    "scalar": linear_between(lambda h: 0.5 * h / 3 - 1, [4]),
    "in_place": linear_between(in_place, [4]),
    "softmax_gate": linear_between(lambda h: h * h.softmax(1) + F.log_softmax(h, 1), [4]),
    "where": linear_between(lambda h: torch.where(h > 0, h, h.exp()).masked_fill(h > 2, 0.5), [4]),
    "clamp": linear_between(lambda h: h.clamp(-1, 1) + h.clamp_min(0).square(), [4]),
    "scale_vector": Case(
        lambda: Graph(
            lambda s, x: s.head(s.first(x) * s.gamma * s.alpha),
            first=nn.Linear(3, 4),
            gamma=parameter(4),
            alpha=parameter(),
            head=nn.Linear(4, 2),
        ),
        (2, 3),
        [4],
    ),
    "matmul": Case(
        lambda: Graph(
            lambda s, x: torch.relu(x @ s.w1 + s.b1) @ s.w2,
            w1=parameter(3, 4),
            b1=parameter(4),
            w2=parameter(4, 2),
        ),
        (2, 3),
        [4],
    ),
    "addmm": Case(
        lambda: Graph(
            lambda s, x: torch.addmm(s.b1, x, s.w1).tanh().mm(s.w2),
            w1=parameter(3, 4),
            b1=parameter(4),
            w2=parameter(4, 2),
        ),
        (2, 3),
        [4],
    ),
    "bmm": Case(
        lambda: Graph(
            lambda s, x: torch.bmm(torch.bmm(x, s.w1).tanh(), s.w2),
            w1=parameter(2, 3, 4),
            w2=parameter(2, 4, 2),
        ),
        (2, 5, 3),
        [4],
    ),
}
ACTIVATIONS = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "abs_pow": lambda h: h.abs() ** 1.5,
    "threshold": lambda h: F.threshold(h, 0.1, 0.2),
}
REDUCTIONS = {
    "mean": lambda h: h.mean((2, 3)),
    "sum": lambda h: h.sum(-1).sum(-1),
    "amax": lambda h: h.amax((2, 3)),
    "amin": lambda h: h.amin((2, 3)),
    "logsumexp": lambda h: h.logsumexp((2, 3)),
    "var": lambda h: h.var((2, 3)),
    "std": lambda h: h.std((2, 3)),
    "norm": lambda h: torch.linalg.vector_norm(h, dim=(2, 3)),
    "keepdim": lambda h: (h - h.mean((2, 3), keepdim=True)).square().mean((2, 3)),
    "over_channels": lambda h: (h / (1 + h.square().mean(1, keepdim=True))).mean((2, 3)),
}
for _name, _op in ACTIVATIONS.items():
    CASES[_name] = linear_between(_op, [4])
for _name, _op in REDUCTIONS.items():
    CASES[_name] = Case(
        lambda op=_op: Graph(
            lambda s, x: s.head(op(s.conv(x))), conv=nn.Conv2d(2, 4, 2), head=nn.Linear(4, 2)
        ),
        (2, 2, 4, 4),
        [4],
    )


def assert_random_permutations_preserve(
    spec: PermutationSpec, model: nn.Module, inputs: object
) -> None:
    state = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        moved = Permutation.random(spec, generator=generator).apply(state)
        assert_same_function(model, inputs, state, moved)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    spec = discover(model, inputs)
    assert [group.size for group in spec.groups.values()] == case.sizes
    assert spec.log10_symmetries == pytest.approx(
        math.log10(math.prod(math.factorial(size) for size in case.sizes)), abs=1e-12
    )
    assert_random_permutations_preserve(spec, model, inputs)
    assert spec.verify(model, inputs) <= 1e-9


def test_no_other_permutation_of_a_small_layer_is_a_symmetry() -> None:
    model, inputs = randomised(mlp([3, 3, 3, 2])), torch.randn(5, 3, dtype=torch.float64)
    spec, state = discover(model, inputs), model.state_dict()
    for first, second in itertools.product(itertools.permutations(range(3)), repeat=2):
        moved = Permutation(spec, {"0": torch.tensor(first), "2": torch.tensor(second)})
        assert_same_function(model, inputs, state, moved.apply(state))
        outputs = dict(state, **{"4.weight": state["4.weight"][:, list(first)]})
        if first != (0, 1, 2):
            with pytest.raises(AssertionError):
                assert_same_function(model, inputs, state, outputs)
