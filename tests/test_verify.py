"""Function preservation: what counts as a proof, and what must not hide a wrong spec."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from networks import Graph, mlp, randomised
from oracles import assert_same_function
from torch import Tensor, nn

from gpu_align import ModelError, Permutation, PermutationSpec, SpecError, align, discover
from gpu_align._symmetry._axis import Axis


def between(run: Callable[[Tensor], Tensor]) -> nn.Module:
    return randomised(
        Graph(lambda s, x: s.head(run(s.first(x))), first=nn.Linear(3, 4), head=nn.Linear(4, 2))
    )


def inputs() -> Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def broken(spec: PermutationSpec, prefix: str) -> PermutationSpec:
    """Return the spec of a wrapped module with the bias of its first layer left in place."""
    tensors = {f"{prefix}{name}": tensor for name, tensor in spec.tensors.items()}
    fixed = replace(tensors[f"{prefix}first.bias"], axes=(Axis.fixed(4),))
    return replace(spec, tensors={**tensors, f"{prefix}first.bias": fixed})


def test_outputs_that_cannot_be_compared_are_no_proof() -> None:
    model = between(torch.relu)
    outer = Graph(lambda s, x: SimpleNamespace(logits=s.net(x)), net=model)
    with pytest.raises(ModelError, match="no tensors that can be compared, but SimpleNamespace"):
        broken(discover(model, inputs()), "net.").verify(outer, inputs())


@pytest.mark.parametrize("value", [-1e9, torch.finfo(torch.float32).min])
def test_masked_outputs_hide_nothing(value: float) -> None:
    model = between(torch.tanh)
    mask = torch.tensor([True, False])
    outer = Graph(lambda s, x: s.net(x).masked_fill(mask, value), net=model)
    spec = discover(model, inputs())
    right = {f"net.{name}": tensor for name, tensor in spec.tensors.items()}
    assert replace(spec, tensors=right).verify(outer, inputs()) <= 1e-9
    with pytest.raises(SpecError, match="does not describe"):
        broken(spec, "net.").verify(outer, inputs())


FLOAT32_INSIDE = {
    "float": lambda h: h.float().square().to(h.dtype),
    "to": lambda h: (h.to(torch.float32) * 2).to(h.dtype),
    "softmax": lambda h: torch.softmax(h, -1, dtype=torch.float32).to(h.dtype),
    "constant": lambda h: h * torch.tensor(0.5, dtype=torch.float32),
}


@pytest.mark.parametrize("run", FLOAT32_INSIDE.values(), ids=FLOAT32_INSIDE)
def test_models_that_compute_in_float32_on_purpose_are_verified(run: Callable) -> None:
    model = between(run).float()
    spec = discover(model, inputs().float())
    assert [group.size for group in spec.groups.values()] == [4]
    assert spec.verify(model, inputs().float()) <= 1e-9


def test_writing_to_out_pins() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        hidden = s.first(x)
        product = torch.zeros_like(hidden)
        seen = product.view(hidden.shape[1], -1)
        torch.mm(hidden, s.middle.weight, out=product)
        return s.head(seen.sum(1, keepdim=True).expand(-1, 4))

    model = randomised(
        Graph(forward, first=nn.Linear(3, 4), middle=nn.Linear(4, 4), head=nn.Linear(4, 2))
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    spec = discover(model, inputs()[:4], verify=False)
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(1))
    state = model.state_dict()
    assert_same_function(model, inputs()[:4], state, moved.apply(state))


def test_a_transposed_view_of_a_weight_is_pinned() -> None:
    model = mlp([4, 4, 4, 2]).double()
    model[2].weight = nn.Parameter(model[0].weight.t())
    spec = discover(model, torch.randn(2, 4, dtype=torch.float64))
    assert list(spec.groups) == []
    assert any("another layout" in pin.reason for pin in spec.pins)


def test_meta_tensors_are_not_all_the_same_memory() -> None:
    model = mlp([3, 8, 8, 8, 2])
    spec = discover(model.to("meta"), torch.randn(2, 3, device="meta"), verify=False)
    assert spec.ties == {}
    assert [group.size for group in spec.groups.values()] == [8, 8, 8]


def test_parameters_that_require_gradients_are_aligned_without_a_graph() -> None:
    parameters = dict(mlp([3, 4, 2]).named_parameters())
    other = dict(mlp([3, 4, 2]).named_parameters())
    result = align(parameters, other)
    assert not any(tensor.requires_grad for tensor in result.state_dict.values())


def test_a_submodule_with_two_names_is_left_as_it_was() -> None:
    layer = nn.Linear(3, 4)
    model = randomised(
        Graph(lambda s, x: s.b(s.a(x).relu()), a=layer, again=layer, b=nn.Linear(4, 2))
    )
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    spec = discover(model, inputs())
    assert spec.verify(model, inputs()) <= 1e-9
    for name, tensor in model.named_parameters():
        assert before[name][0] == id(tensor)
        assert torch.equal(before[name][1], tensor)
