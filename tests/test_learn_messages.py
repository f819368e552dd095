"""Message passing on any spec: states go with their units, numbers of a network stay."""

import pytest
import torch
from learn_cases import (
    ARCHITECTURES,
    SEQUENCES,
    chain,
    random_features,
    relative_error,
    spec_of,
    tanh,
)
from marks import slow
from networks import FAMILIES
from test_learn_layers import in_order, perturbed
from torch import nn

from gpu_align import InputError
from gpu_align.learn import MessageHead, MessagePassing, WeightSpace

NAMES = [
    *FAMILIES,
    "recurrent",
    "trilinear",
    "groupnorm",
    "cnn",
    "deep",
    *ARCHITECTURES,
    *SEQUENCES,
]
QUICK = [*FAMILIES, "recurrent", "trilinear", "groupnorm", "deep", "siren", "resnext"]


@pytest.mark.parametrize("name", slow(NAMES, but=QUICK))
def test_states_go_where_their_units_go(name: str) -> None:
    space = WeightSpace(spec_of(name))
    network = perturbed(MessagePassing(space, 4, rounds=2, c_in=2))
    head = perturbed(MessageHead(network, 3, hidden=8))
    features = random_features(space, 3, 2)
    elements = space.random_elements(3, seed=0)
    with torch.no_grad():
        states = network(features)
        moved = network(space.act(elements, features, 2))
        numbers, same = head(states), head(moved)
    assert relative_error((same,), (numbers,)) < 1e-11
    assert float(numbers.std(0).min()) > 1e-4  # other networks get other numbers
    groups = space.spec.groups
    assert list(states.by_group()) == [g for g in groups if not groups[g].fixed]
    assert list(states.by_group(odd=True)) == [g for g in groups if groups[g].signed]
    for number, permutation in enumerate(elements.permutations()):
        for group, x in states.by_group().items():
            expected = x[number][permutation[group]]
            assert expected.shape == (space.spec.units(group), 4)
            got = moved.by_group()[group][number]
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        for group, expected in in_order(permutation, states.by_group(odd=True), number).items():
            got = moved.by_group(odd=True)[group][number]
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_message_is_a_product_with_the_weights() -> None:
    """Written out for 2-3-4-1: what the first hidden layer gets from the second, and back."""
    from gpu_align.learn._graph import message, nodes_of

    space = WeightSpace(chain(2, 3, 4, 1))
    weight = next(n for n, cell in enumerate(space.cells) if cell.name == "2.weight")
    x = random_features(space, 1, 1)[weight]
    nodes = nodes_of(space.cells[weight])
    states = {
        node.key: torch.randn(1, n, 5).double() for node, n in zip(nodes, (4, 3), strict=True)
    }
    forward = message(x, nodes, 0, states, {})
    torch.testing.assert_close(forward, x[..., 0] @ states[nodes[1].key] / 3**0.5)
    back = message(x, nodes, 1, states, {})
    torch.testing.assert_close(back, x[..., 0].mT @ states[nodes[0].key] / 4**0.5)


def test_messages_reach_as_far_as_there_are_rounds() -> None:
    """The first layer of a chain of four learns of the last in three rounds, not in two."""
    space = WeightSpace(chain(2, 3, 4, 5, 6, 1))
    names = [cell.name for cell in space.cells]
    features = random_features(space, 1, 1)
    changed = tuple(x + (n == "6.bias") for n, x in zip(names, features, strict=True))
    for rounds, reached in ((2, False), (3, True)):
        network = perturbed(MessagePassing(space, 4, rounds=rounds))
        first, other = (network(x).by_group()["0"] for x in (features, changed))
        assert torch.allclose(first, other) != reached


def test_signs_leave_something_to_read() -> None:
    """Odd states are not 0, and what a sign-invariant head says differs from net to net."""
    space = WeightSpace(tanh())
    network = MessagePassing(space, 8).double()
    states = network(random_features(space, 2, 1))
    for group, x in states.by_group(odd=True).items():
        assert float(x.detach().std()) > 1e-3, group
    assert {g: tuple(x.shape) for g, x in states.by_group().items()} == {
        g: (2, 3, 8) for g in space.spec.groups
    }


def test_wide_inputs_are_projected() -> None:
    space = WeightSpace(chain(784, 16, 10))
    network = MessagePassing(space, 8, fixed_rank=4)
    head = MessageHead(network, 2)
    assert sum(p.numel() for m in (network, head) for p in m.parameters()) < 15_000
    features = tuple(x.float() for x in random_features(space, 2, 1))
    assert head(network(features)).shape == (2, 2)


def test_it_learns_what_no_linear_layer_sees() -> None:
    """The sign of w2 w1 of a random path is told from the whole product of two layers."""
    torch.manual_seed(0)
    space = WeightSpace(chain(1, 8, 8, 1))
    features = tuple(x.float() for x in random_features(space, 256, 1))
    names = [cell.name for cell in space.cells]
    w1, w2, w3 = (features[names.index(f"{n}.weight")][..., 0] for n in (0, 2, 4))
    labels = (torch.einsum("bi,bji,bj->b", w1, w2, w3) > 0).long()
    network = MessagePassing(space, 16)
    model = nn.Sequential(network, MessageHead(network, 2))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimiser.step()
    moved = space.act(space.random_elements(256, seed=0), features)
    assert float((model(moved).argmax(1) == labels).double().mean()) > 0.95


def test_bad_arguments_are_refused() -> None:
    space = WeightSpace(chain(2, 3, 1))
    for options in ({"channels": 0}, {"channels": 1, "rounds": 0}, {"channels": 1, "c_in": 0}):
        with pytest.raises(InputError, match="at least one channel and one round"):
            MessagePassing(space, **options)
    with pytest.raises(InputError, match="fixed_rank of at least 1"):
        MessagePassing(space, 2, fixed_rank=0)
    with pytest.raises(InputError, match="do not fit the spec with 1 channels"):
        MessagePassing(space, 2).double()(random_features(space, 1, 2))
