"""Weights of any scale: metrics of one's own, tensors far apart, the edges of float64."""

import math

import pytest
import torch
from test_scales import FLOAT32, FLOAT64, planted, times

from gpu_align import CoordinateDescent, Metric, align
from gpu_align._problem._metric import times_power_of_two

OWN = Metric("own", lambda tensor: tensor / 2, lambda tensor: 3.0, odd=True)
FAST = CoordinateDescent()


@pytest.mark.parametrize(("dtype", "exponent"), [(FLOAT32, -100), (FLOAT32, 100), (FLOAT64, -664)])
def test_a_metric_of_ones_own_is_computed_in_units_of_the_weights(
    dtype: torch.dtype, exponent: int
) -> None:
    source, target, _ = planted(dtype)
    squares = align(source, target, search=FAST)
    scaled = align(times(source, exponent), times(target, exponent), search=FAST, metric=OWN)
    for name, perm in squares.permutation.perms.items():
        assert torch.equal(scaled.permutation.perms[name], perm)
    expected = math.ldexp(3 / 4 * squares.distance, 2 * exponent)
    assert scaled.distance == pytest.approx(expected, rel=1e-6, abs=0)


def test_one_tensor_may_be_far_larger_than_the_others() -> None:
    """The largest decides how the problem is scaled: its squares leave float32 first."""
    source, target, order = planted(FLOAT32)
    for state in (source, target):
        state["2.weight"] = state["2.weight"] * 2.0**100
    result = align(source, target)
    for name, perm in order.perms.items():
        assert torch.equal(result.permutation.perms[name], perm)


@pytest.mark.parametrize("exponent", [1, 3, 600, 1023, 1060])
def test_powers_of_two_beyond_float64_are_exact(exponent: int) -> None:
    small = torch.tensor([2.0**-exponent, -3 * 2.0**-exponent], dtype=FLOAT64)
    one = torch.tensor([1.0, -3.0], dtype=FLOAT64)
    assert torch.equal(times_power_of_two(small, exponent), one)
    assert torch.equal(times_power_of_two(one, -exponent), small)
