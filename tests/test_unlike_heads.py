"""Networks whose heads differ: the bodies are aligned and merged, each head fits the result."""

import pytest
import torch
from marks import slow
from networks import CNN, mlp, model_of, randomised
from oracles import run_double
from torch import Tensor, nn

from gpu_align import InputError, Permutation, SpecError, align, discover
from gpu_align._merge._heads import merge_heads, shared_body

State = dict[str, Tensor]


def headed(kind: str, classes: int, seed: int) -> tuple[nn.Module, Tensor, tuple[str, str]]:
    """Return a network with a number of classes, its inputs, and the names of its head."""
    generator = torch.Generator().manual_seed(1)
    if kind == "mlp":
        model, shape, head = mlp([3, 8, 7, classes]), (4, 3), "4"
    else:
        model, shape, head = CNN(3, hidden=5, side=16), (2, 1, 16, 16), "fc2"
        model.fc2 = nn.Linear(5, classes)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return randomised(model, seed), inputs, (f"{head}.weight", f"{head}.bias")


def relatives(kind: str, classes: int = 4) -> tuple[nn.Module, nn.Module, Tensor, Permutation]:
    """Return a network of ten classes, one with its body reordered and another head, and how."""
    first, inputs, head = headed(kind, 10, 0)
    second, _, _ = headed(kind, classes, 3)
    state = first.state_dict() | {name: second.state_dict()[name] for name in head}
    second.load_state_dict(state)
    spec = discover(second, inputs)
    permutation = Permutation.random(spec, seed=5)
    return first, permutation.apply(second), inputs, permutation


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_planted_order_is_found_under_another_head(kind: str) -> None:
    first, second, inputs, planted = relatives(kind)
    states = [first.state_dict(), second.state_dict()]
    shared = shared_body(states, discover(first, inputs))
    found = align(shared.bodies[1], shared.bodies[0], spec=shared.spec, device="cpu")
    assert found.distance < 1e-20
    back = planted.inverse()
    for group in shared.spec.groups:
        assert torch.equal(found.permutation[group], back[group])
    whole = shared.whole(found.permutation, 1)
    before, after = states[1], whole.apply(states[1])
    assert not all(torch.equal(before[name], after[name]) for name in shared.heads)
    for one, other in zip(*(run_double(second, inputs, s) for s in (before, after)), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", slow(["mlp", "cnn"], but=["mlp"]))
def test_each_head_on_the_body_of_equals_computes_its_own_outputs(kind: str) -> None:
    first, second, inputs, _ = relatives(kind)
    states = [first.state_dict(), second.state_dict()]
    found = merge_heads(states, discover(first, inputs), device="cpu")
    for module, state, merged in zip((first, second), states, found.networks, strict=True):
        assert list(merged) == list(state)
        assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in state.items()}
        [before], [after] = (run_double(module, inputs, s) for s in (state, merged))
        assert torch.allclose(before, after, rtol=1e-9, atol=1e-12)
    for name in found.body:
        assert torch.equal(found.networks[0][name], found.networks[1][name])
    for name, tensor in found.heads[0].items():
        assert torch.equal(tensor, states[0][name])


def test_the_body_is_the_weighted_mean_of_the_aligned_bodies() -> None:
    models = [headed("mlp", classes, seed) for seed, classes in enumerate((10, 4, 6))]
    states = [model.state_dict() for model, _, _ in models]
    found = merge_heads(states, weights=[1, 2, 1], search="descent", device="cpu")
    shared = shared_body(states)
    results = align(
        shared.bodies[1:], shared.bodies[0], spec=shared.spec, search="descent", device="cpu"
    )
    bodies = [shared.bodies[0], *(result.unwrap().state_dict for result in results)]
    for name, tensor in found.body.items():
        expected = (bodies[0][name] + 2 * bodies[1][name] + bodies[2][name]) / 4
        assert torch.allclose(tensor, expected, rtol=1e-14, atol=1e-14)
    assert [tuple(head["4.bias"].shape) for head in found.heads] == [(10,), (4,), (6,)]


def test_heads_of_one_shape_can_be_kept_apart_by_name() -> None:
    first, second, inputs, _ = relatives("mlp", classes=10)
    states = [first.state_dict(), second.state_dict()]
    shared = shared_body(states, heads=["4.weight", "4.bias"])
    assert shared.heads == {"4.weight", "4.bias"}
    found = merge_heads(states, heads=["4.weight", "4.bias"], device="cpu")
    for state, merged in zip(states, found.networks, strict=True):
        [before], [after] = (run_double(first, inputs, s) for s in (state, merged))
        assert torch.allclose(before, after, rtol=1e-9, atol=1e-12)


def test_units_that_only_the_heads_have_stay() -> None:
    first, second, inputs, _ = relatives("mlp")
    states = [first.state_dict(), second.state_dict()]
    shared = shared_body(states, heads=["2.weight", "2.bias"])
    assert len(shared.spec.groups) == 1
    [inner] = set(shared.specs[0].groups) - set(shared.spec.groups)
    permutation = Permutation.random(shared.spec, seed=0)
    whole = shared.whole(permutation, 1)
    assert torch.equal(whole[inner], torch.arange(7))
    [before], [after] = (run_double(second, inputs, s) for s in (states[1], whole.apply(states[1])))
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-12)


def test_tied_heads_are_heads_under_both_names() -> None:
    def tied(tokens: int) -> nn.Module:
        model = nn.Sequential(
            nn.Embedding(tokens, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, tokens, bias=False)
        )
        model[3].weight = model[0].weight
        return randomised(model, tokens)

    models = [tied(7), tied(5)]
    shared = shared_body(
        [model.state_dict() for model in models],
        discover(models[0], torch.zeros(1, 2, dtype=torch.int64)),
    )
    assert shared.heads == {"0.weight", "3.weight"}
    assert set(shared.bodies[0]) == {"1.weight", "1.bias"}


def test_bad_input_is_named() -> None:
    state = model_of("mlp")[0].state_dict()
    wider = mlp([3, 5, 5, 2]).double().state_dict()
    bad: list[tuple[list[State], tuple[str, ...], str]] = [
        ([], (), "at least one network"),
        ([state, {**state, "more": torch.ones(1)}], (), r"names of network 0 \('more'\)"),
        ([state, wider], (), "for the axes without units"),
        ([state, state], ("head",), "got 'head'"),
        ([state, state], tuple(state), "no tensors in common"),
    ]
    for states, heads, message in bad:
        with pytest.raises(InputError, match=message):
            shared_body(states, heads=heads)
    with pytest.raises(SpecError, match="does not fit"):
        shared_body([wider], discover(*model_of("mlp")))
