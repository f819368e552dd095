"""Training: what it comes to, and that an interruption at any moment changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_align import CheckpointError, GpuAlignError, InputError
from gpu_align.learn import Epoch, Training, TrainingFile, TrainingPlan, train

PLAN = TrainingPlan(epochs=4, batch=5, rate=1e-2, clip=1.0)
COUNT = 17
X = torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


def model_of(seed: int = 0) -> nn.Module:
    """Return a model with a norm's running values and with dropout, which draws random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        )


def run(
    model: nn.Module,
    file: TrainingFile | None = None,
    stop: Callable[[int], bool] = lambda calls: False,
    plan: TrainingPlan = PLAN,
    seed: int = 3,
) -> Training:
    """Train; Ctrl-C arrives when `stop` says so of the number of losses computed in this call."""
    calls = 0

    def loss(numbers: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if stop(calls):
            raise KeyboardInterrupt
        return F.cross_entropy(model(X[numbers]), Y[numbers])

    def held() -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        return float((model(X).argmax(1) == Y).double().mean())

    return train(model, loss, COUNT, plan, held=held, seed=seed, file=file)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def outcome(training: Training) -> tuple[tuple[Epoch, ...], Epoch]:
    """Return all but the time."""
    return training.epochs, training.best


@pytest.mark.parametrize("last", [1, 3, 4, 5, 8, 9, 16])
def test_an_interrupted_training_resumes_to_the_bit(last: int, work: Path) -> None:
    whole = model_of()
    expected = run(whole)
    path = work / "a.pt"
    with pytest.raises(KeyboardInterrupt):
        run(model_of(), TrainingFile(path), lambda calls: calls == last)
    assert path.exists() == (last > 4)  # an epoch has four steps
    model = model_of()
    found = run(model, TrainingFile(path, resume=True))
    assert outcome(found) == outcome(expected)
    assert same(model, whole)


def test_interrupted_in_every_epoch_it_still_ends_the_same(work: Path) -> None:
    whole = model_of()
    expected = run(whole)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(model_of(), TrainingFile(work / "a.pt", resume=True), lambda calls: calls == 6)
    model = model_of()
    assert outcome(run(model, TrainingFile(work / "a.pt", resume=True))) == outcome(expected)
    assert same(model, whole)


def test_a_training_that_has_ended_is_not_done_again(work: Path) -> None:
    first, again = model_of(), model_of()
    expected = run(first, TrainingFile(work / "a.pt"))
    found = run(again, TrainingFile(work / "a.pt", resume=True), lambda calls: True)
    assert found == expected
    assert same(first, again)


def test_the_file_is_written_when_it_is_due(work: Path) -> None:
    clock = iter(range(0, 1000, 20))
    file = TrainingFile(work / "a.pt", now=lambda: float(next(clock)))
    written = []
    file_write = file.write
    file.write = lambda kept: (written.append(len(kept["epochs"])), file_write(kept))[1]  # type: ignore[method-assign]
    run(model_of(), file)
    assert written == [2, 4]  # 30 s after the beginning, and at the end


def test_torchs_generator_is_left_as_it_was_and_does_not_matter() -> None:
    first, second = model_of(), model_of()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run(first)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    run(second)
    assert same(first, second)
    run(third := model_of(), seed=4)
    assert not same(first, third)


def test_the_best_epoch_is_kept() -> None:
    model = model_of()
    values = iter([0.2, 0.5, 0.5, 0.1])
    seen: list[Tensor] = []

    def held() -> float:
        seen.append(model[0].weight.detach().clone())
        return next(values)

    found = train(
        model, lambda n: F.cross_entropy(model(X[n]), Y[n]), COUNT, PLAN, held=held, seed=0
    )
    assert found.best.number == 3  # the last of the best
    assert [epoch.held for epoch in found.epochs] == [0.2, 0.5, 0.5, 0.1]
    assert torch.equal(model[0].weight, seen[2])
    assert not model.training


@pytest.mark.parametrize(
    ("values", "ends"), [([0.0, 0.0, -1, -1, -1], 4), ([3, 2, 4, 1, 1, 1], 5), ([1, 2, 3, 4, 5], 5)]
)
def test_it_ends_early_without_a_better_value(values: list[float], ends: int) -> None:
    model, told = model_of(), iter(values)
    plan = TrainingPlan(epochs=5, batch=20, patience=2)
    found = train(
        *(model, lambda n: F.cross_entropy(model(X[n]), Y[n]), COUNT, plan),
        held=lambda: float(next(told)),
    )
    assert len(found.epochs) == ends


def test_without_a_held_back_value_the_last_epoch_is_kept() -> None:
    model = model_of()
    found = train(model, lambda n: F.cross_entropy(model(X[n]), Y[n]), COUNT, PLAN)
    assert found.best == found.epochs[-1]


def test_the_rate_rises_and_falls() -> None:
    plan = TrainingPlan(epochs=1, rate=2.0, warm_up=0.1)
    rates = [plan.rate_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1.0)
    assert 0 <= rates[-1] < 1e-3


def test_what_cannot_be_resumed_is_refused(work: Path) -> None:
    path = work / "a.pt"
    run(model_of(), TrainingFile(path))
    with pytest.raises(CheckpointError, match="resume it, or remove the file"):
        run(model_of(), TrainingFile(path))
    other = TrainingPlan(epochs=5, batch=5, rate=1e-2, clip=1.0)
    with pytest.raises(CheckpointError, match="epochs: 4, now 5"):
        run(model_of(), TrainingFile(path, resume=True), plan=other)
    with pytest.raises(CheckpointError, match="another training"):
        run(model_of(), TrainingFile(path, resume=True), seed=4)
    with pytest.raises(CheckpointError, match="damaged, or of something else"):
        run(nn.Sequential(nn.Linear(6, 2)), TrainingFile(path, resume=True))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged, or of something else"):
            run(model_of(), TrainingFile(path, resume=True))
    torch.save({"format": "another"}, path)
    with pytest.raises(CheckpointError, match="remove the file to begin anew"):
        run(model_of(), TrainingFile(path, resume=True))


def test_a_loss_that_is_not_finite_ends_it() -> None:
    model = model_of()
    with pytest.raises(GpuAlignError, match="the loss is nan in epoch 1; lower the rate"):
        train(model, lambda n: model(X[n]).sum() * torch.nan, COUNT, PLAN)


@pytest.mark.parametrize(
    ("plan", "count", "said"),
    [
        (TrainingPlan(0), 3, "at least one epoch"),
        (TrainingPlan(1, 0), 3, "one example in a step"),
        (TrainingPlan(1), 0, "at least one example to train on"),
        (TrainingPlan(1, rate=0.0), 3, "a learning rate above 0"),
        (TrainingPlan(1, decay=-1.0), 3, "a weight decay from 0 on"),
    ],
)
def test_a_training_that_cannot_be_is_refused(plan: TrainingPlan, count: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        train(model_of(), lambda n: torch.zeros(()), count, plan)


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="weights to train"):
        train(nn.ReLU(), lambda n: torch.zeros(()), 3, PLAN)
