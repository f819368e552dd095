"""Signs and scales: which groups have them, worked out by hand, and functions preserved."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from marks import every
from networks import Graph, randomised
from oracles import Symmetry, assert_same_function, moved_array
from torch import Tensor, nn

from gpu_align import PermutationSpec, discover


@dataclass(frozen=True)
class Case:
    """A model, the shape of its inputs, and what each of its groups has, in order.

    "s" are signs, "c" are scales, "" is neither.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    gauges: tuple[str, ...]

    def inputs(self) -> Tensor:
        return torch.randn(self.shape, dtype=torch.float64)


def between(run: Callable[[Tensor], Tensor], *gauges: str, out: int = 4, bias: bool = True) -> Case:
    """Linear(3, 4), some ops, and Linear from `out` units to the outputs."""

    def build() -> nn.Module:
        first, head = nn.Linear(3, 4, bias=bias), nn.Linear(out, 2, bias=bias)
        return Graph(lambda s, x: s.head(run(s.first(x))), first=first, head=head)

    return Case(build, (5, 3), gauges)


def graph(
    run: Callable[..., Tensor],
    shape: tuple[int, ...],
    gauges: tuple[str, ...],
    **layers: Callable[[], nn.Module | nn.Parameter],
) -> Case:
    """A Graph whose layers are made anew for each model."""
    return Case(
        lambda: Graph(run, **{name: make() for name, make in layers.items()}), shape, gauges
    )


def parameter(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.empty(shape))


def linear(inputs: int, outputs: int, bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs, bias=bias)


def conv_map(run: Callable[[nn.Module, Tensor], Tensor], gauge: str, **layers: object) -> Case:
    """A convolution to 4 channels, some ops, and the mean over all places into a Linear."""
    return Case(
        lambda: Graph(
            lambda s, x: s.head(run(s, s.conv(x)).mean((2, 3))),
            conv=nn.Conv2d(2, 4, 3, padding=1),
            head=nn.Linear(4, 2),
            **{name: make() for name, make in layers.items()},
        ),
        (2, 2, 4, 4),
        (gauge,),
    )


def rms(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def layer_norm(h: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


EVERY_OTHER = torch.tensor([[True], [False], [True], [False], [True]])
ACTIVATIONS = {
    "identity": (lambda h: h, "sc"),
    "negated": (lambda h: -2 * h / 3, "sc"),
    "relu": (torch.relu, "c"),
    "leaky_relu": (F.leaky_relu, "c"),
    "clamp_from_0": (lambda h: h.clamp(min=0), "c"),
    "maximum": (lambda h: torch.maximum(h, 2 * h), "c"),
    "crelu_folded": (lambda h: torch.relu(h) - 0.3 * torch.relu(-h), "c"),
    "absolute": (torch.abs, "c"),
    "tanh": (torch.tanh, "s"),
    "sin": (torch.sin, "s"),
    "erf": (torch.erf, "s"),
    "hardtanh": (F.hardtanh, "s"),
    "softsign": (F.softsign, "s"),
    "softshrink": (F.softshrink, "s"),
    "tanhshrink": (F.tanhshrink, "s"),
    "clamp_mirrored": (lambda h: h.clamp(-0.5, 0.5), "s"),
    "cube": (lambda h: h**3, "s"),
    "square": (torch.square, "s"),
    "times_itself": (lambda h: h * h, "s"),
    "cosine": (torch.cos, "s"),
    "signed_square": (lambda h: h * h.abs(), "s"),
    "odd_sum": (lambda h: h + torch.tanh(h) - h**3, "s"),
    "homogeneous_sum": (lambda h: h + torch.relu(h), "c"),
    "relu6": (F.relu6, ""),
    "gelu": (F.gelu, ""),
    "silu": (F.silu, ""),
    "sigmoid": (torch.sigmoid, ""),
    "softplus": (F.softplus, ""),
    "elu": (F.elu, ""),
    "exp": (torch.exp, ""),
    "softmax": (lambda h: h.softmax(-1), ""),
    "self_gate": (lambda h: h * torch.sigmoid(h), ""),
    "clamp_to_1": (lambda h: h.clamp(0, 1), ""),
    "maximum_of_a_number": (lambda h: torch.clamp_min(h, 0.1), ""),
    "plus_number": (lambda h: h + 1, ""),
    "plus_zero": (lambda h: h + 0, "sc"),
    "minus_mean": (lambda h: h - h.mean(-1, keepdim=True), ""),
    "relu_and_tanh": (lambda h: torch.relu(h) + torch.tanh(h), ""),
    "rounded_quotient": (lambda h: torch.div(h, 0.3, rounding_mode="floor"), ""),
    "rms_norm_by_hand": (rms, "s"),
    "unit_norm": (lambda h: F.normalize(h, dim=-1), "s"),
    "masked_by_0": (lambda h: h.masked_fill(EVERY_OTHER, 0), "sc"),
    "masked_by_1": (lambda h: h.masked_fill(EVERY_OTHER, 1), ""),
    "in_place_relu": (lambda h: F.relu(h, inplace=True).mul_(2.0), "c"),
    "in_place_tanh": (lambda h: h.tanh_(), "s"),
    "in_place_after_use": (lambda h: torch.tanh(h) + h.relu_(), ""),
    "in_place_number": (lambda h: h.mul_(2.0).add_(1.0), ""),
    # No power says that two scales are multiplied, or that a scale is squared.
    "squared_relu": (lambda h: torch.relu(h).square(), ""),
    # Comparisons do not see scales, but it is not looked at.
    "where_positive": (lambda h: torch.where(h > 0, h, 0.1 * h), ""),
}  # fmt: skip
CASES: dict[str, Case] = {name: between(*case) for name, case in ACTIVATIONS.items()}
CASES |= {
    "without_bias": between(torch.relu, "c", bias=False),
    "cat_with_itself": between(lambda h: torch.cat([h.relu(), -h], -1), "c", out=8),
    "cat_with_numbers": between(lambda h: F.pad(h, (0, 2), value=1.0), "", out=6),
    "cat_with_zeros": between(lambda h: F.pad(h, (0, 2)), "sc", out=6),
    "expanded": between(lambda h: h[:, None].expand(5, 3, 4).sum(1), "sc"),
    "stacked": between(lambda h: torch.stack([h, h.tanh()], 1).sum(1), "s"),
    # The repeats are a group of their own, of equal units.
    "repeated": between(lambda h: h.repeat(1, 2), "sc", "", out=8),
    "repeated_each": between(lambda h: h.repeat_interleave(2, 1), "sc", "", out=8),
    "expanded_and_flattened": between(
        lambda h: h[:, None].expand(5, 2, 4).flatten(1), "sc", "", out=8
    ),
    "prelu": conv_map(lambda s, h: s.act(h), "c", act=lambda: nn.PReLU(4)),
    "batch_norm": conv_map(lambda s, h: s.n(h), "sc", n=lambda: nn.BatchNorm2d(4)),
    "batch_norm_relu": conv_map(lambda s, h: s.n(h).relu(), "c", n=lambda: nn.BatchNorm2d(4)),
    "batch_norm_tanh": conv_map(lambda s, h: s.n(h).tanh(), "s", n=lambda: nn.BatchNorm2d(4)),
    "batch_norm_plain": conv_map(
        lambda s, h: s.n(h), "", n=lambda: nn.BatchNorm2d(4, affine=False)
    ),
    "relu_batch_norm": conv_map(lambda s, h: s.n(h.relu()), "sc", n=lambda: nn.BatchNorm2d(4)),
    "layer_norm": conv_map(lambda s, h: s.n(h), "", n=lambda: nn.LayerNorm([4, 4, 4])),
    "group_norm": conv_map(lambda s, h: s.n(h), "", n=lambda: nn.GroupNorm(1, 4)),
    "max_pool": conv_map(lambda s, h: F.max_pool2d(h, 2), "c"),
    "max_pool_relu": conv_map(lambda s, h: F.max_pool2d(h.relu(), 2), "c"),
    "avg_pool": conv_map(lambda s, h: F.avg_pool2d(h, 3, 1, 1), "sc"),
    "adaptive_pool": conv_map(lambda s, h: F.adaptive_avg_pool2d(h, 2), "sc"),
    "upsampled": conv_map(lambda s, h: F.interpolate(h, scale_factor=2, mode="bilinear"), "sc"),
    "amax": conv_map(lambda s, h: h.amax((2, 3), keepdim=True), "c"),
    "deviation": conv_map(lambda s, h: h.std((2, 3), keepdim=True), "c"),
    "variance": conv_map(lambda s, h: h.var((2, 3), keepdim=True), "s"),
    "norm_over_places": conv_map(lambda s, h: h.norm(dim=(2, 3), keepdim=True), "c"),
    "padded_places": conv_map(lambda s, h: F.pad(h, (1, 1)), "sc"),
    "padded_places_by_1": conv_map(lambda s, h: F.pad(h, (1, 1), value=1.0), ""),
    "reflected_places": conv_map(lambda s, h: F.pad(h, (1, 1, 1, 1), mode="reflect"), "sc"),
    "depthwise": conv_map(
        lambda s, h: s.dw(h.relu()).relu(), "c", dw=lambda: nn.Conv2d(4, 4, 3, groups=4)
    ),
    "flattened": Case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
        ),
        (2, 1, 3, 3),
        ("s",),
    ),
    # Both factors are groups of their own; scales of either are scales of the product.
    "unflattened": Case(
        lambda: Graph(
            lambda s, x: s.head(s.first(x).unflatten(1, (2, 2)).relu().mean(2)),
            first=nn.Linear(3, 4),
            head=nn.Linear(2, 2),
        ),
        (5, 3),
        ("c", ""),
    ),
    "rms_norm": graph(
        lambda s, x: s.head(s.norm(s.first(x))),
        (5, 3), ("s",), first=linear(3, 4), norm=lambda: nn.RMSNorm(4), head=linear(4, 2),
    ),
    "rms_norm_by_hand_with_weight": graph(
        lambda s, x: s.head(s.weight * rms(s.first(x))),
        (5, 3), ("s",), first=linear(3, 4), weight=parameter(4), head=linear(4, 2),
    ),
    # What comes in is fixed; weight and bias make the units anew.
    "layer_norm_by_hand": graph(
        lambda s, x: s.head(s.weight * layer_norm(s.first(x)) + s.bias),
        (5, 3), ("sc",), first=linear(3, 4), weight=parameter(4), bias=parameter(4),
        head=linear(4, 2),
    ),
    "scale_vector": graph(
        lambda s, x: s.head(s.gamma * s.alpha * torch.tanh(s.first(x))),
        (5, 3), ("s",), first=linear(3, 4), gamma=parameter(4), alpha=parameter(),
        head=linear(4, 2),
    ),
    "shift_vector": graph(
        lambda s, x: s.head(torch.relu(s.first(x) + s.beta)),
        (5, 3), ("c",), first=linear(3, 4), beta=parameter(4), head=linear(4, 2),
    ),
    "shift_number": graph(
        lambda s, x: s.head(s.first(x) + s.beta),
        (5, 3), ("",), first=linear(3, 4), beta=parameter(1), head=linear(4, 2),
    ),
    "divided": graph(
        lambda s, x: s.head(s.first(x) / s.second(x)),
        (5, 3), ("sc",), first=linear(3, 4), second=linear(3, 4), head=linear(4, 2),
    ),
    "swiglu": graph(
        lambda s, x: s.down(F.silu(s.gate(x)) * s.up(x)),
        (5, 3), ("sc",), gate=linear(3, 4), up=linear(3, 4), down=linear(4, 2),
    ),
    "reglu": graph(
        lambda s, x: s.down(F.relu(s.gate(x)) * s.up(x)),
        (5, 3), ("sc",), gate=linear(3, 4), up=linear(3, 4), down=linear(4, 2),
    ),
    "bilinear_unit": graph(
        lambda s, x: s.down(s.gate(x) * s.up(x)),
        (5, 3), ("sc",), gate=linear(3, 4), up=linear(3, 4), down=linear(4, 2),
    ),
    "glu": graph(
        lambda s, x: s.down(F.glu(s.up(x))), (5, 3), ("sc",), up=linear(3, 8), down=linear(4, 2)
    ),
    "residual_relu": graph(
        lambda s, x: s.head((h := s.stem(x)) + s.down(F.relu(s.up(h)))),
        (5, 3), ("sc", "c"), stem=linear(3, 4), up=linear(4, 5), down=linear(5, 4),
        head=linear(4, 2),
    ),
    "residual_tanh_after": graph(
        lambda s, x: s.head(torch.tanh((h := s.stem(x)) + s.down(F.gelu(s.up(h))))),
        (5, 3), ("s", ""), stem=linear(3, 4), up=linear(4, 5), down=linear(5, 4),
        head=linear(4, 2),
    ),
    "residual_pre_norm": graph(
        lambda s, x: s.head((h := s.stem(x)) + s.down(F.relu(s.up(s.norm(h))))),
        (5, 3), ("s", "c"), stem=linear(3, 4), norm=lambda: nn.RMSNorm(4), up=linear(4, 5),
        down=linear(5, 4), head=linear(4, 2),
    ),
    "reused_layer": graph(
        lambda s, x: s.head(torch.tanh(s.mix(torch.tanh(s.mix(torch.tanh(s.first(x))))))),
        (5, 3), ("s",), first=linear(3, 4), mix=linear(4, 4), head=linear(4, 2),
    ),
    "reused_after_relu": graph(
        lambda s, x: s.head(torch.relu(s.mix(torch.relu(s.first(x))))),
        (5, 3), ("c", "c"), first=linear(3, 4), mix=linear(4, 5), head=linear(5, 2),
    ),
    "tied_transposed": graph(
        lambda s, x: F.linear(torch.relu(s.encode(x)), s.encode.weight.t()),
        (5, 3), ("",), encode=linear(3, 4),
    ),
    "tied_transposed_tanh": graph(
        lambda s, x: F.linear(torch.tanh(s.encode(x)), s.encode.weight.t()),
        (5, 3), ("s",), encode=linear(3, 4),
    ),
    "cat_and_split": graph(
        lambda s, x: split_again(s, torch.cat([s.a(x).relu(), s.b(x).tanh()], 1)),
        (5, 3), ("c", "s"), a=linear(3, 4), b=linear(3, 5), c=linear(4, 2), d=linear(5, 2),
    ),
    "cat_with_input": graph(
        lambda s, x: s.head(torch.cat([x, s.a(x).relu()], 1)),
        (5, 3), ("c",), a=linear(3, 4), head=linear(7, 2),
    ),
    # A bias that is the same in every row is not multiplied with the rows.
    "rows_with_bias": graph(
        lambda s, x: torch.einsum("bcd,c->bd", s.inner(s.first(x)[:, :, None]), s.w),
        (5, 3), ("",), first=linear(3, 4), inner=linear(1, 2), w=parameter(4),
    ),
    "rows_without_bias": graph(
        lambda s, x: torch.einsum("bcd,c->bd", s.inner(s.first(x)[:, :, None]), s.w),
        (5, 3), ("sc",), first=linear(3, 4), inner=linear(1, 2, bias=False), w=parameter(4),
    ),
    "rnn_tanh": graph(
        lambda s, x: s.head(s.rnn(x)[0]),
        (2, 5, 3), ("s",), rnn=lambda: nn.RNN(3, 4, batch_first=True), head=linear(4, 2),
    ),
    "rnn_relu": graph(
        lambda s, x: s.head(s.rnn(x)[1][0]),
        (2, 5, 3), ("c",), rnn=lambda: nn.RNN(3, 4, nonlinearity="relu"), head=linear(4, 2),
    ),
    "rnn_deep": graph(
        lambda s, x: s.head(s.rnn(x)[0]),
        (2, 5, 3), ("s",) * 4, rnn=lambda: nn.RNN(3, 4, 2, bidirectional=True), head=linear(8, 2),
    ),
    "rnn_from_ones": graph(
        lambda s, x: s.head(s.rnn(x, torch.ones(1, 5, 4, dtype=x.dtype))[0]),
        (2, 5, 3), ("",), rnn=lambda: nn.RNN(3, 4), head=linear(4, 2),
    ),
    "rnn_from_another": graph(
        lambda s, x: s.head(s.rnn(x, s.first(x[0]).tanh()[None])[0]),
        (2, 5, 3), ("s",), first=linear(3, 4), rnn=lambda: nn.RNN(3, 4), head=linear(4, 2),
    ),
    "rnn_cell": graph(
        lambda s, x: s.head(s.cell(x, s.cell(x))),
        (5, 3), ("s",), cell=lambda: nn.RNNCell(3, 4), head=linear(4, 2),
    ),
    "lstm": graph(
        lambda s, x: s.head(s.rnn(s.embed(x))[0]),
        (2, 5, 3), ("sc", ""), embed=linear(3, 5), rnn=lambda: nn.LSTM(5, 4), head=linear(4, 2),
    ),
    "gru_cell": graph(
        lambda s, x: s.head(s.cell(s.embed(x).relu())),
        (5, 3), ("c", ""), embed=linear(3, 5), cell=lambda: nn.GRUCell(5, 4), head=linear(4, 2),
    ),
    "conv_transpose": graph(
        lambda s, x: s.head(s.up(s.conv(x).relu()).tanh().mean((2, 3))),
        (2, 2, 4, 4), ("c", "s"), conv=lambda: nn.Conv2d(2, 4, 1),
        up=lambda: nn.ConvTranspose2d(4, 3, 2), head=linear(3, 2),
    ),
    "einsum": graph(
        lambda s, x: torch.einsum("bh,ho->bo", torch.einsum("bi,ih->bh", x, s.a).tanh(), s.b),
        (5, 3), ("s",), a=parameter(3, 4), b=parameter(4, 2),
    ),
    "written_slices": graph(
        lambda s, x: s.head(written(torch.zeros_like(h := s.first(x)), h)),
        (5, 3), ("",), first=linear(3, 4), head=linear(4, 2),
    ),
}  # fmt: skip


def split_again(s: nn.Module, joined: Tensor) -> Tensor:
    first, second = joined.split([4, 5], 1)
    return s.c(first) + s.d(second)


def written(out: Tensor, h: Tensor) -> Tensor:
    """Write into a tensor of zeros, and then into all that was written."""
    out.copy_(h)
    out.add_(1.0)
    return out


def found_gauges(spec: PermutationSpec) -> tuple[str, ...]:
    return tuple("s" * g.signed + "c" * g.scaled for g in spec.groups.values())


def drawn(spec: PermutationSpec, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw signs for signed groups and scales for scaled ones, as floats [units]."""
    multipliers = {}
    for name, group in spec.groups.items():
        signs = generator.choice([-1.0, 1.0], spec.units(name))
        scales = np.exp(generator.uniform(-1, 1, spec.units(name)))
        if group.signed or group.scaled:
            multipliers[name] = (signs if group.signed else 1) * (scales if group.scaled else 1)
    return multipliers


def multiplied(
    spec: PermutationSpec, state: Mapping[str, Tensor], multipliers: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """Multiply every entry, one by one, by the powers of its units; integers stay."""
    still = {name: np.arange(spec.units(name)) for name in spec.groups}
    moved = {}
    for name, tensor in state.items():
        array = tensor.double().numpy()
        made = moved_array(array, spec.lookup(name), spec.groups, Symmetry(still, multipliers))
        moved[name] = torch.from_numpy(np.array(made)).to(tensor.dtype)
    return moved


def assert_random_gauges_preserve(spec: PermutationSpec, model: nn.Module, inputs: object) -> None:
    state = model.state_dict()
    generator = np.random.default_rng(0)
    for _ in range(3):
        moved = multiplied(spec, state, drawn(spec, generator))
        assert_same_function(model, inputs, state, moved)


@pytest.mark.filterwarnings("ignore:The tensor attributes? .*_flat_weights:UserWarning")
@pytest.mark.parametrize("case", every(3, CASES))
def test_gauges_are_those_worked_out_by_hand(case: Case) -> None:
    model, inputs = randomised(case.build()), case.inputs()
    spec = discover(model, inputs, verify=False)
    assert found_gauges(spec) == case.gauges
    assert_random_gauges_preserve(spec, model, inputs)
    assert PermutationSpec.from_json(spec.to_json()) == spec
