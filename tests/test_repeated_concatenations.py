"""Concatenations that each of several units repeats: dimensions of heads, some fixed or packed."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from marks import every, slow
from networks import Graph
from symmetry_cases import Case, Fixed, Sizes, assert_case, assert_planted_is_found
from test_families import heads
from torch import Tensor, nn

from gpu_align import (
    discover,
)

Parts = tuple[Tensor, ...]


def halves(x: Tensor) -> Tensor:
    """Turn dimensions n and n + 1, as GPT-NeoX does."""
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def pairs(x: Tensor) -> Tensor:
    """Turn neighbouring dimensions, as GPT-J does."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def rotary(x: Tensor, turn: Callable[[Tensor], Tensor] = halves, size: int = 2) -> Tensor:
    """Turn the first dimensions by angles that grow with the place; the others stay."""
    first, rest = x[..., :size], x[..., size:]
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None]
    return torch.cat([first * angle.cos() + turn(first) * angle.sin(), rest], -1)


def apart(s: nn.Module, x: Tensor) -> Parts:
    """Three layers."""
    return tuple(layer(x).unflatten(2, (2, 5)).transpose(1, 2) for layer in (s.q, s.k, s.v))


def joined(s: nn.Module, x: Tensor) -> Parts:
    """One layer, queries, keys and values side by side."""
    return tuple(p.unflatten(2, (2, 5)).transpose(1, 2) for p in s.qkv(x).chunk(3, -1))


def inside(s: nn.Module, x: Tensor) -> Parts:
    """One layer, queries, keys and values of each head side by side."""
    return s.qkv(x).view(*x.shape[:2], 2, 15).transpose(1, 2).chunk(3, -1)


def sliced(s: nn.Module, x: Tensor) -> Parts:
    """The same, each taken as a slice."""
    packed = s.qkv(x).view(*x.shape[:2], 2, 3, 5)
    return tuple(packed[..., n, :].transpose(1, 2) for n in range(3))


def attention(parts: Callable[..., Parts], sizes: Sizes, turn: Callable[..., Tensor]) -> Case:
    """Attention of 2 heads of 5 dimensions between a stream of 4 units and a hidden layer."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        q, k, v = parts(s, s.embed(x))
        mixed = F.scaled_dot_product_attention(turn(q), turn(k), v)
        return s.head(F.relu(s.proj(mixed.transpose(1, 2).flatten(2))))

    def model() -> Graph:
        names = ("q", "k", "v") if parts is apart else ()
        layers = {name: nn.Linear(4, 10) for name in names} or {"qkv": nn.Linear(4, 30)}
        return Graph(
            forward, embed=nn.Linear(3, 4), **layers, proj=nn.Linear(10, 3), head=nn.Linear(3, 2)
        )

    return Case(model, (2, 4, 3), sizes)


PARTLY: Sizes = [4, 2, (3, 1), (5, 1), 3]
"""The stream, 2 heads, in each 3 dimensions that do not turn and 5 of values, and what follows."""

CASES = {
    "rotary_layers": attention(apart, PARTLY, rotary),
    "rotary_side_by_side": attention(joined, PARTLY, rotary),
    "rotary_in_heads": attention(inside, PARTLY, rotary),
    "rotary_slices": attention(sliced, PARTLY, rotary),
    "rotary_of_neighbours": attention(apart, PARTLY, lambda x: rotary(x, pairs)),
    "rotary_of_four": attention(apart, [4, 2, (2, 1), (5, 1), 3], lambda x: rotary(x, pairs, 4)),
    "packed_in_heads": attention(inside, [4, 2, (5, 1), (5, 1), 3], lambda x: x),
    # Units of two kinds in each head, and a part that the heads share with nobody.
    "two_kinds": heads(
        lambda h: torch.cat([h[..., :1].relu(), h[..., 1:].tanh()], -1).sum(2), [2, (2, 0)], out=2
    ),
    "fixed_heads": heads(
        lambda h: (
            torch.cat([h[..., :1] * 2, h[..., 1:].tanh()], -1).sum(2)
            * torch.tensor([1.0, 2.0], dtype=torch.float64)
        ),
        [Fixed(2), (2, 0)],
        out=2,
    ),
}


@pytest.mark.parametrize("case", every(2, CASES))
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    assert_case(case)


@pytest.mark.parametrize(
    "name",
    slow(["rotary_layers", "rotary_in_heads", "packed_in_heads"], but=["rotary_in_heads"]),
)
def test_a_planted_permutation_is_found(name: str) -> None:
    assert_planted_is_found(CASES[name])


def test_packed_heads_are_a_product_with_a_concatenation() -> None:
    spec = discover(CASES["rotary_in_heads"].model(), CASES["rotary_in_heads"].inputs())
    _, head, rest, values, _ = spec.groups
    rows = spec.tensors["qkv.bias"].axes[0].to_json()
    turned = {"product": [head, {"concat": [2, rest, 2, rest, values]}]}
    assert re.sub(r"\^-?1", "", str(rows)) == str(turned)
