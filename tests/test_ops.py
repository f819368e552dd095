"""Ops one by one: groups, signs and scales by hand, functions preserved."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from marks import slow
from networks import Graph, randomised
from symmetry_cases import assert_groups, assert_random_permutations_preserve, parameter
from test_gauge import assert_random_gauges_preserve, found_gauges
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gpu_align import discover

POSITIVE = ("lgamma", "digamma", "acosh", "special_entr", "special_log1p", "special_gammaln")
"""They get |h| + 1, which does not see signs."""
POINTWISE = {
    **dict.fromkeys(("sinc", "special_sinc", "i0", "special_i0"), "s"),  # even
    **dict.fromkeys(("asinh", "erf", "special_erf", "special_i1", "special_i1e", "fix"), "s"),
    **dict.fromkeys(POSITIVE, "s"),
    **dict.fromkeys(("erfc", "signbit"), ""),
    **dict.fromkeys(("special_expit", "special_erfc", "special_erfcx", "special_i0e"), ""),
    **dict.fromkeys(("special_expm1", "special_exp2", "special_ndtr"), ""),
    **dict.fromkeys(("special_log_ndtr", "special_bessel_j0"), ""),
    "absolute": "c",
    "negative": "sc",
    "deg2rad": "sc",
}
OPS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "rrelu": (F.rrelu, "c"),
    "atanh": (lambda h: torch.atanh(h.tanh() / 2), "s"),
    "special_erfinv": (lambda h: torch.special.erfinv(h.tanh() / 2), "s"),
    "polygamma": (lambda h: torch.polygamma(1, h.abs() + 1), "s"),
    "copysign": (lambda h: torch.copysign(h, h.sin()), ""),
    "heaviside": (lambda h: torch.heaviside(h, torch.zeros_like(h)), ""),
    "isclose": (lambda h: h * torch.isclose(h, h.round(), atol=0.2), ""),
    "greater": (lambda h: h * torch.greater(h, 0.1) + torch.less_equal(h, h.cos()), ""),
    "logaddexp2": (lambda h: torch.logaddexp2(h, h.sin()), ""),
    "bucketize": (lambda h: h + torch.bucketize(h, torch.arange(3.0)), ""),
    "cumulative_maximum": (lambda h: h.cummax(0).values, ""),
    "vdot": (lambda h: h * torch.vdot(h[0], h[1]), "s"),
    "inner": (lambda h: h * torch.inner(h, h).sum(), "s"),
    "tensordot": (lambda h: h * torch.tensordot(h, h, ([1], [1])).sum(), ""),
    "trace": (lambda h: h * (h[:, :, None] * h.sin()[:, None]).sum(0).trace(), ""),
    "diagonal": (lambda h: (h[:, :, None] * h.sin()[:, None]).diagonal(dim1=1, dim2=2), ""),
    "distances": (lambda h: h * torch.cdist(h, h.sin()).sum(), "s"),
    "quantile": (lambda h: h - h.quantile(0.3, dim=1, keepdim=True), ""),
    "grid": (lambda h: h + torch.stack(torch.meshgrid(h.sum(1), h[0], indexing="ij")).sum(0), ""),
    "broadcast": (lambda h: sum(torch.broadcast_tensors(h, h[:1], h[0])), ""),
    "quantiles": (
        lambda h: h - torch.ops.aten.quantile(h, h.new_tensor([0.2, 0.6]), 1).sum(0)[:, None], ""
    ),
    "loss": (lambda h: h * F.mse_loss(h, h.sin()) + F.huber_loss(h, h.cos(), reduction="none"), ""),
    "matrix_norm": (lambda h: h * torch.linalg.norm(h), ""),
    "side_by_side": (lambda h: torch.hstack([h.sin(), h[:, :0]]), "s"),
    "channel_shuffle": (lambda h: F.channel_shuffle(h[:, :, None], 4)[..., 0], "sc"),
    "rows_written": (lambda h: h.slice_scatter(h[:2].sin(), 0, 1, 3), ""),
    "row_written": (lambda h: h.select_scatter(h[0].sin(), 0, 1), ""),
    "spectrum_over_rows": (lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=0), n=5, dim=0), ""),
    "pairwise_distance": (lambda h: h * F.pairwise_distance(h, h.sin())[:, None], ""),
}  # fmt: skip


def assert_right(
    model: nn.Module, inputs: Tensor, sizes: list[int], gauges: tuple[str, ...]
) -> None:
    spec = discover(model, inputs)
    assert_groups(spec, sizes)
    assert found_gauges(spec) == gauges
    assert_random_permutations_preserve(spec, model, inputs)
    assert_random_gauges_preserve(spec, model, inputs)


def between(run: Callable[[Tensor], Tensor]) -> nn.Module:
    """Linear(3, 4), an op, and Linear(4, 2)."""
    return randomised(
        Graph(
            lambda s, x: s.head(run(s.first(x)).to(x.dtype)),
            first=nn.Linear(3, 4),
            head=nn.Linear(4, 2),
        )
    )


INPUTS = torch.randn((5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", slow(POINTWISE, but=list(POINTWISE)[::2]))
def test_pointwise_op(name: str) -> None:
    op = getattr(torch.ops.aten, name)
    shift = (lambda h: h.abs() + 1) if name in POSITIVE else lambda h: h
    assert_right(between(lambda h: op(shift(h))), INPUTS, [4], (POINTWISE[name],))


@pytest.mark.parametrize("name", slow(OPS, but=list(OPS)[::2]))
def test_op(name: str) -> None:
    run, gauge = OPS[name]
    assert_right(between(run), INPUTS, [4], (gauge,))


def test_distances_to_prototypes_do_not_see_signs() -> None:
    model = Graph(
        lambda s, x: s.head(torch.cdist(s.first(x), s.prototypes).exp().sum(1, keepdim=True)),
        first=nn.Linear(3, 4),
        prototypes=parameter(6, 4),
        head=nn.Linear(1, 2),
    )
    assert_right(randomised(model), INPUTS, [4, 6], ("s", ""))


@pytest.mark.parametrize(
    ("activation", "gauge"), [(torch.relu, "c"), (torch.tanh, "s"), (F.gelu, "")]
)
def test_weight_norm(activation: Callable[[Tensor], Tensor], gauge: str) -> None:
    """Of a unit the length is multiplied, whatever the direction has."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        return s.head(activation(s.second(x.relu() + s.first(x)).mean(-1)))

    model = Graph(
        forward,
        first=parametrizations.weight_norm(nn.Conv1d(3, 3, 3, padding=1)),
        second=parametrizations.weight_norm(nn.Conv1d(3, 4, 3)),
        head=nn.Linear(4, 2),
    )
    spec = discover(randomised(model), torch.randn(2, 3, 5, dtype=torch.float64))
    assert_groups(spec, [4])
    assert_random_permutations_preserve(spec, model, torch.randn(2, 3, 5, dtype=torch.float64))
    assert_random_gauges_preserve(spec, model, torch.randn(2, 3, 5, dtype=torch.float64))
    assert gauge in found_gauges(spec)[0]


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_along_an_axis(dim: int | None) -> None:
    model = Graph(
        lambda s, x: s.head(s.second(s.first(x).tanh()).tanh()),
        first=parametrizations.weight_norm(nn.Linear(3, 4), dim=dim),
        second=parametrizations.weight_norm(nn.Linear(4, 5), dim=dim),
        head=nn.Linear(5, 2),
    )
    spec = discover(randomised(model), INPUTS)
    assert_groups(spec, [4, 5])
    assert_random_permutations_preserve(spec, model, INPUTS)
    assert_random_gauges_preserve(spec, model, INPUTS)


def images(run: Callable[[Tensor], Tensor], out: int) -> nn.Module:
    """A convolution to 3 channels, an op, and the mean over places of `out` channels."""
    return randomised(
        Graph(
            lambda s, x: s.head(run(s.conv(x)).flatten(2).mean(-1)),
            conv=nn.Conv2d(2, 3, 1),
            head=nn.Linear(out, 2),
        )
    )


def grid(h: Tensor) -> Tensor:
    return torch.linspace(-0.9, 0.8, 24, dtype=h.dtype).view(1, 3, 4, 2).expand(len(h), 3, 4, 2)


def sheared(h: Tensor) -> Tensor:
    theta = h.sum((0, 1))[:2, :3].expand(len(h), 2, 3)
    return F.affine_grid(theta, list(h.shape), align_corners=False)


def largest_again(h: Tensor) -> Tensor:
    values, places = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(values, places, 2)


WINDOWS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "im2col": (lambda h: F.unfold(h, 2), 12),
    "col2im": (lambda h: F.fold(F.unfold(h, 2).tanh(), (4, 4), 2), 3),
    "unfold": (lambda h: h.unfold(2, 2, 1).unfold(3, 2, 2).amax((-1, -2)), 3),
    "max_unpool": (largest_again, 3),
    "low_frequencies": (
        lambda h: torch.fft.irfft2(torch.fft.rfft2(h)[..., :2, :2], s=h.shape[-2:]), 3
    ),
    "warped": (
        lambda h: F.grid_sample(h, sheared(h), align_corners=False),
        3,
    ),
    "grid_sample": (lambda h: F.grid_sample(h, grid(h), align_corners=False), 3),
    "grid_sample_3d": (
        lambda h: F.grid_sample(
            h[:, :, None], F.pad(grid(h), (0, 1))[:, None], align_corners=True
        ),
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_and_places_of_maps(name: str) -> None:
    run, out = WINDOWS[name]
    model, inputs = images(run, out), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    spec = discover(model, inputs)
    assert_groups(spec, [3])
    assert_random_permutations_preserve(spec, model, inputs)
    assert_random_gauges_preserve(spec, model, inputs)


def test_bags_of_rows_keep_their_units() -> None:
    model = Graph(
        lambda s, x, o: s.head(s.bags(x, o).relu()),
        bags=nn.EmbeddingBag(7, 4, mode="mean"),
        head=nn.Linear(4, 2),
    )
    inputs = (torch.tensor([1, 2, 4, 5, 4]), torch.tensor([0, 3]))
    spec = discover(randomised(model), inputs)
    assert_groups(spec, [4])
    assert_random_permutations_preserve(spec, model, inputs)
