"""Partial merges: from the average to both networks side by side, as modules that run."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from architectures import (
    autoencoder,
    dense_net,
    depthwise_separable,
    group_norm_resnet,
    normal,
    resnext,
    se_resnet,
    u_net,
)
from marks import slow
from networks import CNN, Graph, ResNet, mlp, randomised
from oracles import run_double
from sequence_architectures import captioner, lstm, packed_vit, transformer_encoder
from torch import Tensor, nn

from gpu_align import InputError, ModelError, PermutationSpec, discover
from gpu_align._merge._average import average
from gpu_align._merge._partial import PartialMerge, partial_merge

Case = tuple[nn.Module, object]
State = dict[str, Tensor]


def depthwise() -> Case:
    """A depthwise convolution, its transpose and their norms between two dense ones."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 2, groups=3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.ConvTranspose2d(3, 3, 2, groups=3),
        nn.PReLU(3),
        nn.ConvTranspose2d(3, 4, 2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )
    return randomised(model), normal(2, 1, 6, 6)


WIDENED: dict[str, Callable[[], Case]] = {
    "mlp": lambda: (randomised(mlp([3, 4, 5, 2])), normal(4, 3)),
    "tanh": lambda: (randomised(mlp([3, 4, 5, 2], nn.Tanh)), normal(4, 3)),
    "cnn": lambda: (randomised(CNN(2, hidden=3, side=16)), normal(2, 1, 16, 16)),
    "resnet": lambda: (randomised(ResNet(2)), normal(2, 1, 8, 8)),
    "se_resnet": se_resnet,
    "depthwise": depthwise,
    "dense_net": dense_net,
    "u_net": u_net,
}
"""All groups of these can be widened."""
IN_PART: dict[str, Callable[[], Case]] = {
    "group_norm": group_norm_resnet,
    "resnext": resnext,
    "multiplied": depthwise_separable,
    "autoencoder": autoencoder,
    "lstm": lstm,
    "captioner": captioner,
    "encoder": lambda: transformer_encoder(norm_first=True),
    "vit": lambda: packed_vit(fused=True),
}
"""Some groups of these have to be merged as a whole."""
SHORT = ["mlp", "cnn", "depthwise", "dense_net", "group_norm", "lstm"]


@functools.cache
def two(name: str) -> tuple[nn.Module, object, PermutationSpec, State, State]:
    """Return a module, its inputs and spec, and two random networks."""
    model, inputs = (WIDENED | IN_PART)[name]()
    other = randomised(copy.deepcopy(model), seed=7)
    return model, inputs, discover(model, inputs), model.state_dict(), other.state_dict()


def run(found: PartialMerge, inputs: object) -> list[Tensor]:
    return run_double(found.model, inputs, found.model.state_dict())


def assert_near(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= 1e-9 * float(one.abs().max())


@pytest.mark.parametrize("name", slow(WIDENED, but=SHORT))
def test_all_apart_is_the_mean_of_the_outputs(name: str) -> None:
    model, inputs, spec, a, b = two(name)
    found = partial_merge(a, b, spec, model, inputs, budget=2)
    assert not found.whole
    assert found.width == 2
    assert {g: len(apart) for g, apart in found.apart.items()} == {
        g: spec.units(g) for g in spec.groups
    }
    outputs = zip(run_double(model, inputs, a), run_double(model, inputs, b), strict=True)
    assert_near([(x + y) / 2 for x, y in outputs], run(found, inputs))


@pytest.mark.parametrize("name", slow([*WIDENED, *IN_PART], but=SHORT))
def test_nothing_apart_is_the_average(name: str) -> None:
    model, inputs, spec, a, b = two(name)
    found = partial_merge(a, b, spec, model, inputs, budget=1)
    assert found.width == 1
    assert all(len(apart) == 0 for apart in found.apart.values())
    state, mean = found.model.state_dict(), average([a, b], spec=spec)
    assert state.keys() == mean.keys()
    assert all(torch.allclose(state[key], mean[key], rtol=1e-14, atol=1e-14) for key in mean)


@pytest.mark.parametrize("name", slow([*WIDENED, *IN_PART], but=SHORT))
def test_a_network_with_itself_stays_what_it_is(name: str) -> None:
    model, inputs, spec, a, _ = two(name)
    found = partial_merge(a, a, spec, model, inputs, budget=1.4)
    assert_near(run_double(model, inputs, a), run(found, inputs))
    units = sum(spec.units(g) for g in found.apart)
    assert 0.4 * units - 1 < sum(map(len, found.apart.values())) <= 0.4 * units + 1e-9


@pytest.mark.parametrize("name", slow(IN_PART, but=SHORT))
def test_what_cannot_be_widened_is_named_and_the_rest_is_widened(name: str) -> None:
    model, inputs, spec, a, b = two(name)
    found = partial_merge(a, b, spec, model, inputs, budget=2)
    assert found.whole
    assert all(found.whole.values())
    assert found.whole.keys() | found.apart.keys() == spec.groups.keys()
    assert found.whole.keys().isdisjoint(found.apart)
    assert all(bool(torch.isfinite(output).all()) for output in run(found, inputs))


def test_layers_say_their_sizes() -> None:
    model, inputs, spec, a, b = two("cnn")
    wide = partial_merge(a, b, spec, model, inputs, budget=2).model
    assert (wide.c1.in_channels, wide.c1.out_channels, wide.n1.num_features) == (1, 4, 4)
    assert (wide.c2.in_channels, wide.c2.out_channels, wide.n2.num_features) == (4, 8, 8)
    assert (wide.fc1.in_features, wide.fc1.out_features) == (2 * 4 * 4, 6)
    assert (wide.fc2.in_features, wide.fc2.out_features) == (6, 10)
    assert model.c1.out_channels == 2  # the module itself is left as it was
    assert {k: t.shape for k, t in model.state_dict().items()} == {k: t.shape for k, t in a.items()}
    model, inputs, spec, a, b = two("depthwise")
    wide = partial_merge(a, b, spec, model, inputs, budget=2).model
    for number in (2, 5):
        assert (wide[number].groups, wide[number].in_channels, wide[number].out_channels) == (
            6,
        ) * 3
    assert (wide[6].num_parameters, wide[7].in_channels, wide[7].out_channels) == (6, 6, 8)


def test_the_worst_matched_units_stay_apart() -> None:
    model = randomised(mlp([3, 6, 4, 2]))
    inputs = normal(4, 3)
    spec = discover(model, inputs)
    a = model.state_dict()
    b = {key: tensor.clone() for key, tensor in a.items()}
    b["0.weight"][4] *= -1  # unit 4 of the first group is another one, and unit 1 of the second
    b["0.bias"][4] *= -1
    b["2.weight"][1] *= -1
    b["2.bias"][1] *= -1
    found = partial_merge(a, b, spec, model, inputs, budget=1.2)
    first, second = (next(g for g, _ in _on(spec, f"{n}.bias")) for n in (0, 2))
    assert found.apart[first].tolist() == [4]
    assert found.apart[second].tolist() == [1]
    scores = {second: torch.tensor([0.9, 0.8, 0.1, 0.2], dtype=torch.float64)}
    scores[first] = torch.ones(6, dtype=torch.float64)
    found = partial_merge(a, b, spec, model, inputs, budget=1.2, scores=scores)
    assert (found.apart[first].tolist(), found.apart[second].tolist()) == ([], [2, 3])


def _on(spec: PermutationSpec, name: str) -> list[tuple[str, int]]:
    return [(group, 0) for group in spec.tensors[name].groups]


def test_weights_are_placed_as_defined() -> None:
    """One hidden unit of three apart: every entry by hand."""
    model = randomised(mlp([2, 3, 1]))
    inputs = normal(4, 2)
    spec = discover(model, inputs)
    [group] = spec.groups
    a, b = model.state_dict(), randomised(mlp([2, 3, 1]), seed=5).state_dict()
    scores = {group: torch.tensor([1.0, 0.0, 1.0])}
    state = partial_merge(a, b, spec, model, inputs, budget=4 / 3, scores=scores).model.state_dict()
    mean = average([a, b])
    rows = [mean["0.weight"][0], a["0.weight"][1], mean["0.weight"][2], b["0.weight"][1]]
    assert torch.allclose(state["0.weight"], torch.stack(rows), rtol=1e-14, atol=1e-14)
    read = [mean["2.weight"][:, 0], a["2.weight"][:, 1] / 2]
    read += [mean["2.weight"][:, 2], b["2.weight"][:, 1] / 2]
    assert torch.allclose(state["2.weight"], torch.stack(read, 1), rtol=1e-14, atol=1e-14)


def test_dtypes_ties_and_gradients_are_those_of_the_module() -> None:
    model = Graph(
        lambda s, x: s.up(torch.relu(s.inner(torch.relu(s.down(x))))) + s.twice(s.down(x).relu()),
        down=nn.Linear(3, 5),
        inner=nn.Linear(5, 5, bias=False),
        up=nn.Linear(5, 2),
        twice=nn.Linear(5, 2),
    )
    model.twice.weight = model.up.weight
    model.down.bias.requires_grad_(False)
    inputs = normal(4, 3).float()
    spec = discover(model, inputs)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wide = partial_merge(state, state, spec, model, inputs, budget=2).model
    assert wide.twice.weight is wide.up.weight
    assert wide.up.weight.shape != model.up.weight.shape
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert not wide.down.bias.requires_grad
    assert wide.down.weight.requires_grad


def test_a_size_in_the_forward_keeps_its_group_whole() -> None:
    model = Graph(
        lambda s, x: s.last(torch.relu(s.second(torch.relu(s.first(x)).reshape(-1, 4)))),
        first=nn.Linear(3, 4),
        second=nn.Linear(4, 5),
        last=nn.Linear(5, 2),
    )
    model, inputs = randomised(model), normal(6, 3)
    spec = discover(model, inputs)
    found = partial_merge(model.state_dict(), model.state_dict(), spec, model, inputs, budget=2)
    fixed = spec.tensors["first.bias"].groups
    assert set(found.whole) == set(fixed)
    assert set(found.apart) == set(spec.tensors["second.bias"].groups)


def test_bad_input_is_named() -> None:
    model, inputs, spec, a, b = two("mlp")
    group = next(iter(spec.groups))
    for budget in (0.9, 2.1, float("nan")):
        with pytest.raises(InputError, match="budget from 1 to 2"):
            partial_merge(a, b, spec, model, inputs, budget=budget)
    for scores in ({group: torch.ones(99)}, {"nobody": torch.ones(4)}):
        with pytest.raises(InputError, match="expected scores"):
            partial_merge(a, b, spec, model, inputs, scores=scores)
    with pytest.raises(InputError, match="does not fit"):
        partial_merge(a, {"0.weight": a["0.weight"]}, spec, model, inputs)
    with pytest.raises(InputError, match="module does not have"):
        partial_merge(a, b, spec, mlp([3, 4, 2]), inputs)
    with pytest.raises(ModelError, match="forward fails"):
        partial_merge(a, b, spec, model, normal(4, 9))
