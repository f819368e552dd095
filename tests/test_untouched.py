"""Tracing and checking leave the caller's module and inputs as they were."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from networks import Graph, mlp, randomised
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from gpu_align import align, chain_spec, discover


def count_in_buffer(s: nn.Module, x: Tensor) -> None:
    s.count += 1


def replace_buffer(s: nn.Module, x: Tensor) -> None:
    s.count = s.count + 1


def average_in_buffer(s: nn.Module, x: Tensor) -> None:
    s.mean.mul_(0.9).add_(0.1 * x.mean())


def clip_a_weight(s: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        s.net[0].weight.clamp_(-0.1, 0.1)


def count_in_python(s: nn.Module, x: Tensor) -> None:
    s.calls += 1
    s.about.calls += 1


def fill_a_cache(s: nn.Module, x: Tensor) -> None:
    s.cache["x"] = x.shape
    s.seen.append(x.shape)


def new_attribute(s: nn.Module, x: Tensor) -> None:
    s.last = x.shape


def write_an_attribute(s: nn.Module, x: Tensor) -> None:
    s.plain.add_(1)


def write_the_inputs(s: nn.Module, x: Tensor) -> None:
    x.add_(1)


WRITES = [
    count_in_buffer,
    replace_buffer,
    average_in_buffer,
    clip_a_weight,
    count_in_python,
    fill_a_cache,
    new_attribute,
    write_an_attribute,
    write_the_inputs,
]


def model_that(write: Callable[[nn.Module, Tensor], None], dtype: torch.dtype) -> nn.Module:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        write(s, x)
        return s.net(x)

    model = randomised(Graph(run, net=mlp([3, 4, 2]))).to(dtype)
    model.register_buffer("count", torch.zeros((), dtype=torch.int64))
    model.register_buffer("mean", torch.zeros(4, dtype=dtype))
    model.calls, model.cache, model.seen = 0, {}, []
    model.about, model.plain = SimpleNamespace(calls=0), torch.zeros(2, dtype=dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("write", WRITES)
def test_what_forward_writes_is_put_back(
    write: Callable[[nn.Module, Tensor], None], dtype: torch.dtype
) -> None:
    model, inputs = model_that(write, dtype), torch.randn(2, 3, dtype=dtype)
    names = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    state, given = copy.deepcopy(model.state_dict()), inputs.clone()
    spec = discover(model, inputs)
    spec.verify(model, inputs)
    align(copy.deepcopy(model), model, example_inputs=inputs)
    assert torch.equal(inputs, given)
    assert {n: id(t) for n, t in model.state_dict(keep_vars=True).items()} == names
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert (model.calls, model.about.calls, model.cache, model.seen) == (0, 0, {}, [])
    assert not hasattr(model, "last")
    assert torch.equal(model.plain, torch.zeros(2, dtype=dtype))
    assert spec.groups["net.0"].size == 4


def test_an_embedding_that_bounds_its_rows_is_left_as_it_was() -> None:
    model = Graph(
        lambda s, x: s.head(s.embed(x).mean(1)),
        embed=nn.Embedding(7, 4, max_norm=0.1),
        head=nn.Linear(4, 2),
    ).double()
    before = copy.deepcopy(model.state_dict())
    discover(model, torch.randint(7, (2, 3)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_is_written_past_autograd_is_put_back() -> None:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        s.net[0].bias.data.add_(1)
        return s.net(x)

    model = randomised(Graph(run, net=mlp([3, 4, 2]))).double()
    before = copy.deepcopy(model.state_dict())
    inputs = torch.randn(2, 3, dtype=torch.float64)
    spec = chain_spec(before)
    assert spec.verify(model, inputs) <= 1e-9
    result = align(copy.deepcopy(model), model, spec=spec, example_inputs=inputs)
    assert result.function_preserved
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_containers_that_cannot_be_changed_are_left_alone() -> None:
    model = randomised(mlp([3, 4, 2])).double()
    model.about, model.names = immutable_dict(), immutable_list()
    assert discover(model, torch.randn(2, 3, dtype=torch.float64)).groups
    assert (model.about, model.names) == ({}, [])
