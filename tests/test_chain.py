"""Specs read from a state dict alone: plain chains, and what is refused as ambiguous."""

from collections.abc import Callable

import pytest
import torch
from networks import CNN, Graph, ResNet, group_norm_net, mlp, randomised
from oracles import assert_same_function
from torch import nn

from gpu_align import Permutation, SpecError, chain_spec, discover
from gpu_align._symmetry import _chain

CHAINS = {
    "mlp": (lambda: mlp([3, 4, 5, 2]), (2, 3)),
    "linear": (lambda: nn.Sequential(nn.Linear(3, 2)), (2, 3)),
    "one_unit": (lambda: mlp([3, 1, 4, 2]), (2, 3)),
    "cnn": (lambda: CNN(2, hidden=3, side=8), (1, 1, 8, 8)),
    "one_channel": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)),
        (2, 1, 4, 4),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 1)),
        (1, 2, 5),
    ),
    "without_bias": (
        lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)),
        (2, 3),
    ),
    "norm_first": (
        lambda: nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        (2, 3),
    ),
    "norm_last": (lambda: nn.Sequential(mlp([3, 4, 2]), nn.BatchNorm1d(2)), (2, 3)),
    "prelu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)), (2, 3)),
}


@pytest.mark.parametrize(("build", "shape"), CHAINS.values(), ids=CHAINS)
def test_chain_equals_discovery(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = randomised(build())
    inputs = torch.randn(shape, dtype=torch.float64)
    state = model.state_dict()
    read, traced = chain_spec(state), discover(model, inputs)
    assert [group.size for group in read.groups.values() if group.size > 1] == [
        group.size for group in traced.groups.values()
    ]
    names = dict(zip(read.groups, traced.groups, strict=True))
    for tensor, tensor_spec in traced.tensors.items():
        assert read.tensors[tensor].shape == tensor_spec.shape
        assert read.tensors[tensor].counted == tensor_spec.counted
        got = [[names[group] for group in axis.groups] for axis in read.tensors[tensor].axes]
        assert got == [list(axis.groups) for axis in tensor_spec.axes]
    assert_same_function(model, inputs, state, Permutation.random(read).apply(state))


def test_origin_warns_of_skip_connections() -> None:
    spec = chain_spec(mlp([3, 4, 2]).state_dict())
    assert "0 -> 2" in spec.origin
    assert "skip connections" in spec.origin
    assert {(pin.tensor, pin.axis) for pin in spec.pins} == {
        ("0.weight", 1),
        ("2.weight", 0),
        ("2.bias", 0),
    }


REFUSED = {
    "resnet": lambda: ResNet(2),
    "group_norm": group_norm_net,
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "recurrent": lambda: nn.LSTM(3, 4),
    "only_norms": lambda: nn.LayerNorm(3),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4)),
    "flattened": lambda: CNN(2, hidden=3, side=16),
    "no_chain": lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)),
    "nested": lambda: nn.Sequential(mlp([3, 4]), mlp([4, 4]), mlp([4, 2])),
    "empty": nn.Sequential,
}


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED)
def test_ambiguous_state_dict_is_refused_with_advice(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(SpecError, match="example_inputs") as caught:
        chain_spec(build().state_dict())
    assert "--model" in str(caught.value)
    assert "spec" in str(caught.value)


def test_conv_that_is_not_followed_by_all_its_places_is_refused() -> None:
    state = CNN(2, hidden=3, side=16).state_dict()
    state["fc1.weight"] = torch.zeros(3, 15)
    with pytest.raises(SpecError, match="fc1"):
        chain_spec(state)


@pytest.mark.parametrize("first", [True, False], ids=["channels_first", "channels_last"])
def test_a_flatten_in_either_order_asks_for_the_model(first: bool) -> None:
    """Both have the same names and shapes, and other symmetries."""

    def run(s: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = s.conv(x)
        return s.head((x if first else x.permute(0, 2, 3, 1)).flatten(1))

    model = Graph(run, conv=nn.Conv2d(1, 3, 3), head=nn.Linear(12, 2))
    with pytest.raises(SpecError, match=r"3 channels of 4 places each, .* first or last") as caught:
        chain_spec(model.state_dict())
    assert "--model" in str(caught.value)
    assert len(discover(model, torch.randn(2, 1, 4, 4)).groups) == 1


def test_equal_layers_that_fit_nowhere_do_not_multiply_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = {f"{number}.weight": torch.zeros(4, 4) for number in range(12)}
    state["x.weight"] = torch.zeros(6, 5)
    fits, calls = _chain._fits, 0

    def counted(*layers: object) -> bool:
        nonlocal calls
        calls += 1
        assert calls < 10_000, "the orders of equal layers are tried one by one"
        return fits(*layers)

    monkeypatch.setattr(_chain, "_fits", counted)
    with pytest.raises(SpecError):
        chain_spec(state)


@pytest.mark.parametrize("slopes", [1, 4])
def test_prelu_is_part_of_a_chain(slopes: int) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(slopes), nn.Linear(4, 2)).double()
    spec = chain_spec(model.state_dict())
    assert {name: group.size for name, group in spec.groups.items()} == {"0": 4}
    assert spec.verify(model, torch.randn(2, 3, dtype=torch.float64)) <= 1e-9
