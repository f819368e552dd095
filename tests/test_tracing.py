"""Tracing: what is pinned and why, ties, buffers, modes, programs, and specs that are wrong."""

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from marks import each_once, slow
from networks import CNN, Graph, ResNet, mlp, model_of, randomised
from oracles import assert_same_function
from strategies import convolutional_networks, dense_networks
from torch import Tensor, nn

from gpu_align import ModelError, Permutation, PermutationSpec, SpecError, discover
from gpu_align._symmetry._axis import Axis


def between(run: Callable[[Tensor], Tensor]) -> nn.Module:
    return randomised(
        Graph(lambda s, x: s.head(run(s.first(x))), first=nn.Linear(3, 4), head=nn.Linear(4, 2))
    )


def reasons(spec: PermutationSpec, tensor: str) -> dict[int, str]:
    return {pin.axis: pin.reason for pin in spec.pins if pin.tensor == tensor}


PINNING = {
    "cumsum": lambda h: h.cumsum(1),
    "flip": lambda h: h.flip(1),
    "roll": lambda h: h.roll(1, 1),
    "renorm": lambda h: h.renorm(2, 0, 1.0),
    "logcumsumexp": lambda h: h.logcumsumexp(1),
    "cummax": lambda h: h.cummax(1).values,
    "searchsorted": lambda h: h * torch.searchsorted(h[:, 0].sort().values, h),
    "tril": torch.tril,
    "index_select": lambda h: h.index_select(1, torch.tensor([1, 0, 3, 2])),
}


@pytest.mark.parametrize("op", PINNING)
def test_op_without_a_rule_pins_and_is_named(op: str) -> None:
    spec = discover(between(PINNING[op]), torch.randn(3, 3, dtype=torch.float64))
    assert not spec.groups
    assert op in reasons(spec, "first.weight")[0]
    assert op in reasons(spec, "head.weight")[1]


def test_only_what_an_unknown_op_touches_is_pinned() -> None:
    model = randomised(
        Graph(
            lambda s, x: s.net[4](torch.tanh(s.net[2](torch.tanh(s.net[0](x)).cumsum(1)))),
            net=mlp([3, 4, 5, 2]),
        )
    )
    spec = discover(model, torch.randn(2, 3, dtype=torch.float64))
    assert [group.size for group in spec.groups.values()] == [5]


@pytest.mark.parametrize("groups", [2, 4], ids=["grouped", "depthwise"])
def test_grouped_convolution_pins_or_keeps_the_function(groups: int) -> None:
    model = randomised(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=groups), nn.Conv2d(4, 2, 1))
    )
    inputs = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    spec = discover(model, inputs)
    named = {reason for pin in spec.pins for reason in [pin.reason] if "groups=" in reason}
    assert spec.groups or named == {f"op conv2d with groups={groups}"}
    state = model.state_dict()
    assert_same_function(model, inputs, state, Permutation.random(spec).apply(state))


def test_pins_name_inputs_outputs_and_places() -> None:
    spec = discover(*model_of("cnn"))
    assert reasons(spec, "fc2.weight") == {0: "graph output"}
    assert reasons(spec, "fc2.bias") == {0: "graph output"}
    assert reasons(spec, "c2.weight") == {2: "op conv2d", 3: "op conv2d"}
    assert 1 not in reasons(spec, "c1.weight")  # one input channel: nothing to pin
    assert reasons(discover(*model_of("mlp")), "0.weight") == {1: "graph input"}


def test_axes_of_a_flattened_map() -> None:
    spec = discover(*model_of("cnn"))
    assert spec.tensors["fc1.weight"].axes[1].to_json() == {"product": ["c3^-1", 4]}
    assert spec.tensors["n3.running_var"].axes == (Axis.of_group("c3", 4),)
    assert not spec.tensors["n3.running_var"].counted
    assert spec.tensors["n3.weight"].counted
    assert not spec.tensors["n3.num_batches_tracked"].counted


def test_axes_of_group_normalised_channels() -> None:
    spec = discover(*model_of("groupnorm"))
    groups, channels = spec.groups
    assert spec.groups[channels].parent == groups
    assert spec.tensors["norm.weight"].axes[0].to_json() == {"product": [groups, channels]}
    assert spec.tensors["fc.weight"].axes[1].to_json() == {"product": [groups, channels, 4]}


def test_residual_stream_is_one_group() -> None:
    spec = discover(*model_of("resnet"))
    stream = {name for name, _ in spec.perm_to_axes("conv")}
    assert {"conv.weight", "bn.bias", "l1.conv2.weight", "l1.bn2.weight"} <= stream
    assert {"l2.conv1.weight", "l2.short.0.weight"} <= stream
    assert spec.groups["conv"].size == 2


def test_embedding_moves_features_and_keeps_the_vocabulary() -> None:
    model = randomised(
        Graph(
            lambda s, x: s.head(torch.tanh(s.embed(x)).mean(1)),
            embed=nn.Embedding(7, 4),
            head=nn.Linear(4, 2),
        )
    )
    tokens = torch.tensor([[0, 3, 6], [1, 1, 2]])
    spec = discover(model, tokens)
    assert [group.size for group in spec.groups.values()] == [4]
    assert reasons(spec, "embed.weight") == {0: "op embedding"}
    state = model.state_dict()
    assert_same_function(model, tokens, state, Permutation.random(spec).apply(state))


def test_shared_parameter_is_one_tensor_with_two_names() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = randomised(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), first, nn.ReLU(), second, nn.Linear(4, 2))
    )
    spec = discover(model, torch.randn(2, 3, dtype=torch.float64))
    assert spec.ties == {"4.weight": "2.weight"}
    assert "4.weight" not in spec.tensors
    assert spec.keys == set(model.state_dict())
    assert spec.tensors["2.weight"].counted
    assert [group.size for group in spec.groups.values()] == [4]


def test_unused_parameters_and_constant_buffers_are_pinned() -> None:
    model = Graph(
        lambda s, x: s.head(torch.tanh(s.first(x) * s.mask)),
        first=nn.Linear(3, 4),
        spare=nn.Linear(5, 6),
        head=nn.Linear(4, 2),
    )
    model.register_buffer("mask", torch.rand(4), persistent=False)
    spec = discover(model, torch.randn(2, 3))
    assert not spec.groups
    assert reasons(spec, "first.bias") == {0: "non-persistent buffer"}
    assert reasons(spec, "spare.weight") == dict.fromkeys((0, 1), "not used in forward")
    assert spec.tensors["spare.weight"].counted
    model.register_buffer("mask", torch.rand(4))
    spec = discover(model, torch.randn(2, 3))
    assert {("first.weight", 0), ("mask", 0)} <= set(spec.perm_to_axes("first"))
    assert not spec.tensors["mask"].counted


def test_constant_in_forward_pins() -> None:
    spec = discover(between(lambda h: h * torch.arange(4.0)), torch.randn(2, 3).double())
    assert not spec.groups


def test_every_mode_of_training_comes_back() -> None:
    model = CNN(2, hidden=3, side=16)
    model.n2.eval()
    before = {name: module.training for name, module in model.named_modules()}
    statistics = copy.deepcopy(model.state_dict())
    discover(model, torch.randn(2, 1, 16, 16))
    assert {name: module.training for name, module in model.named_modules()} == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, statistics[name])
    with pytest.raises(ModelError):
        discover(model, torch.randn(2, 3))
    assert {name: module.training for name, module in model.named_modules()} == before


def branching(x: Tensor) -> Tensor:
    return x if bool(x.sum() > 0) else -x


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (mlp([3, 4, 2]), torch.randn(2, 5), "forward fails"),
        (mlp([3, 4, 2]), "text", "example inputs"),
        (between(branching), torch.randn(2, 3).double(), "cannot trace"),
    ],
    ids=["shape", "kind", "data_dependent"],
)
def test_model_that_cannot_be_traced_is_refused(
    model: nn.Module, inputs: object, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        discover(model, inputs)


def test_positional_argument_may_be_a_dict() -> None:
    model = Graph(
        lambda s, x, more: s.head(F.relu(s.a(x) + more["y"].sum())),
        a=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )
    spec = discover(model, (torch.randn(2, 3), {"y": torch.randn(2)}))
    assert [group.size for group in spec.groups.values()] == [4]


@pytest.mark.parametrize("kind", ["tuple", "dict", "list"])
def test_example_inputs_come_in_several_forms(kind: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"out": self.head(F.relu(self.a(x) + self.b(y)))}

    x, y = torch.randn(2, 3), torch.randn(2, 2)
    inputs = {"tuple": (x, y), "dict": {"x": x, "y": y}, "list": [x, y]}[kind]
    assert [group.size for group in discover(Two(), inputs).groups.values()] == [4]


@pytest.mark.parametrize(
    ("given_inputs", "name"),
    each_once([True, False], ["mlp", "cnn", "resnet", "groupnorm"], but=["mlp", "cnn"]),
)
@pytest.mark.parametrize(
    "dtype", slow([torch.float32, torch.float64], but=[torch.float64]), ids=str
)
def test_exported_program_gives_the_same_spec(
    name: str, given_inputs: bool, dtype: torch.dtype
) -> None:
    model, inputs = model_of(name)
    model, inputs = model.to(dtype), inputs.to(dtype)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on saving and loading
        torch.export.save(torch.export.export(model, (inputs,)), file)
        program = torch.export.load(io.BytesIO(file.getvalue()))
    spec = discover(program, inputs if given_inputs else None)
    expected = discover(model, inputs)
    assert spec.groups == expected.groups
    assert spec.tensors == expected.tensors


@pytest.mark.parametrize(
    "name", slow(["mlp", "cnn", "resnet", "groupnorm"], but=["mlp", "groupnorm"])
)
def test_wrong_spec_fails_its_verification(name: str) -> None:
    model, inputs = model_of(name)
    spec = discover(model, inputs)
    assert spec.verify(model, inputs) <= 1e-9
    for tensor, tensor_spec in spec.tensors.items():
        for number, axis in enumerate(tensor_spec.axes):
            if axis.groups and max(spec.groups[group].size for group in axis.groups) > 2:
                axes = list(tensor_spec.axes)
                axes[number] = Axis.fixed(axis.size)
                wrong = {**spec.tensors, tensor: replace(tensor_spec, axes=tuple(axes))}
                with pytest.raises(SpecError, match="does not describe"):
                    replace(spec, tensors=wrong).verify(model, inputs)


@pytest.mark.parametrize(
    "run",
    [
        lambda y: torch.stack([y, -y]).log(),
        lambda y: torch.stack([y, -y]).relu().log(),
        lambda y: (y, torch.stack([y, -y]).log()),
    ],
    ids=["nan", "infinite", "second_output"],
)
def test_outputs_that_are_not_finite_hide_no_wrong_spec(run: Callable[[Tensor], object]) -> None:
    model, inputs = between(torch.tanh), torch.randn(4, 3, dtype=torch.float64)
    spec = discover(model, inputs)
    outer = Graph(lambda s, x: run(s.net(x)), net=model)
    right = {f"net.{name}": tensor for name, tensor in spec.tensors.items()}
    assert replace(spec, tensors=right).verify(outer, inputs) <= 1e-9
    fixed = replace(spec.tensors["head.weight"], axes=(Axis.fixed(2), Axis.fixed(4)))
    with pytest.raises(SpecError, match="does not describe"):
        replace(spec, tensors={**right, "net.head.weight": fixed}).verify(outer, inputs)


ANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
RANDOM = {"dense": dense_networks(), "convolutional": convolutional_networks()}


@pytest.mark.parametrize("kind", slow(RANDOM, but=["dense"]))
@pytest.mark.parametrize("examples", slow([6, 60], but=[6]))
def test_random_networks_keep_their_function(kind: str, examples: int) -> None:
    @settings(ANY, max_examples=examples)
    @given(network=RANDOM[kind])
    def check(network: tuple[nn.Module, Tensor]) -> None:
        assert_discovery_holds(*network)

    check()


def assert_discovery_holds(model: nn.Module, inputs: Tensor) -> None:
    spec = discover(model, inputs)
    assert spec.verify(model, inputs, draws=1) <= 1e-9
    state = model.state_dict()
    moved = Permutation.random(spec).apply(state)
    assert_same_function(model, inputs, state, moved)
    assert PermutationSpec.from_json(spec.to_json()) == spec


def test_groups_are_named_after_the_module_that_uses_them_first() -> None:
    names = list(discover(ResNet(2), torch.randn(1, 1, 8, 8)).groups)
    assert names[:3] == ["conv", "l1.conv1", "l2.conv1"]
    assert len(set(names)) == 8
