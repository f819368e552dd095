"""Random expressions: whatever is done to units entry by entry, all signs and scales are true."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Graph, randomised
from strategies import seeds
from test_gauge import assert_random_gauges_preserve, rms
from torch import Tensor, nn

from gpu_align import discover

UNARY: list[Callable[[nn.Module, Tensor], Tensor]] = [
    lambda s, h: torch.relu(h),
    lambda s, h: F.leaky_relu(h, -0.2),
    lambda s, h: torch.tanh(h),
    lambda s, h: torch.sin(h),
    lambda s, h: torch.sigmoid(h),
    lambda s, h: h.abs(),
    lambda s, h: h.square(),
    lambda s, h: h**3,
    lambda s, h: h.sign() + h,
    lambda s, h: -0.5 * h,
    lambda s, h: h.clamp(-1, 1),
    lambda s, h: h.clamp(min=0),
    lambda s, h: h * s.gain,
    lambda s, h: h / (1 + s.gain.square()),
    lambda s, h: h + s.shift,
    lambda s, h: h + 0.3,
    lambda s, h: rms(h),
    lambda s, h: F.rms_norm(h, (4,), s.gain),
    lambda s, h: F.layer_norm(h, (4,), s.gain, s.shift),
    lambda s, h: s.norm(h),
    lambda s, h: F.prelu(h, s.gain),
    lambda s, h: s.mix(h),
    lambda s, h: F.linear(h, s.mix.weight.t()),
    lambda s, h: torch.cat([h, h.neg()], -1)[:, 2:6],
    lambda s, h: torch.cat([h, h.tanh()], -1).view(-1, 2, 4).sum(1),
    lambda s, h: h.clone().mul_(2.0).relu_(),
    lambda s, h: h.clone().add_(h.sin()),
    lambda s, h: F.glu(torch.cat([h, h], -1)),
]
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add,
    torch.sub,
    torch.mul,
    lambda a, b: a / (1 + b.square()),
    torch.maximum,
    lambda a, b: torch.where(a > b, a, b),
    lambda a, b: a * torch.sigmoid(b),
    lambda a, b: (a[:, :, None] * b[:, None, :]).sum(1),
    lambda a, b: torch.stack([a, b], 1).amax(1),
    lambda a, b: torch.matmul(a[:, :, None], b[:, None, :]).sum(2),
]


@st.composite
def expressions(draw: st.DrawFn) -> Callable[[nn.Module, Tensor], Tensor]:
    """A chain of ops on one or two of the values that are there already."""
    steps = []
    for number in range(draw(st.integers(1, 6))):
        values = st.integers(0, number)
        if draw(st.integers(0, 2)):
            steps.append((draw(st.sampled_from(UNARY)), None, number))
        else:
            steps.append((draw(st.sampled_from(BINARY)), draw(values), draw(values)))

    def run(s: nn.Module, x: Tensor) -> Tensor:
        values = [s.first(x)]
        for op, left, right in steps:
            other = s if left is None else values[left]
            values.append(op(other, values[right]))
        return s.head(values[-1])

    return run


@pytest.mark.slow
@settings(max_examples=30)
@given(run=expressions(), seed=seeds)
def test_random_expressions_keep_their_function(
    run: Callable[[nn.Module, Tensor], Tensor], seed: int
) -> None:
    model = Graph(
        run,
        first=nn.Linear(3, 4),
        gain=nn.Parameter(torch.empty(4)),
        shift=nn.Parameter(torch.empty(4)),
        norm=nn.BatchNorm1d(4),
        mix=nn.Linear(4, 4, bias=False),
        head=nn.Linear(4, 2),
    )
    inputs = torch.randn(5, 3, dtype=torch.float64)
    spec = discover(randomised(model, seed), inputs, verify=False)
    assert_random_gauges_preserve(spec, model, inputs)
