"""Weight spaces: networks as features and back, symmetries in bulk, statistics."""

import pytest
import torch
from learn_cases import SPECS, chain, random_states, spec_of, tanh, written
from marks import slow
from networks import FAMILIES, PAIRS, mlp
from torch import Tensor

from gpu_align import InputError, Permutation, PermutationSpec, SpecError
from gpu_align.learn import Elements, WeightSpace

QUICK = [*PAIRS, "resnext", "siren"]
SMALL = [*FAMILIES, "recurrent", "trilinear", "cnn", "resnext", "siren"]


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0)


def stack(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@pytest.mark.parametrize("name", slow(SPECS, but=QUICK))
def test_round_trip_is_exact(name: str) -> None:
    spec = spec_of(name)
    states = random_states(spec, 3)
    space = WeightSpace(spec, buffers=True)
    features = space.from_state_dicts(states)
    assert [tuple(x.shape) for x in features] == [(3, *c.sizes, c.fixed) for c in space.cells]
    assert sum(x[0].numel() for x in features) == sum(t.numel() for t in states[0].values())
    assert_equal(space.to_state_dicts(features), stack(states))
    again = space.from_state_dicts(stack(states))
    assert all(torch.equal(x, y) for x, y in zip(features, again, strict=True))


def test_one_network_is_a_batch_of_one() -> None:
    state = mlp([2, 3, 1]).state_dict()
    space = WeightSpace(chain(2, 3, 1))
    assert_equal(space.to_state_dicts(space.from_state_dicts(state)), stack([dict(state)]))


def test_features_share_no_memory_with_the_networks() -> None:
    state = mlp([2, 3, 1]).state_dict()
    space = WeightSpace(chain(2, 3, 1))
    for x in space.from_state_dicts(state):
        x.zero_()
    assert bool(state["0.weight"].any())


def test_buffers_and_dtypes_come_from_the_networks_that_are_named() -> None:
    spec = spec_of("cnn")
    states = random_states(spec, 2)
    for state in states:
        for name in state:
            if name.endswith("num_batches_tracked"):
                state[name] = torch.tensor(3)
            elif name.startswith("fc"):
                state[name] = state[name].half()
    space = WeightSpace(spec)
    features = space.from_state_dicts(states)
    assert all(x.dtype == torch.float64 for x in features)  # they differ
    parameters = {name for name, tensor in spec.tensors.items() if tensor.counted}
    assert set(space.to_state_dicts(features)) == parameters
    assert_equal(space.to_state_dicts(features, like=states), stack(states))
    assert_equal(space.to_state_dicts(features, like=stack(states)), stack(states))


def test_tied_names_are_written_together() -> None:
    plain = chain(2, 3, 1)
    spec = PermutationSpec(plain.groups, plain.tensors, ties={"again": "0.bias"})
    state = {**mlp([2, 3, 1]).state_dict()}
    space = WeightSpace(spec)
    made = space.to_state_dicts(space.from_state_dicts({**state, "again": state["0.bias"]}))
    torch.testing.assert_close(made["again"], state["0.bias"][None], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["packed_heads", "fixed_heads", "trilinear", "mlp"])
def test_gradients_pass_both_ways(name: str) -> None:
    space = WeightSpace(spec_of(name))
    states = stack(random_states(space.spec, 2))
    for tensor in states.values():
        tensor.requires_grad_()
    made = space.to_state_dicts(space.from_state_dicts(states))
    sum(tensor.pow(3).sum() for tensor in made.values()).backward()
    for name, tensor in states.items():
        if space.spec.tensors[name].counted:
            torch.testing.assert_close(tensor.grad, 3 * tensor.detach() ** 2)


@pytest.mark.parametrize("name", slow(SPECS, but=QUICK))
def test_elements_act_as_their_permutations_do(name: str) -> None:
    spec = spec_of(name)
    states = random_states(spec, 3)
    space = WeightSpace(spec, buffers=True)
    elements = space.random_elements(3, seed=1)
    permutations = elements.permutations()
    expected = [p.apply(state) for p, state in zip(permutations, states, strict=True)]
    moved = space.act(elements, space.from_state_dicts(states))
    assert_equal(space.to_state_dicts(moved), stack(expected))
    assert_equal(space.to_state_dicts(space.act(elements.inverse(), moved)), stack(states))
    same = space.act(Elements.of(permutations), space.from_state_dicts(states))
    assert all(torch.equal(x, y) for x, y in zip(moved, same, strict=True))


def test_one_element_is_for_all_networks() -> None:
    space = WeightSpace(spec_of("signed_heads"))
    states = random_states(space.spec, 3)
    permutation = Permutation.random(space.spec, seed=0)
    moved = space.act(Elements.of([permutation]), space.from_state_dicts(states))
    assert_equal(space.to_state_dicts(moved), stack([permutation.apply(s) for s in states]))


def test_channels_go_along_with_their_entries() -> None:
    space = WeightSpace(spec_of("signed_heads"))
    elements = space.random_elements(2, seed=0)
    parts = [space.from_state_dicts(random_states(space.spec, 2, seed)) for seed in (0, 1)]
    joined = tuple(torch.stack(pair, -1).flatten(-2) for pair in zip(*parts, strict=True))
    moved = space.act(elements, joined, channels=2)
    each = [space.act(elements, part) for part in parts]
    expected = [torch.stack(pair, -1).flatten(-2) for pair in zip(*each, strict=True)]
    assert all(torch.equal(x, y) for x, y in zip(moved, expected, strict=True))


def test_draws_are_uniform_and_differ() -> None:
    space = WeightSpace(spec_of("signed_heads"))
    elements = space.random_elements(6000, seed=0)
    codes = elements.perms["e"] @ torch.tensor([9, 3, 1])
    counts = torch.unique(codes, return_counts=True)[1]
    assert len(counts) == 6
    assert bool(((counts - 1000).abs() < 150).all())  # five standard deviations
    inside = elements.perms["qk"].reshape(-1, 2, 2)
    assert bool((inside // 2 == elements.perms["head"][:, :, None]).all())
    flips = (inside[:, :, 0] % 2).double()
    assert abs(float(torch.corrcoef(flips.T)[0, 1])) < 0.06  # heads have orders of their own
    for sign in elements.signs.values():
        assert bool((sign.double().mean(0).abs() < 0.06).all())


def test_signs_can_be_left_out() -> None:
    spec = tanh()
    space = WeightSpace(spec, signs=False)
    assert not any(cell.is_odd for cell in space.cells)
    assert space.random_elements(2, seed=0).signs == {}
    assert any(cell.is_odd for cell in WeightSpace(spec).cells)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("per", ["tensor", "place"])
def test_standardising_commutes_with_the_symmetries(name: str, per: str) -> None:
    space = WeightSpace(spec_of(name))
    states = random_states(space.spec, 4)
    for state in states:
        for number, key in enumerate(state):
            state[key] = state[key] * (number + 1) + 2
    features = space.from_state_dicts(states)
    statistics = space.statistics(features, per)
    elements = space.random_elements(4, seed=0)
    first = space.act(elements, space.standardise(features, statistics))
    then = space.standardise(space.act(elements, features), statistics)
    for x, y in zip(first, then, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-14, atol=1e-14)
    moved = space.statistics(space.act(elements, features), per)
    for x, y in zip((*statistics.mean, *statistics.std), (*moved.mean, *moved.std), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    back = space.unstandardise(space.standardise(features, statistics), statistics)
    for x, y in zip(back, features, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)


def test_statistics_per_tensor_and_per_place() -> None:
    space = WeightSpace(chain(2, 3, 1))
    state = {
        "0.weight": torch.tensor([[0.0, 4.0], [2.0, 4.0], [4.0, 4.0]]),
        "0.bias": torch.full((3,), 0.1),
        "2.weight": torch.zeros(1, 3),
        "2.bias": torch.ones(1),
    }
    features = space.from_state_dicts(state)
    whole, places = space.statistics(features), space.statistics(features, "place")
    torch.testing.assert_close(whole.mean[0], torch.tensor([3.0, 3.0]).double())
    torch.testing.assert_close(whole.std[0], torch.tensor([7 / 3, 7 / 3]).double().sqrt())
    torch.testing.assert_close(places.mean[0], torch.tensor([2.0, 4.0]).double())
    torch.testing.assert_close(places.std[0], torch.tensor([(8 / 3) ** 0.5, 1.0]).double())
    assert [float(std[0]) for std in whole.std[1:]] == [1.0, 1.0, 1.0]  # equal values


def test_signed_entries_have_no_mean() -> None:
    space = WeightSpace(tanh())
    features = tuple(x + 5 for x in space.from_state_dicts(random_states(space.spec, 2)))
    means = zip(space.cells, space.statistics(features).mean, strict=True)
    assert all(bool(mean.any()) != cell.is_odd for cell, mean in means)


def test_units_inside_fixed_ones_have_cells_of_their_own() -> None:
    inside = '{"size": 2, "parent": "head"}'
    space = WeightSpace(
        written(
            f'"head": {{"size": 3, "fixed": true}}, "d": {inside}',
            '"w": [{"product": ["head", "d"]}, 5], "slope": ["head"]',
        )
    )
    assert [(cell.name, cell.sizes, cell.fixed) for cell in space.cells] == [
        *[("w", (2,), 5)] * 3,
        ("slope", (), 3),
    ]
    assert len({cell.axes[0].key for cell in space.cells[:3]}) == 3


def test_tensors_without_entries_have_no_cell() -> None:
    space = WeightSpace(written('"a": 2', '"w": ["a", 0], "b": ["a"]'))
    assert [cell.name for cell in space.cells] == ["b"]


def test_bad_input_is_refused_with_what_to_do() -> None:
    space = WeightSpace(chain(2, 3, 1))
    states = random_states(space.spec, 2)
    features = space.from_state_dicts(states)
    with pytest.raises(SpecError, match="unexpected: 'extra'"):
        space.from_state_dicts([{**states[0], "extra": torch.ones(1)}])
    with pytest.raises(InputError, match="at least one network"):
        space.from_state_dicts([])
    with pytest.raises(InputError, match="at least one network"):
        space.statistics(tuple(x[:0] for x in features))
    with pytest.raises(InputError, match="got 3 tensors for 4 cells"):
        space.to_state_dicts(features[:3])
    with pytest.raises(InputError, match=r"got \[b, 3, 2\] for the cell 0 .* expected \[b, 3, 4\]"):
        space.act(space.random_elements(2), features, channels=2)
    with pytest.raises(InputError, match="expected 3 networks"):
        space.act(space.random_elements(3), features)
    with pytest.raises(InputError, match="leave one out"):
        space.random_elements(1, seed=0, generator=torch.Generator())
