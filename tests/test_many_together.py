"""What is done for the tensors of all models at once is what is done for each."""

from collections.abc import Mapping

import pytest
import torch
from networks import State, mlp, pair
from test_many import FORWARD, assert_equal_results, zoo
from test_permutation import assert_permutations_equal
from torch import Tensor, nn

from gpu_align import (
    METRICS,
    Metric,
    Permutation,
    SpecError,
    align,
    discover,
)
from gpu_align._symmetry._memory import memory_of
from gpu_align._symmetry._reorder import apply_permutations
from gpu_align._symmetry._weights import Weights

CUSTOM = Metric("custom", lambda t: t / t.mean().abs(), lambda t: float(t.abs().max()), odd=True)


@pytest.mark.parametrize("metric", [*METRICS.values(), CUSTOM], ids=lambda metric: metric.name)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (3, 2, 2)], ids=str)
def test_metric_of_a_stack_is_that_of_each(metric: Metric, shape: tuple[int, ...]) -> None:
    stack = torch.randn(4, *shape)
    stack[1] = 3.0
    expected = torch.stack([metric.scaled(tensor) for tensor in stack])
    torch.testing.assert_close(metric.scaled_each(stack), expected, rtol=1e-14, atol=0)
    assert metric.scaled_each(stack).dtype == torch.float64


def test_custom_metric_counts_for_each_model() -> None:
    spec, sources, target = zoo("deep", 3)
    options = {"spec": spec, "search": FORWARD, "metric": CUSTOM}
    for source, result in zip(sources, align(sources, target, **options), strict=True):
        assert_equal_results(result, align(source, target, **options))


def side_by_side(vectors: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in vectors]) for name in vectors[0]}


def apply_all(permutations: list[Permutation], states: list[State]) -> list[State]:
    """Call `apply_permutations` with what it takes."""
    perms, signs = (
        side_by_side([getattr(permutation, kind) for permutation in permutations])
        for kind in ("perms", "signs")
    )
    weights = Weights(permutations[0].spec, states, torch.device("cpu"))
    return apply_permutations(weights, perms, signs)


@pytest.mark.parametrize("name", ["cnn", "heads", "signed", "signed_heads"])
def test_many_permutations_are_checked_and_alone_in_memory(name: str) -> None:
    spec = pair(name).spec
    expected = [Permutation.random(spec) for _ in range(3)]
    perms, signs = (
        side_by_side([getattr(permutation, kind) for permutation in expected])
        for kind in ("perms", "signs")
    )
    made = Permutation.each(spec, perms, signs, 3)
    for one, other in zip(made, expected, strict=True):
        assert_permutations_equal(one, other)
        for vector in (*one.perms.values(), *one.signs.values()):
            assert vector.untyped_storage().nbytes() == vector.nbytes
    group = next(iter(perms))
    twice = {**perms, group: torch.zeros_like(perms[group])}
    with pytest.raises(SpecError, match="permutation of range"):
        Permutation.each(spec, twice, signs, 3)


@pytest.mark.parametrize("name", ["cnn", "heads", "gqa", "signed_heads", "single"])
def test_reordering_many_is_reordering_each(name: str, generator: torch.Generator) -> None:
    spec, states, _ = zoo(name, 4)
    states[1] = {n: t.half() if t.is_floating_point() else t for n, t in states[1].items()}
    states[2] = dict(reversed(states[2].items()))
    permutations = [Permutation.random(spec, generator=generator) for _ in states]
    moved = apply_all(permutations, states)
    for permutation, state, result in zip(permutations, states, moved, strict=True):
        expected = permutation.apply(state)
        assert list(result) == list(state)
        for key, tensor in expected.items():
            assert torch.equal(result[key], tensor)
            assert result[key].dtype == state[key].dtype
            if spec.lookup(key).groups:
                # A result that is kept alone keeps nothing of the others.
                assert result[key].untyped_storage().nbytes() == result[key].nbytes


def test_tied_and_shared_tensors_stay_so() -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = mlp([3, 4, 4, 4, 2])
        model[4].weight = model[2].weight
        return model

    models, inputs = [tied(seed) for seed in range(3)], torch.randn(2, 3)
    results = align(models, tied(3), example_inputs=inputs, search=FORWARD)
    for result in results:
        assert memory_of(result.state_dict["4.weight"]) == memory_of(result.state_dict["2.weight"])
        assert result.function_preserved
    spec = discover(mlp([3, 4, 4, 2]), inputs)
    states = [dict(mlp([3, 4, 4, 2]).state_dict()) for _ in range(3)]
    states[1]["2.bias"] = states[1]["0.bias"]
    permutations = [Permutation.random(spec) for _ in states]
    for permutation, state, moved in zip(
        permutations, states, apply_all(permutations, states), strict=True
    ):
        for name, tensor in permutation.apply(state).items():
            assert torch.equal(moved[name], tensor)
