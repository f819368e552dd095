"""merge: planted copies merge to themselves, "auto" is best on what it looks at, bad input."""

import copy
import functools
import json
import math
from typing import Any

import architectures as own
import hf_architectures as hf
import pytest
import sequence_architectures as sequence
import torch
from marks import slow
from networks import CNN, ResNet, mlp, randomised
from torch import Tensor, nn

from gpu_align import InputError, Permutation, PermutationSpec, discover, merge, repair
from gpu_align._merge import WAYS
from gpu_align._network import Data, load_digits

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attributes? .*_flat_weights.* assigned during export:UserWarning"
)
FAST: dict[str, Any] = {"search": "descent", "device": "cpu"}


def normal(*shape: int) -> Tensor:
    """Return standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def data_for(model: nn.Module, inputs: object, count: int = 40) -> tuple[Tensor, Tensor]:
    """Return examples of the shape of the inputs of a model, and what it makes of them."""
    assert isinstance(inputs, Tensor)
    x = normal(count, *inputs.shape[1:])
    if not inputs.is_floating_point():
        generator = torch.Generator().manual_seed(5)
        x = torch.randint(7, x.shape, generator=generator)
    with torch.no_grad():
        return x, first(model.eval()(x))


def first(outputs: Any) -> Tensor:
    """Return the first output of a model, whatever it is."""
    made = outputs if isinstance(outputs, Tensor | tuple) else outputs.to_tuple()
    return made if isinstance(made, Tensor) else made[0]


def loss(outputs: Any, targets: Tensor) -> Tensor:
    """Return how far the first output is from that of the network that is looked for."""
    return (first(outputs) - targets).square().mean()


MODELS = {
    "mlp": lambda: (randomised(mlp([5, 8, 7, 3])), normal(2, 5)),
    "cnn": lambda: (randomised(CNN(2, hidden=3, side=16)), normal(2, 1, 16, 16)),
    "resnet": lambda: (randomised(ResNet(2)), normal(2, 1, 8, 8)),
    "gpt2": functools.partial(hf.gpt2, "sdpa"),
    "lstm": sequence.lstm,
    "depthwise": own.depthwise_separable,
}


# Not "naive": a permuted copy and the network are far apart as they are given.
CASES = [(name, way) for name in MODELS for way in WAYS if way != "naive"]
QUICK = [case for case in CASES if case[0] == "mlp"]
QUICK += [("cnn", "norms"), ("cnn", "repair"), ("lstm", "average")]


@functools.cache
def planted(name: str) -> tuple[nn.Module, nn.Module, PermutationSpec, tuple[Tensor, Tensor]]:
    """Return a network, its copy with its units in another order, their spec, and data."""
    model, inputs = MODELS[name]()
    x, _ = data_for(model, inputs)
    # Statistics that are measured on the data already, so that there is nothing to measure anew.
    model.load_state_dict(repair(model, [x], device="cpu").state_dict)
    x, y = data_for(model, inputs)
    other = copy.deepcopy(model)
    spec = discover(model, inputs, verify=False)
    Permutation.random(spec, seed=3).apply(other)
    return model, other, spec, (x, y)


@pytest.mark.parametrize("case", slow(CASES, but=QUICK), ids="-".join)
def test_a_planted_copy_merges_to_itself(case: tuple[str, str]) -> None:
    name, way = case
    model, other, spec, data = planted(name)
    found = merge([model, other], data, method=way, loss=loss, spec=spec, **FAST)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict[key], tensor, rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    images = load_digits()
    return images.train_images.flatten(1), images.train_labels


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> list[nn.Module]:
    """Return three classifiers that were trained from different beginnings."""
    x, y = digits
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = mlp([64, 24, 24, 10]).float()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(12):
            for part in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
        models.append(model.eval())
    return models


def test_auto_is_the_best_of_what_it_tries(trained: list[nn.Module], digits: Any) -> None:
    found = merge(trained[:2], digits, **FAST)
    merged = [trial for trial in found.trials if trial.is_merged]
    assert found.chosen.loss == min(trial.loss or math.inf for trial in merged)
    naive = next(trial for trial in merged if trial.order == "as given")
    by_weights = next(trial for trial in merged if trial.order == "weights")
    assert (naive.loss or 0) > (by_weights.loss or 0) > (found.chosen.loss or 0)
    ways = {"norms", "repair", "refit", "refit-parents", "refit, mean", "distill"}
    assert {trial.method for trial in merged} == ways
    assert [trial.order for trial in found.trials[:2]] == ["network 0", "network 1"]
    assert json.loads(json.dumps(found.to_json()))["chosen"]["loss"] == found.chosen.loss
    assert found.cycle_error is None
    assert "*" in found.summary()


def test_three_networks_share_one_frame(trained: list[nn.Module], digits: Any) -> None:
    found = merge(trained, digits, **FAST)
    assert found.cycle_error == 0
    first = found.permutations[0]
    assert first.moved() == dict.fromkeys(first.perms, 0)
    naive = next(trial for trial in found.trials if trial.order == "as given")
    assert (found.chosen.loss or 0) < (naive.loss or 0) / 2
    again = merge(trained, digits, **FAST)
    assert all(torch.equal(again.state_dict[k], v) for k, v in found.state_dict.items())


def test_test_data_are_not_looked_at(trained: list[nn.Module], digits: Any) -> None:
    whole = Data.of(digits)
    poisoned = Data(whole.fit, whole.held, Data.of((digits[0] * math.nan, digits[1])).fit)
    a, b = (merge(trained[:2], data, method="refit", **FAST) for data in (whole, poisoned))
    assert all(torch.equal(b.state_dict[k], v) for k, v in a.state_dict.items())


def test_without_data_the_mean_is_that_of_the_aligned(trained: list[nn.Module]) -> None:
    x = torch.zeros(2, 64)
    found = merge(trained[:2], example_inputs=x, **FAST)
    aligned = found.permutations[1].apply(trained[1].state_dict())
    for key, tensor in trained[0].state_dict().items():
        torch.testing.assert_close(found.state_dict[key], (tensor + aligned[key]) / 2)
    assert found.chosen.loss is None
    assert "no data" in found.notes[0]
    only_first = merge(trained[:2], weights=[1, 0], example_inputs=x, **FAST)
    for key, tensor in trained[0].state_dict().items():
        assert torch.equal(only_first.state_dict[key], tensor)


def test_repair_improves_a_naive_average(trained: list[nn.Module], digits: Any) -> None:
    a, b = (model.state_dict() for model in trained[:2])
    naive = {key: (a[key] + b[key]) / 2 for key in a}
    model = copy.deepcopy(trained[0])
    model.load_state_dict(naive)
    found = repair(model, digits, parents=trained[:2], device="cpu")
    assert found.before is not None
    assert found.after is not None
    assert found.after.loss < found.before.loss
    assert found.to_json()["method"] == "repair"


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "one network": (lambda m: m[:1], {}, "at least two networks"),
    "method": (lambda m: m[:2], {"method": "best"}, "expected a method among"),
    "no data": (lambda m: m[:2], {"method": "refit"}, "measures the networks on data"),
    "slerp of three": (lambda m: m, {"method": "slerp"}, "between two networks"),
    "weights": (lambda m: m[:2], {"weights": [1]}, "weights"),
    "negative weights": (lambda m: m[:2], {"weights": [2, -1]}, "weights"),
    "shapes": (lambda m: [m[0], mlp([64, 25, 24, 10])], {}, "not of the architecture"),
    "no model": (
        lambda m: [m[0].state_dict(), m[1].state_dict()],
        {"data": (torch.zeros(9, 64), torch.zeros(9, dtype=torch.int64))},
        "only with a model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(trained: list[nn.Module], case: str) -> None:
    networks, options, words = BAD[case]
    with pytest.raises(InputError, match=words):
        merge(networks(trained), example_inputs=torch.zeros(2, 64), **{**FAST, **options})
