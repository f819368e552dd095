"""Task losses: what a network loses on data, and its gradient."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import mlp, model_of
from torch import Tensor, nn

from gpu_align import InputError, TaskLoss
from gpu_align._device._random import RandomStream
from gpu_align._network import Batch, Data, Examples


def data(shape: tuple[int, ...], classes: int, count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=generator)
    return x, torch.randint(classes, (count,), generator=generator)


def test_it_is_the_loss_of_the_module_under_the_state_dict() -> None:
    model, other = mlp([3, 4, 2]), mlp([3, 4, 2])
    x, y = data((3,), 2)
    loss = TaskLoss(model, (x, y))
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    found = loss.of_batch(state, Batch(x, y))
    torch.testing.assert_close(found, F.cross_entropy(other(x), y))
    held = loss.held.lots[0]
    assert held.targets is not None
    expected = F.cross_entropy(other(held.inputs), held.targets)
    torch.testing.assert_close(loss.held_loss(state), expected.detach())


def test_the_mean_does_not_depend_on_the_batches() -> None:
    x, y = data((3,), 2, count=200)
    model = mlp([3, 4, 2])
    whole, cut = (TaskLoss(model, (x, y), batch_size=size) for size in (500, 7))
    torch.testing.assert_close(whole.held_loss({}), cut.held_loss({}))


def test_gradients_are_those_of_finite_differences() -> None:
    model, x = model_of("cnn")
    model, (_, y) = model.double(), data((1,), 10, count=6)
    x = torch.randn(6, *x.shape[1:], dtype=torch.float64)
    loss = TaskLoss(model, (x, y))
    names = [name for name, _ in model.named_parameters()]
    given = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def value(*tensors: Tensor) -> Tensor:
        return loss.of_batch(dict(zip(names, tensors, strict=True)), Batch(x, y))

    assert torch.autograd.gradcheck(value, given, fast_mode=True)


@pytest.mark.parametrize("norms", ["batch", "stored"])
def test_batch_norms_are_as_asked_and_the_model_is_left_alone(norms: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].running_mean.uniform_(-1, 1)
    x, y = data((3,), 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = TaskLoss(model, (x, y), norms=norms).of_batch({}, Batch(x, y))
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    hidden = F.linear(x, model[0].weight, model[0].bias)
    norm = model[1]
    if norms == "batch":
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    else:
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    logits = model[3](hidden * norm.weight + norm.bias)
    torch.testing.assert_close(found, F.cross_entropy(logits, y))


def test_any_function_of_outputs_and_targets_is_a_loss() -> None:
    class Two(nn.Module):
        """Returns a dict, of which no named loss could choose."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.layer(x), "b": x}

    def absolute(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return (outputs["a"].sum(1) - targets).abs().mean()

    model, (x, y) = Two(), data((3,), 5)
    found = TaskLoss(model, (x, y), absolute).of_batch({}, Batch(x, y))
    torch.testing.assert_close(found, (model(x)["a"].sum(1) - y).abs().mean())


def test_batches_are_drawn_from_what_is_fitted_by_the_stream_alone() -> None:
    x, y = data((3,), 2)
    loss = TaskLoss(mlp([3, 4, 2]), (x, y), batch_size=9)
    state = torch.get_rng_state()
    first, same, other = (loss.draw(RandomStream(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.inputs, same.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    fitted = {tuple(row) for row in loss.fit.lots[0].inputs.tolist()}
    assert len(first) == 9
    assert {tuple(row) for row in first.inputs.tolist()} <= fitted


def test_lots_of_several_shapes_are_drawn_by_their_share() -> None:
    lots = [Batch(torch.zeros(n, width), torch.zeros(n)) for n, width in ((30, 2), (10, 3))]
    examples = Examples(tuple(lots))
    loss = TaskLoss(nn.Linear(2, 1), Data(examples, examples), batch_size=4)
    random = RandomStream(0)
    widths = [loss.draw(random).inputs.shape[1] for _ in range(400)]
    assert 0.65 < widths.count(2) / 400 < 0.85


def test_what_it_says_tells_losses_apart() -> None:
    model, (x, y) = mlp([3, 4, 2]), data((3,), 2)
    losses = [
        *(TaskLoss(model, (x, y)), TaskLoss(model, (x + 1, y)), TaskLoss(model, (x, y), "mse")),
        *(TaskLoss(model, (x, y), norms="stored"), TaskLoss(mlp([3, 5, 2]), (x, y))),
    ]
    assert len({repr(loss) for loss in losses}) == len(losses)
    assert repr(TaskLoss(model, (x, y))) == repr(losses[0])


BAD: dict[str, tuple[Callable[[], TaskLoss], str]] = {
    "no_targets": (lambda: TaskLoss(nn.Linear(3, 2), [torch.zeros(9, 3)]), "needs targets"),
    "no_module": (lambda: TaskLoss({"a": 1}, data((3,), 2)), "as a module"),  # type: ignore[arg-type]
    "batch_size": (lambda: TaskLoss(nn.Linear(3, 2), data((3,), 2), batch_size=0), "batch_size=0"),
    "judged": (lambda: TaskLoss(nn.Linear(3, 2), data((3,), 2), judged=0), "judged=0"),
    "norms": (lambda: TaskLoss(nn.Linear(3, 2), data((3,), 2), norms="x"), "'batch'"),  # type: ignore[arg-type]
    "loss": (lambda: TaskLoss(nn.Linear(3, 2), data((3,), 2), "nll"), "expected a loss"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_settings_are_refused(make: Callable[[], TaskLoss], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
