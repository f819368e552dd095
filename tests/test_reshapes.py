"""Reshapes that cannot be cut into factors: only what they mix is fixed."""

import pytest
import torch
import torch.nn.functional as F
from networks import Graph
from symmetry_cases import Case, assert_case, parameter
from torch import Tensor, nn

from gpu_align import discover


def windows(s: nn.Module, x: Tensor) -> Tensor:
    """Twelve places in windows of 3, then merged in twos, as in Swin."""
    h = s.embed(x).view(8, 3, 4)
    h = (h - h.mean(1, keepdim=True)).view(2, 6, 8)
    return s.head(F.relu(s.merge(h)))


def relative_shift(s: nn.Module, x: Tensor) -> Tensor:
    """Attention with relative positions as in Transformer-XL: rows are shifted by a reshape."""
    h = s.embed(x)
    batch, length, _ = h.shape
    q, k, v = (layer(h).unflatten(2, (2, 3)).transpose(1, 2) for layer in (s.q, s.k, s.v))
    angles = torch.arange(2 * length - 1, dtype=h.dtype)[:, None] / torch.arange(1, 5)
    places = s.p(angles.cos()).view(1, -1, 2, 3).transpose(1, 2)
    shifted = F.pad(q @ places.mT, (1, 0)).view(batch, 2, 2 * length, length)[:, :, 1:]
    near = shifted.reshape(batch, 2, length, 2 * length - 1)[..., :length]
    mixed = (q @ k.mT + near).softmax(-1) @ v
    return s.head(F.relu(s.proj(mixed.transpose(1, 2).flatten(2))))


def summed(s: nn.Module, x: Tensor) -> Tensor:
    """Two tables with other shapes as one vector, which has the units of a layer inside."""
    table = (s.first.flatten() + s.second.flatten()).view(6, 4)
    return s.head((s.layer(x)[:, None] * table).sum(1))


CASES = {
    "windows": Case(
        lambda: Graph(windows, embed=nn.Linear(3, 4), merge=nn.Linear(8, 5), head=nn.Linear(5, 2)),
        (2, 12, 3),
        [4, 5],
    ),
    "relative_shift": Case(
        lambda: Graph(
            relative_shift,
            embed=nn.Linear(3, 4),
            **{name: nn.Linear(4, 6) for name in "qkvp"},
            proj=nn.Linear(6, 5),
            head=nn.Linear(5, 2),
        ),
        (2, 4, 3),
        [4, 2, (3, 1), (3, 1), 5],
    ),
    "tables_of_other_shapes": Case(
        lambda: Graph(
            summed,
            first=parameter(2, 3, 4),
            second=parameter(3, 2, 4),
            layer=nn.Linear(3, 4),
            head=nn.Linear(4, 2),
        ),
        (2, 3),
        [4],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    assert_case(case)


def test_units_that_a_reshape_mixes_stay() -> None:
    """Six units as 2 x 3, normalised in threes, then in twos: no order is free."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = s.first(x).view(2, 2, 3).softmax(-1).view(2, 3, 2).softmax(-1)
        return s.head(h.flatten(1))

    model = Graph(forward, first=nn.Linear(3, 6), head=nn.Linear(6, 2)).double()
    spec = discover(model, torch.randn(2, 3, dtype=torch.float64))
    assert spec.groups == {}
