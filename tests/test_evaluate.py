"""Losses and scores: they are those of plain torch, however the examples are cut into batches."""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CNN, ResNet, mlp, randomised
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from gpu_align._errors import InputError, ModelError
from gpu_align._network import Batch, Data, Examples, Score, evaluate, evaluate_many, loss_function

CPU: dict[str, Any] = {"device": "cpu"}


def classified(count: int = 103, seed: int = 0) -> tuple[nn.Module, Examples]:
    """Return a classifier with norms, in float64, and examples of which it gets many right."""
    torch.manual_seed(seed)
    model = randomised(
        nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)), seed
    ).double()
    x = torch.randn(count, 6, dtype=torch.float64)
    guesses = copy.deepcopy(model).eval()(x).argmax(1)
    y = torch.where(torch.rand(count) < 0.6, guesses, torch.randint(4, (count,)))
    return model, Examples.of(x, y)


def ece_by_hand(logits: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error, bin after bin (Guo et al. 2017, eq. 3)."""
    confidence, guesses = logits.double().softmax(1).max(1)
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            right = (guesses[inside] == targets[inside]).double().mean()
            gap = abs(float(right - confidence[inside].mean()))
            total += gap * int(inside.sum()) / len(targets)
    return total


def test_score_is_that_of_plain_torch() -> None:
    model, examples = classified()
    score = evaluate(model, model.state_dict(), examples, **CPU)
    x, y = examples.lots[0].inputs, examples.lots[0].targets
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(x)
    assert score.loss == pytest.approx(float(functional.cross_entropy(logits, y)), abs=1e-12)
    assert score.accuracy == float((logits.argmax(1) == y).double().mean())
    assert score.ece == pytest.approx(ece_by_hand(logits, y), abs=1e-12)
    assert 0.3 < score.accuracy < 1
    assert score.examples == 103


@pytest.mark.parametrize("size", [1, 7, 100, 103, 1000])
def test_score_does_not_depend_on_the_batches(size: int) -> None:
    model, examples = classified()
    score, whole = (evaluate(model, {}, examples, batch_size=count, **CPU) for count in (size, 103))
    assert score.loss == pytest.approx(whole.loss, abs=1e-12)
    assert score.accuracy == whole.accuracy
    assert score.ece == pytest.approx(whole.ece, abs=1e-12)
    assert len(score.batch_losses) == math.ceil(103 / size)
    assert sum(score.batch_weights) == 103


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0.1, 30))
def test_calibration_error(seed: int, classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(50, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (50,), generator=generator)
    score = evaluate(nn.Identity(), {}, Examples.of(logits, y), batch_size=16, **CPU)
    assert score.ece == pytest.approx(ece_by_hand(logits, y), abs=1e-12)


def test_standard_error_is_that_of_equal_batches() -> None:
    model, examples = classified(100)
    score = evaluate(model, {}, examples, batch_size=10, **CPU)
    expected = np.std(score.batch_losses, ddof=1) / math.sqrt(10)
    assert score.standard_error == pytest.approx(expected, rel=1e-12)
    assert evaluate(model, {}, examples, batch_size=100, **CPU).standard_error is None
    # An example more in a batch of its own hardly counts.
    more = Score(score.loss, None, None, 101, (*score.batch_losses, 9.0), (*(10,) * 10, 0))
    assert more.standard_error == pytest.approx(expected, rel=0.01)


def test_state_dicts_are_scored_and_the_module_is_left_as_it_was() -> None:
    model, examples = classified()
    model.train()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    others = [classified(seed=seed)[0].state_dict() for seed in (1, 2)]
    kept = [{name: tensor.clone() for name, tensor in state.items()} for state in others]
    seen: list[tuple[int, int]] = []
    scores = evaluate_many(
        *(model, [own, *others], examples),
        batch_size=40,
        progress=lambda done, total: seen.append((done, total)),
        **CPU,
    )
    assert seen == [(40, 103), (80, 103), (103, 103)]
    for state, score in zip([own, *others], scores, strict=True):
        alone = copy.deepcopy(model)
        alone.load_state_dict(state)
        assert score == evaluate(alone, {}, examples, batch_size=40, **CPU)
    assert len({score.loss for score in scores}) == 3
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name])
    for state, before in zip(others, kept, strict=True):
        assert all(torch.equal(state[name], before[name]) for name in before)


class Counting(nn.Module):
    """Writes into a buffer and into a parameter in its forward, and draws noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        with torch.no_grad():
            self.weight.add_(1)
        return x * self.weight + self.calls + torch.randn(3)


def test_a_forward_that_writes_begins_anew_with_every_batch() -> None:
    x = torch.ones(4, 3)
    model = Counting()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    scores = [
        evaluate(model, state, Examples.of(x, torch.zeros(4, 3)), "mse", batch_size=size, **CPU)
        for size in (1, 2, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert len({round(score.loss, 5) for score in scores}) == 1
    assert torch.equal(state["weight"], torch.ones(3))
    assert float(state["calls"]) == float(model.calls) == 0
    assert model.seen == []


def test_float32_is_run_in_float64_if_asked_for() -> None:
    model = randomised(mlp([6, 16, 4]))
    x, y = torch.randn(50, 6), torch.randint(4, (50,))
    exact = functional.cross_entropy(copy.deepcopy(model).double()(x.double()), y)
    score = evaluate(model, model.state_dict(), Examples.of(x, y), in_double=True, **CPU)
    assert score.loss == pytest.approx(float(exact.detach()), abs=1e-13)
    order = torch.randperm(16)
    moved = model.state_dict()
    moved |= {name: moved[name][order] for name in ("0.weight", "0.bias")}
    moved["2.weight"] = moved["2.weight"][:, order]
    permuted = evaluate(model, moved, Examples.of(x, y), in_double=True, **CPU)
    assert permuted.loss == pytest.approx(score.loss, abs=1e-12)


def test_state_dicts_are_run_in_the_dtypes_of_the_module() -> None:
    model = CNN(4)
    images = Examples.of(torch.randn(3, 1, 28, 28), torch.tensor([0, 1, 2]))
    wide = {name: tensor.double() for name, tensor in model.state_dict().items()}
    scores = evaluate_many(model, [wide, {}, {f"module.{k}": t for k, t in wide.items()}], images)
    assert scores[0] == scores[1] == scores[2]


# Losses.


def next_token_loss(logits: Tensor, targets: Tensor) -> float:
    total, count = 0.0, 0
    for text in range(logits.shape[0]):
        for place in range(logits.shape[1]):
            token = int(targets[text, place])
            if token != -100:
                total -= float(logits[text, place].double().log_softmax(0)[token])
                count += 1
    return total / count


def texts(count: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    targets = torch.randint(7, (count, 5))
    targets[torch.rand(count, 5) < 0.4] = -100
    targets[2] = -100
    return torch.randn(count, 5, 7, dtype=torch.float64), targets


@pytest.mark.parametrize("size", [1, 4, 6])
def test_cross_entropy_of_next_tokens(size: int) -> None:
    logits, targets = texts()
    score = evaluate(nn.Identity(), {}, Examples.of(logits, targets), batch_size=size, **CPU)
    assert score.loss == pytest.approx(next_token_loss(logits, targets), abs=1e-12)
    counted = targets != -100
    right = (logits.argmax(-1) == targets)[counted]
    assert score.accuracy == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert score.ece == pytest.approx(ece_by_hand(logits[counted], targets[counted]), abs=1e-12)
    assert score.examples == 6


def test_texts_of_several_lengths_count_by_their_tokens() -> None:
    logits, targets = texts()
    lots = Examples.gathered(
        [Batch(logits[:4], targets[:4]), Batch(logits[4:, :3], targets[4:, :3])]
    )
    whole = targets.clone()
    whole[4:, 3:] = -100
    score = evaluate(nn.Identity(), {}, lots, **CPU)
    assert score.loss == pytest.approx(next_token_loss(logits, whole), abs=1e-12)


def test_cross_entropy_of_pixels() -> None:
    logits, targets = torch.randn(3, 4, 5, 6), torch.randint(4, (3, 5, 6))
    score = evaluate(nn.Identity(), {}, Examples.of(logits, targets), batch_size=2, **CPU)
    assert score.loss == pytest.approx(float(functional.cross_entropy(logits, targets)), rel=1e-6)
    assert score.accuracy == float((logits.argmax(1) == targets).double().mean())


def test_mean_squared_error() -> None:
    x, y = torch.randn(7, 1), torch.randn(7)
    score = evaluate(nn.Identity(), {}, Examples.of(x, y), batch_size=3, **CPU)
    assert score.loss == pytest.approx(float(((x[:, 0] - y) ** 2).mean()), rel=1e-6)
    assert score.accuracy is None
    assert score.ece is None


def test_a_function_as_loss() -> None:
    model, examples = classified()

    def hinge(outputs: Any, targets: Tensor) -> Tensor:
        return functional.multi_margin_loss(outputs["scores"], targets)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": self.inner(x)}

    score = evaluate(Named(), {}, examples, hinge, batch_size=10, **CPU)
    lot = examples.lots[0]
    logits = copy.deepcopy(model).eval()(lot.inputs)
    assert lot.targets is not None
    expected = functional.multi_margin_loss(logits, lot.targets)
    assert score.loss == pytest.approx(float(expected.detach()), abs=1e-12)
    assert score.accuracy == float((logits.argmax(1) == lot.targets).double().mean())
    # One logit for two classes: the function knows what it means, an accuracy does not.
    binary = Examples.of(torch.randn(8, 1), torch.arange(8) % 2)
    odds = evaluate(
        *(nn.Identity(), {}, binary),
        lambda out, y: functional.binary_cross_entropy_with_logits(out[:, 0], y.float()),
        **CPU,
    )
    assert odds.accuracy is None
    assert odds.loss > 0


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


def test_outputs_of_every_kind() -> None:
    loss = loss_function("auto")
    logits, hidden, y = (
        torch.randn(4, 3, requires_grad=True),
        torch.randn(4, 9),
        torch.arange(4) % 3,
    )
    expected = functional.cross_entropy(logits, y)
    for outputs in (
        logits,
        (logits, hidden),
        [logits],
        {"hidden": hidden, "logits": logits},
        Answer(hidden, logits),
        {"only": logits},
    ):
        found = loss(outputs, y)
        assert torch.equal(found, expected)
        assert found.shape == ()
    (gradient,) = torch.autograd.grad(loss((logits, hidden), y), logits)
    assert torch.allclose(gradient, (logits.softmax(1) - functional.one_hot(y, 3)) / 4)
    assert torch.equal(loss(logits, y.int()), expected)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "mentions"),
    [
        ("auto", torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64), ("[4, 3]", "[5] of int64")),
        ("cross_entropy", torch.zeros(4, 3), torch.zeros(4), ("integer targets", "[4] of float32")),
        ("auto", torch.zeros(4), torch.zeros(4, dtype=torch.int64), ("[b, c]",)),
        ("auto", torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), ("from 0 to 3", "logits for 3")),
        ("auto", torch.zeros(2, 3), torch.tensor([0, -1]), ("from -1 to 0", "-100 is left out")),
        ("auto", torch.zeros(4, 3), torch.zeros(4), ("squared error", "[4, 3]", "[4]")),
        ("mse", torch.zeros(4, 2), torch.zeros(4, 1), ("[4, 1]",)),
        ("auto", {"a": torch.zeros(1), "b": torch.zeros(1)}, torch.zeros(1), ("dict with a, b",)),
        ("auto", None, torch.zeros(1), ("NoneType with no tensors",)),
    ],
)
def test_outputs_that_do_not_fit(
    name: str, outputs: Any, targets: Tensor, mentions: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        loss_function(name)(outputs, targets)
    for text in mentions:
        assert text in str(caught.value)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such op")


@pytest.mark.parametrize(
    ("call", "kind", "mentions"),
    [
        (lambda: loss_function("mae"), InputError, ("auto, cross_entropy, mse", "'mae'")),
        (
            lambda: evaluate(nn.Identity(), {}, Examples.of(torch.zeros(2, 3))),
            InputError,
            ("needs targets", "pairs (x, y)"),
        ),
        (
            lambda: evaluate(
                nn.Identity(), {}, Examples.of(torch.zeros(2, 3), torch.full((2,), -100))
            ),
            InputError,
            ("no target counts",),
        ),
        (
            lambda: evaluate(Failing(), {}, Examples.of(torch.zeros(2), torch.zeros(2))),
            ModelError,
            ("forward fails", "no such op"),
        ),
        (
            lambda: evaluate(
                nn.Identity(), {}, Examples.of(torch.zeros(2), torch.zeros(2)), device="gpu"
            ),
            InputError,
            ("'gpu'",),
        ),
    ],
)
def test_what_cannot_be_scored(
    call: Callable[[], object], kind: type[InputError], mentions: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as caught:
        call()
    for text in mentions:
        assert text in str(caught.value)


def test_causal_models_of_hugging_face_have_their_own_loss() -> None:
    pytest.importorskip("transformers")
    from hf_architectures import gpt2

    model = gpt2("eager")[0].eval()
    ids = torch.randint(7, (4, 6))
    labels = ids.clone()
    labels[1, 4:] = -100
    data = Data.of([{"input_ids": ids, "labels": labels}], held=0.5)
    scores = [evaluate(model, {}, part, **CPU) for part in (data.fit, data.held)]
    total = sum(score.loss * sum(score.batch_weights) for score in scores)
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=labels).loss)
    count = sum(sum(score.batch_weights) for score in scores)
    assert count == 4 * 5 - 2
    assert total / count == pytest.approx(expected, rel=1e-5)


PARENTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[float, float]]] = {
    "mlp_128x3": (lambda: mlp([784, 128, 128, 128, 10]), (784,), (0.0838, 0.0805)),
    "mlp_512x3": (lambda: mlp([784, 512, 512, 512, 10]), (784,), (0.0753, 0.0757)),
    "cnn_bn": (lambda: CNN(24), (1, 28, 28), (0.0578, 0.0507)),
    "resnet_w16": (lambda: ResNet(16), (1, 14, 14), (0.0707, 0.0726)),
}
"""Losses of source and target on MNIST's test images, measured in plain torch."""


@pytest.mark.pairs
@pytest.mark.skipif(
    not {"GPU_ALIGN_PAIRS", "GPU_ALIGN_MNIST"} <= os.environ.keys(),
    reason="GPU_ALIGN_PAIRS and GPU_ALIGN_MNIST do not name the folders of pairs and of MNIST",
)
@pytest.mark.parametrize("name", PARENTS)
def test_trained_pairs_on_mnist(name: str) -> None:
    build, shape, losses = PARENTS[name]
    test = Data.of(f"mnist:{os.environ['GPU_ALIGN_MNIST']}").fitted(shape).test
    assert test is not None
    folder = Path(os.environ["GPU_ALIGN_PAIRS"])
    states = [load_file(folder / f"mnist_{name}_{number}.safetensors") for number in (0, 1)]
    scores = evaluate_many(build(), states, test, **CPU)
    assert [round(score.loss, 4) for score in scores] == list(losses)
