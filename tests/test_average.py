"""Means of networks: what they are by definition, and that a network is its own."""

import math

import pytest
import torch
from networks import model_of, pair
from torch import Tensor, nn

from gpu_align import InputError, Permutation, SpecError, discover
from gpu_align._merge._average import average, slerp

PARTS = [0.0, 0.25, 1.0]


def states(name: str, count: int) -> list[dict[str, Tensor]]:
    return [model_of(name, seed)[0].state_dict() for seed in range(count)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_network_is_its_own_mean_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    [state] = states(name, 1)
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}
    found = [average([state] * 3), average([state] * 3, [0.1, 0.3, 0.7])]
    found += [slerp(state, state, at) for at in PARTS]
    for other in found:
        assert list(other) == list(state)
        for key, tensor in state.items():
            assert other[key].dtype == tensor.dtype
            assert torch.equal(other[key], tensor)
            assert other[key].data_ptr() != tensor.data_ptr()


def test_the_mean_is_weighted_and_counts_are_those_of_the_first() -> None:
    networks = states("cnn", 3)
    networks[0]["n1.num_batches_tracked"] = torch.tensor(5)
    found = average(networks, [1, 2, 5])
    for key, tensor in found.items():
        expected = (networks[0][key] + 2 * networks[1][key] + 5 * networks[2][key]) / 8
        if tensor.is_floating_point():
            assert torch.allclose(tensor, expected, rtol=1e-14, atol=1e-14)
        else:
            assert torch.equal(tensor, networks[0][key])


def test_it_is_rounded_once() -> None:
    rows = [{"w": torch.tensor([x], dtype=torch.bfloat16)} for x in (1.0, 1.0078125, 1.0078125)]
    assert average(rows)["w"].item() == 1.0078125  # one after another would give 1


def test_infinite_entries_that_all_have_stay() -> None:
    mask = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    both = [{"mask": mask, "w": torch.tensor([x])} for x in (1.0, 3.0)]
    for found in (average(both), slerp(*both, 0.5)):
        assert torch.equal(found["mask"], mask)
        assert found["w"].item() == 2


@pytest.mark.parametrize("at", PARTS)
def test_slerp_goes_along_the_circle(at: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.linalg.qr(torch.randn(5, 2, generator=generator, dtype=torch.float64))[0].T
    angle = 0.7
    b = math.cos(angle) * a + math.sin(angle) * b
    found = slerp({"w": a}, {"w": b}, at)["w"]
    assert float(found.norm()) == pytest.approx(1)
    assert math.acos(min(float(found @ a), 1.0)) == pytest.approx(at * angle, abs=1e-7)
    assert math.acos(min(float(found @ b), 1.0)) == pytest.approx((1 - at) * angle, abs=1e-7)


@pytest.mark.parametrize("other", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_slerp_is_straight_where_there_is_no_circle(other: list[float]) -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor(other)
    assert torch.allclose(slerp({"w": a}, {"w": b}, 0.25)["w"], 0.75 * a + 0.25 * b)
    assert torch.equal(slerp({"w": a}, {"w": b}, 1)["w"], b)


def test_tied_names_stay_tied() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
        model[2].weight = model[0].weight
        return model.double()

    models = [tied(), tied()]
    spec = discover(models[0], torch.zeros(1, 2, dtype=torch.int64))
    apart = [{k: t.clone() for k, t in model.state_dict().items()} for model in models]
    by_memory = average([model.state_dict() for model in models])
    by_spec = average(apart, spec=spec)
    for found in (by_memory, by_spec):
        assert found["0.weight"].data_ptr() == found["2.weight"].data_ptr()
        assert found["1.weight"].data_ptr() != found["0.weight"].data_ptr()


def test_the_mean_of_an_aligned_pair_commutes_with_permutations() -> None:
    networks = pair("cnn")
    permutation = Permutation.random(networks.spec, seed=0)
    moved = average([permutation.apply(networks.source), permutation.apply(networks.target)])
    mean = permutation.apply(average([networks.source, networks.target]))
    assert all(torch.equal(moved[key], mean[key]) for key in mean)


def test_bad_input_is_named() -> None:
    w = {"w": torch.ones(2)}
    bad: list[tuple[list[dict[str, Tensor]], list[float] | None, str]] = [
        ([], None, "at least one network"),
        ([w, {"v": torch.ones(2)}], None, "missing: 'w'"),
        ([w, {**w, "v": torch.ones(2)}], None, "unexpected: 'v'"),
        ([w, {"w": torch.ones(3)}], None, r"shape \[3\], expected \[2\]"),
        ([w, w], [1.0], "2 weights"),
        ([w, w], [1.0, -1.0], "none negative"),
        ([w, w], [0.0, 0.0], "not all zero"),
        ([w, w], [math.nan, 1.0], "2 weights"),
    ]
    for networks, weights, message in bad:
        with pytest.raises(InputError, match=message):
            average(networks, weights)
    with pytest.raises(InputError, match="finite number"):
        slerp(w, w, math.nan)
    with pytest.raises(SpecError, match="network 0"):
        average([w, w], spec=pair("mlp").spec)
