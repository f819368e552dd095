"""Networks under doubly stochastic matrices: permutations are exact, gradients those of F."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from marks import slow
from networks import pair, planted
from test_problem import problem_of
from torch import Tensor

from gpu_align._device._random import RandomStream
from gpu_align._problem import SoftNetworks, to_matrix
from gpu_align._search._relaxed import sinkhorn, soft_of_logits

KINDS = (
    *("mlp", "deep", "cnn", "groupnorm", "recurrent", "trilinear", "heads", "grouped", "gqa"),
    *("signed", "signed_heads", "signed_gqa", "fixed_heads", "fixed_gqa", "packed_heads"),
)


@pytest.mark.parametrize("name", KINDS)
def test_permutation_matrices_give_the_permuted_network(name: str) -> None:
    networks = pair(name)
    problem = problem_of(networks, dtype=torch.float64)
    batch = problem.random(2, RandomStream(3))
    for index, permutation in enumerate(problem.permutations(batch)):
        chosen = {m: perm[index, None] for m, perm in batch.perms.items()}
        soft = {m: to_matrix(perm, torch.float64) for m, perm in chosen.items()}
        found = SoftNetworks(problem).of(soft, 0)
        expected = permutation.apply(networks.source)
        for tensor, value in found.items():
            torch.testing.assert_close(value, expected[tensor].to(value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    problem = problem_of(pair(name), dtype=torch.float64)
    networks, weights = SoftNetworks(problem), {}
    generator = torch.Generator().manual_seed(0)
    names = list(problem.sizes)
    logits = [
        torch.randn(1, n, n, generator=generator, dtype=torch.float64).requires_grad_()
        for n in problem.sizes.values()
    ]
    for tensor, spec in problem.spec.tensors.items():
        weights[tensor] = torch.randn(spec.shape, generator=generator, dtype=torch.float64)

    def value(*given: Tensor) -> Tensor:
        soft: dict[str, Tensor] = {}
        for family in problem.families.values():
            soft |= soft_of_logits(family, dict(zip(names, given, strict=True)), 5)
        found = networks.of(soft, 0)
        return sum(((t * weights[n]).sum() for n, t in found.items()), torch.zeros(()))

    assert torch.autograd.gradcheck(value, logits, fast_mode=True)


@pytest.mark.parametrize("name", slow(["gqa", "packed_heads", "fixed_gqa"], but=["gqa"]))
def test_equal_logits_give_the_mean_over_all_permutations(name: str) -> None:
    networks = pair(name)
    positive = replace(networks, source={n: t.abs() for n, t in networks.source.items()})
    problem = problem_of(positive, dtype=torch.float64)
    soft: dict[str, Tensor] = {}
    for family in problem.families.values():
        sizes = {m: problem.sizes[m] for m in family.variables}
        zeros = {m: torch.zeros(1, n, n, dtype=torch.float64) for m, n in sizes.items()}
        soft |= soft_of_logits(family, zeros, 3)
    found = SoftNetworks(problem).of(soft, 0)
    drawn = problem.permutations(problem.random(400, RandomStream(0)))
    moved = [permutation.apply(positive.source) for permutation in drawn]
    for tensor, value in found.items():
        mean = torch.stack([state[tensor] for state in moved]).double().mean(0)
        assert float((value - mean).norm() / positive.source[tensor].norm()) < 0.1


def test_the_differentiable_scaling_is_the_plain_one() -> None:
    logits = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1))
    plain = sinkhorn(logits.clone(), 7)
    traced = sinkhorn(logits.clone().requires_grad_(), 7)
    assert torch.equal(plain, traced.detach())
    torch.testing.assert_close(plain.sum(1), torch.ones(3, 6))


def test_sources_are_not_written_to() -> None:
    networks, _ = planted("cnn", noise=0.1)
    problem = problem_of(networks)
    before: dict[str, Any] = {name: tensor.clone() for name, tensor in networks.source.items()}
    soft = {m: torch.full((1, n, n), 1 / n).to(problem.dtype) for m, n in problem.sizes.items()}
    SoftNetworks(problem).of(soft, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in networks.source.items())
