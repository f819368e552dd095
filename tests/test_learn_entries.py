"""What message passing says of each weight moves, and is negated, with the units around it."""

import pytest
import torch
from learn_cases import ARCHITECTURES, SEQUENCES, chain, random_features, relative_error, spec_of
from marks import slow
from networks import FAMILIES
from test_learn_layers import perturbed

from gpu_align.learn import MessagePassing, WeightSpace
from gpu_align.learn._entries import MessageEntries

NAMES = [*FAMILIES, "recurrent", "trilinear", "deep", *ARCHITECTURES, *SEQUENCES]
QUICK = [*FAMILIES, "recurrent", "trilinear", "siren", "self_attention"]


def change(space: WeightSpace, channels: int = 4, rank: int | None = None) -> torch.nn.Module:
    network = perturbed(MessagePassing(space, channels, fixed_rank=rank))
    return torch.nn.Sequential(network, perturbed(MessageEntries(network)))


@pytest.mark.parametrize("name", slow(NAMES, but=QUICK))
def test_entries_go_where_their_units_go(name: str) -> None:
    space = WeightSpace(spec_of(name))
    model, features = change(space), random_features(space, 3, 1)
    elements = space.random_elements(3, seed=0)
    with torch.no_grad():
        after = model(space.act(elements, features))
        before = space.act(elements, model(features))
    assert [x.shape for x in after] == [x.shape for x in features]
    assert relative_error(after, before) < 1e-11


def test_entries_are_those_of_places_that_were_projected() -> None:
    space = WeightSpace(chain(7, 4, 4, 2))
    with torch.no_grad():
        found = change(space, rank=3)(random_features(space, 2, 1))
    assert [x.shape[-1] for x in found] == [cell.fixed for cell in space.cells]


def test_a_change_of_a_layer_has_as_many_directions_as_channels() -> None:
    """Of a layer of 6 x 5 units: no sum of fewer than 3 products of a row and a column."""
    space = WeightSpace(chain(2, 5, 6, 1))
    number = next(n for n, cell in enumerate(space.cells) if cell.name == "2.weight")
    model, features = change(space, channels=3), random_features(space, 1, 1)
    with torch.no_grad():
        part = model[1].parts[number]
        part.own.weight.zero_()
        part.own.bias.zero_()
        for factor in part.factors:
            factor[1].bias.zero_()
        found = model(features)[number][0, :, :, 0]
    values = torch.linalg.svdvals(found)
    assert (values > 1e-9 * values[0]).sum() == 3
