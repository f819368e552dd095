"""Ridge regression from sums: the solution of the problem that it states, and an honest choice."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_align._merge._regression import Normal, ridge_fit


def draw(seed: int, *shape: int) -> torch.Tensor:
    """Return standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 10), st.sampled_from([1e-3, 0.1, 1.0]))
def test_a_ridge_solves_its_normal_equations(seed: int, ridge: float) -> None:
    x, r = draw(seed, 2, 30, 4), draw(seed + 100, 2, 30, 3)
    sums = Normal.of(x, r)
    found = ridge_fit(sums, sums, bias=False, ridges=[ridge])
    for block in range(2):
        gram = x[block].T @ x[block]
        strength = ridge * gram.trace() / 4
        wanted = torch.linalg.solve(
            gram + strength * torch.eye(4, dtype=torch.float64), x[block].T @ r[block]
        )
        torch.testing.assert_close(found.weight[block], wanted)
    assert not found.shift.any()


@given(st.integers(0, 10))
def test_without_a_ridge_a_bias_is_that_of_least_squares(seed: int) -> None:
    x, r = draw(seed, 1, 40, 3) + 2, draw(seed + 100, 1, 40, 2) - 1
    sums = Normal.of(x, r)
    found = ridge_fit(sums, sums, bias=True, ridges=[0.0])
    with_ones = torch.cat([x[0], torch.ones(40, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.lstsq(with_ones, r[0]).solution
    torch.testing.assert_close(found.weight[0], wanted[:3])
    torch.testing.assert_close(found.shift[0], wanted[3])


def test_sums_of_parts_are_those_of_the_whole() -> None:
    x, r = draw(0, 2, 30, 4), draw(1, 2, 30, 3)
    whole, parts = Normal.of(x, r), Normal.of(x[:, :7], r[:, :7])
    parts = parts.merged(Normal.of(x[:, 7:], r[:, 7:]))
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), value)


def test_the_held_back_samples_choose_the_strength() -> None:
    x, noise = draw(0, 1, 12, 10), draw(1, 1, 12, 1)
    held_x, held_noise = draw(2, 1, 500, 10), draw(3, 1, 500, 1)
    nothing_to_learn = ridge_fit(Normal.of(x, noise), Normal.of(held_x, held_noise), bias=False)
    assert nothing_to_learn.ridge >= 1
    weight = draw(4, 10, 1)
    exact = ridge_fit(Normal.of(x, x @ weight), Normal.of(held_x, held_x @ weight), bias=False)
    assert exact.ridge < 1e-4
    torch.testing.assert_close(exact.weight[0], weight, atol=1e-3, rtol=0)


def test_where_all_strengths_judge_alike_the_weights_stay() -> None:
    x, zeros = draw(0, 1, 20, 5), torch.zeros(1, 20, 2, dtype=torch.float64)
    found = ridge_fit(Normal.of(x, zeros), Normal.of(x, zeros), bias=True)
    assert found.ridge == math.inf
    assert not found.weight.any()


def test_an_input_that_is_always_zero_gets_no_weight() -> None:
    x, r = draw(0, 1, 20, 3), draw(1, 1, 20, 2)
    x[..., 1] = 0
    sums = Normal.of(x, r)
    found = ridge_fit(sums, sums, bias=False, ridges=[0.0])
    assert bool(found.weight.isfinite().all())
    torch.testing.assert_close(found.weight[0, 1], torch.zeros(2, dtype=torch.float64))
