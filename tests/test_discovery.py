"""Discovery: groups worked out by hand for every family of ops, and functions preserved."""

import itertools
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from marks import every
from networks import CNN, Graph, ResNet, mlp, randomised
from oracles import assert_same_function
from symmetry_cases import (
    Case,
    Fixed,
    Sizes,
    assert_case,
    assert_groups,
    assert_random_permutations_preserve,
    conv_between,
    linear_between,
    parameter,
)
from torch import Tensor, nn

from gpu_align import (
    Permutation,
    discover,
)


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
    "group_norm_2": conv_between(lambda: nn.GroupNorm(2, 6), [2, (3, 0)], width=6),
    "group_norm_3": conv_between(lambda: nn.GroupNorm(3, 6), [3, (2, 0)], width=6),
    "group_norm_flattened": Case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 2), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(24, 2)
        ),
        (2, 1, 3, 3),
        [2, (3, 0)],
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
    # The sum over the second factor does not see its order, in each unit of the first for itself.
    "unflatten": linear_between(lambda h: h.unflatten(1, (2, 2)).mean(2), [2, (2, 0)], out=2),
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
        [Fixed(2), (4, 0)],
    ),
}
CASES |= {
    "movedim": flattened(lambda h: h.movedim(1, -1).flatten(1)),
    "movedim_of_two": flattened(lambda h: h.movedim((2, 3), (1, 0)).permute(1, 0, 2, 3).flatten(1)),
    "swapped": flattened(lambda h: h.flatten(2).mT.swapaxes(1, 2).flatten(1)),
    "unit_norm": linear_between(lambda h: F.normalize(h, dim=1) + h / h.norm(dim=1)[:, None], [4]),
    "cosine": linear_between(lambda h: h * F.cosine_similarity(h, h.sin())[:, None], [4]),
    "larger_of_two": linear_between(lambda h: torch.max(h, h.sin()) + torch.fmin(h, h.cos()), [4]),
    "constants": linear_between(
        lambda h: h * torch.ones(4) + torch.zeros_like(h) + h.new_full((1, 4), 2.0), [4]
    ),
    "written_over": linear_between(lambda h: torch.zeros(2, 4).to(h).copy_(h).fill_(1) * h, [4]),
    "bitwise": linear_between(lambda h: h * ((h > 0) & (h < 1) | ~h.isnan()), [4]),
    # An index is a place. Values are none.
    "largest": linear_between(lambda h: h / h.max(1, keepdim=True).values, [4]),
    "where_largest": linear_between(lambda h: h + h.max(1, keepdim=True).indices, []),
    "argmax": linear_between(lambda h: h + h.argmax(1, keepdim=True), []),
    "argmin_of_batch": linear_between(lambda h: h + h.argmin(0), [4]),
    "mean_and_variance": linear_between(lambda h: sum(torch.var_mean(h, 1, keepdim=True)) * h, [4]),
    # Along the batch units stay as they are.
    "cumsum": linear_between(lambda h: h.cumsum(0).flip(0).roll(1, 0), [4]),
    "roll_of_all": linear_between(lambda h: h.roll(1), []),
    "differences": linear_between(lambda h: torch.diff(h, dim=0, prepend=h[:1]), [4]),
    "index": linear_between(lambda h: h[torch.tensor([1, 1])] + h[:, [3, 2, 1, 0]].sin(), []),
    "index_of_batch": linear_between(lambda h: h[[1, 0]], [4]),
    "index_select": linear_between(lambda h: h.index_select(0, torch.tensor([1, 0])), [4]),
    "gather": linear_between(lambda h: h.gather(0, torch.ones(2, 4, dtype=torch.int64)), [4]),
    "gather_of_units": linear_between(lambda h: h.gather(1, torch.arange(4).expand(2, 4)), []),
    "triangle": flattened(lambda h: (h.tril() + h.triu(1)).flatten(1)),
    "einsum": Case(
        lambda: Graph(
            lambda s, x: torch.einsum("...i,io->...o", torch.einsum("bi,ih", x, s.w1).tanh(), s.w2),
            w1=parameter(3, 4),
            w2=parameter(4, 2),
        ),
        (2, 3),
        [4],
    ),
    "baddbmm": Case(
        lambda: Graph(
            lambda s, x: torch.baddbmm(s.b1, x, s.w1).tanh() @ s.w2,
            b1=parameter(1, 1, 4),
            w1=parameter(2, 3, 4),
            w2=parameter(4, 2),
        ),
        (2, 5, 3),
        [4],
    ),
    "vectors": Case(
        lambda: Graph(
            lambda s, x: torch.outer(x.mv(s.w1).tanh(), s.w1).mm(s.w2) + s.w1.dot(s.w1),
            w1=parameter(4),
            w2=parameter(4, 2),
        ),
        (3, 4),
        [],
    ),
    "bilinear": Case(
        lambda: Graph(
            lambda s, x: s.head(s.both(s.a(x), s.b(x))),
            a=nn.Linear(3, 4),
            b=nn.Linear(3, 5),
            both=nn.Bilinear(4, 5, 6),
            head=nn.Linear(6, 2),
        ),
        (2, 3),
        [4, 5, 6],
    ),
    # Copies of a unit are alike, so what reads them may take them in any order.
    "repeat": linear_between(lambda h: h.repeat(1, 2), [4, (2, 0)], out=8),
    "tile_of_batch": linear_between(lambda h: h.tile(2, 1)[:2], [4]),
    "repeat_interleave": linear_between(lambda h: h.repeat_interleave(2, 1), [4, (2, 0)], out=8),
    # Real and imaginary parts are told apart; numbers are not.
    "complex": linear_between(
        lambda h: torch.view_as_real(torch.view_as_complex(h.view(2, 2, 2)) * 1j).flatten(1), [2]
    ),
    "pixel_unshuffle": Case(
        lambda: Graph(
            lambda s, x: s.head(F.pixel_unshuffle(s.conv(x), 2).mean((2, 3))),
            conv=nn.Conv2d(1, 3, 1),
            head=nn.Linear(12, 2),
        ),
        (2, 1, 4, 4),
        [3],
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


@pytest.mark.parametrize("case", every(3, CASES))
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    assert_case(case)


def test_parts_that_are_cut_off_parameters_are_not_used() -> None:
    model = Graph(
        lambda s, x: s.head(s.first(x) + s.positions[:3]),
        first=nn.Linear(2, 4),
        positions=parameter(8, 4),
        head=nn.Linear(4, 2),
    )
    spec = discover(randomised(model), torch.randn(2, 3, 2, dtype=torch.float64))
    assert [group.size for group in spec.groups.values()] == [4]
    reasons = {pin.axis: pin.reason for pin in spec.pins if pin.tensor == "positions"}
    assert reasons == {0: "graph input, not used in forward"}


def blocks() -> nn.Module:
    """Grouped convolution and norms of all kinds, then attention."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = s.tokens(s.maps(x).flatten(2).mT)
        return s.head(s.norm(x + s.attention(x, x, x)[0]).mean(1))

    return Graph(
        forward,
        maps=nn.Sequential(
            *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=3)),
            *(nn.GroupNorm(3, 6), nn.MaxPool2d(2)),
        ),
        tokens=nn.Linear(6, 4),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        norm=nn.LayerNorm(4),
        head=nn.Linear(4, 2),
    )


BLOCKS: Sizes = [3, (2, 0), (2, 0), 4, 2, (2, 4), (2, 4)]


def test_parts_under_a_context_manager_are_looked_into() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = s.b(x).square()
            with torch.autocast("cpu", enabled=False):
                scale = torch.tanh(scale)
        return s.head(s.a(x) * scale)

    model = randomised(Graph(forward, a=nn.Linear(3, 4), b=nn.Linear(3, 4), head=nn.Linear(4, 2)))
    inputs = torch.randn(2, 3, dtype=torch.float64)
    assert_groups(discover(model, inputs), [4])
    assert_groups(discover(torch.export.export(model, (inputs,)), None), [4])


@pytest.mark.slow
def test_decomposed_program_gives_the_same_groups() -> None:
    model, inputs = randomised(blocks()), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.export.export(model, (inputs,)).run_decompositions()
    spec = discover(program, None, verify=False)
    assert_groups(spec, BLOCKS)
    assert_random_permutations_preserve(spec, model, inputs)


def test_program_with_a_batch_of_any_size() -> None:
    model, inputs = randomised(blocks()), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(model, (inputs,), dynamic_shapes=(({0: batch},),))
    assert_groups(discover(program, None), BLOCKS)


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
