"""Axes that do not fit together, and tokens whose order a causal mask sees: all are pinned."""

import pytest
import torch
import torch.nn.functional as F
from networks import Graph, randomised
from symmetry_cases import assert_groups, assert_random_permutations_preserve, parameter
from torch import Tensor, nn

from gpu_align import PermutationSpec, discover


def attention(causal: bool, **tokens: nn.Parameter) -> nn.Module:
    """Queries, keys and values of four tokens that are parameters; a mean over the queries."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        keys = s.keys if hasattr(s, "keys") else s.embed(x)
        queries = s.queries if hasattr(s, "queries") else s.embed(x)
        # Scores that are not all the same: a head reads what the softmax has mixed.
        mixed = F.scaled_dot_product_attention(
            queries[None, None], keys[None, None], s.values[None, None], is_causal=causal
        )
        return s.head(torch.tanh(s.mix(mixed[0, 0])).mean(0)) + x.sum()

    layers = {"values": parameter(4, 6), "mix": nn.Linear(6, 5), "head": nn.Linear(5, 2)}
    return randomised(Graph(forward, embed=nn.Linear(3, 6), **layers, **tokens))


def axes_of(spec: PermutationSpec, name: str) -> list[bool]:
    """Say of each axis of a tensor whether it can be reordered."""
    return [bool(axis.groups) for axis in spec.tensors[name].axes]


@pytest.mark.parametrize("causal", [False, True])
def test_causal_attention_pins_the_tokens_of_parameters(causal: bool) -> None:
    """Query i sees the keys up to i: neither queries nor keys can change places."""
    model = attention(causal, queries=parameter(4, 6), keys=parameter(4, 6))
    inputs = torch.randn(2, 3, dtype=torch.float64)
    spec = discover(model, inputs)
    assert_random_permutations_preserve(spec, model, inputs)
    for name in ("queries", "keys", "values"):
        assert axes_of(spec, name) == [not causal, True], name
    pinned = {pin.tensor for pin in spec.pins if "scaled_dot_product" in pin.reason}
    assert pinned == ({"queries", "keys", "values"} if causal else set())


def test_causal_attention_pins_queries_alone() -> None:
    """Keys and values come from the inputs; the order of the queries is seen by the mask."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        keys = s.embed(x)
        queries = s.queries.expand(len(x), -1, -1)
        mixed = F.scaled_dot_product_attention(queries, keys, keys, is_causal=True)
        return s.head(mixed.square().mean(1))

    model = randomised(
        Graph(forward, embed=nn.Linear(3, 6), queries=parameter(4, 6), head=nn.Linear(6, 2))
    )
    inputs = torch.randn(2, 4, 3, dtype=torch.float64)
    spec = discover(model, inputs)
    assert axes_of(spec, "queries") == [False, True]
    assert_random_permutations_preserve(spec, model, inputs)


def two_by_three(first: tuple[int, int], second: tuple[int, int]) -> nn.Module:
    """Twelve units seen as a product of two extents, added to twelve seen as another product."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        a = torch.tanh(s.a(x).unflatten(1, first) * s.inner_a)
        b = torch.tanh(s.b(x).unflatten(1, second) * s.inner_b)
        return s.head(torch.tanh(a.flatten(1) + b.flatten(1)))

    return randomised(
        Graph(
            forward,
            a=nn.Linear(3, 6),
            b=nn.Linear(3, 6),
            inner_a=parameter(first[1]),
            inner_b=parameter(second[1]),
            head=nn.Linear(6, 2),
        )
    )


def test_a_misfit_of_products_pins_both_sides() -> None:
    """2 x 3 and 3 x 2 units have no common refinement: no unit of either may move."""
    inputs = torch.randn(5, 3, dtype=torch.float64)
    for model in (two_by_three((2, 3), (3, 2)), two_by_three((3, 2), (2, 3))):
        spec = discover(model, inputs)
        assert_groups(spec, [])
        assert {pin.tensor for pin in spec.pins if pin.axis == 0} >= {
            *("a.weight", "b.weight", "inner_a", "inner_b")
        }
        assert_random_permutations_preserve(spec, model, inputs)


def test_products_that_fit_are_one() -> None:
    """Nothing but the inner units is compared, so that the outer ones have an order in each."""
    inputs = torch.randn(5, 3, dtype=torch.float64)
    model = two_by_three((2, 3), (2, 3))
    spec = discover(model, inputs)
    assert_groups(spec, [3, (2, 0)])
    assert_random_permutations_preserve(spec, model, inputs)
