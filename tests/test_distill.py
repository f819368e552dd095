"""Distillation: a network comes nearer to what its parents say, and nothing else changes."""

import copy

import pytest
import torch
from networks import mlp, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_align import InputError, ModelError, average, merge
from gpu_align._merge._distill import Distillation
from gpu_align._network import Examples, Loss, Traces, loss_function

Trained = list[nn.Module]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parents(make: nn.Module, count: int = 2, spread: float = 0.2) -> Trained:
    """Return networks near each other, so that their mean makes sense as it is."""
    first = randomised(make).float()
    made = []
    for seed in range(count):
        other = copy.deepcopy(first)
        with torch.no_grad():
            for number, parameter in enumerate(other.parameters()):
                parameter += spread * draw(100 * seed + number, *parameter.shape)
        made.append(other.eval())
    return made


def distilled(
    networks: Trained, start: dict[str, Tensor], x: Tensor, y: Tensor, loss: Loss, seed: int = 0
) -> dict[str, Tensor]:
    module = networks[0]
    about = module, Traces(module), Examples.of(x, y), 3, loss, seed
    states = [network.state_dict() for network in networks]
    return Distillation(*about).of(start, states, [1 / len(states)] * len(states))


def said(module: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.func.functional_call(module, state, (x,))


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
def test_a_mean_comes_nearer_to_what_its_parents_say(name: str) -> None:
    networks = parents(mlp([8, 32, 32, 4]))
    x = draw(1, 2000, 8)
    y = torch.zeros(2000, dtype=torch.int64) if name == "cross_entropy" else torch.zeros(2000, 4)
    start = average([network.state_dict() for network in networks])
    made = distilled(networks, start, x, y, loss_function(name))
    fresh = draw(2, 500, 8)
    goal = sum(said(net, net.state_dict(), fresh) for net in networks) / 2

    def gap(state: dict[str, Tensor]) -> float:
        outputs = said(networks[0], state, fresh)
        if name == "mse":
            return float(F.mse_loss(outputs, goal))
        logs = (outputs.log_softmax(-1), goal.log_softmax(-1))
        return float(F.kl_div(*logs, log_target=True, reduction="batchmean"))

    assert gap(made) < 0.9 * gap(start)


def test_targets_are_not_learned() -> None:
    networks = parents(mlp([5, 8, 3]))
    start = average([network.state_dict() for network in networks])
    x, loss = draw(3, 300, 5), loss_function("cross_entropy")
    labels = (torch.zeros(300, dtype=torch.int64), torch.arange(300) % 3)
    first, second = (distilled(networks, start, x, y, loss) for y in labels)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], start[name]) for name in first)


def test_what_does_not_count_is_not_looked_at() -> None:
    networks = parents(mlp([5, 8, 3]))
    start = average([network.state_dict() for network in networks])
    x, loss = draw(4, 250, 5), loss_function("cross_entropy")
    y = torch.where(torch.arange(250) % 2 == 0, 1, -100)
    other = torch.where(y[:, None] == -100, draw(5, 250, 5), x)
    first, second = (distilled(networks, start, inputs, y, loss) for inputs in (x, other))
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_batches_in_which_nothing_counts_are_passed_over() -> None:
    networks = parents(mlp([5, 8, 3]))
    start = average([network.state_dict() for network in networks])
    x, loss = draw(10, 500, 5), loss_function("cross_entropy")
    y = torch.where(torch.arange(500) < 250, -100, 1)
    made = distilled(networks, start, x, y, loss)
    alone = distilled(networks, start, x[250:], y[250:], loss)
    assert any(not torch.equal(made[name], start[name]) for name in start)
    assert all(torch.equal(made[name], alone[name]) for name in start)


def test_parents_that_agree_leave_the_network_as_it_is() -> None:
    [network] = parents(mlp([5, 8, 3]), 1)
    state = network.state_dict()
    y = torch.zeros(200, dtype=torch.int64)
    made = distilled([network, network], state, draw(6, 200, 5), y, loss_function("auto"))
    assert all(made[name] is state[name] for name in state)


class Tied(nn.Module):
    """Two layers with one weight, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ties_dtypes_statistics_and_the_module_stay(dtype: torch.dtype) -> None:
    networks = [network.to(dtype) for network in parents(Tied())]
    start = average([network.state_dict() for network in networks])
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in networks]
    x, y = draw(7, 300, 6).to(dtype), torch.zeros(300, 6, dtype=dtype)
    made = distilled(networks, start, x, y, loss_function("mse"))
    assert torch.equal(made["first.weight"], made["last.weight"])
    assert not torch.equal(made["first.weight"], start["first.weight"])
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(made[name], start[name])
    assert {name: t.dtype for name, t in made.items()} == {n: t.dtype for n, t in start.items()}
    for network, kept in zip(networks, before, strict=True):
        assert all(torch.equal(network.state_dict()[name], kept[name]) for name in kept)
        assert all(parameter.grad is None for parameter in network.parameters())


def test_a_seed_decides() -> None:
    networks = parents(mlp([5, 8, 3]))
    start = average([network.state_dict() for network in networks])
    given = draw(8, 400, 5), torch.zeros(400, dtype=torch.int64), loss_function("auto")
    first, again, other = (distilled(networks, start, *given, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


class Closed(nn.Module):
    """A network through which no gradient comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp([4, 6, 3])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).detach()


def test_a_model_without_gradients_is_refused_and_auto_says_that_it_leaves_it_out() -> None:
    networks = parents(Closed())
    data = draw(9, 400, 4), torch.arange(400) % 3
    with pytest.raises(ModelError, match="no gradient comes back"):
        merge(networks, data, method="distill", device="cpu")
    found = merge(networks, data, device="cpu")
    assert "distill" not in {trial.method for trial in found.trials}
    assert any("distill was left out" in note for note in found.notes)


class Masked(nn.Module):
    """A classifier that rules a class out, in half precision, with large logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp([4, 16, 5])
        self.register_buffer("mask", torch.arange(5) == 2)

    def forward(self, x: Tensor) -> Tensor:
        return (100 * self.layers(x)).masked_fill(self.mask, -torch.inf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_masked_and_large_logits_are_learned(dtype: torch.dtype) -> None:
    networks = [network.to(dtype) for network in parents(Masked(), spread=0.02)]
    start = average([network.state_dict() for network in networks])
    x, y = draw(11, 400, 4).to(dtype), torch.zeros(400, dtype=torch.int64)
    made = distilled(networks, start, x, y, loss_function("cross_entropy"))
    assert not torch.equal(made["layers.2.weight"], start["layers.2.weight"])
    assert all(tensor.isfinite().all() for tensor in made.values())


def test_the_callers_mode_changes_nothing_or_is_refused() -> None:
    networks = parents(mlp([5, 8, 3]))
    start = average([network.state_dict() for network in networks])
    given = draw(12, 200, 5), torch.zeros(200, dtype=torch.int64), loss_function("auto")
    expected = distilled(networks, start, *given)
    with torch.no_grad():
        found = distilled(networks, start, *given)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.inference_mode(), pytest.raises(ModelError, match="inference_mode"):
        distilled(networks, start, *given)


def test_no_more_examples_are_looked_at_than_are_asked_for() -> None:
    data = draw(13, 400, 4), torch.arange(400) % 3
    found = merge(parents(mlp([4, 6, 3])), data, examples=60, device="cpu")
    assert {trial.fitted for trial in found.trials if trial.is_merged} == {60, 320}
    assert {trial.fitted for trial in found.trials if trial.method == "distill"} == {60}


def test_it_needs_data() -> None:
    with pytest.raises(InputError, match=r"'distill'.*pass data"):
        merge(parents(mlp([4, 6, 3])), method="distill")
