"""Exported programs on data: they do what the module does, whatever batch they were made for."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import each_once, slow
from networks import randomised
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from typer.testing import CliRunner

from gpu_align import (
    InputError,
    ModelError,
    Sinkhorn,
    StraightThrough,
    TaskLoss,
    activation_evidence,
    align,
    barrier,
    discover,
    loss_plane,
    merge,
    partial_merge,
    repair,
)
from gpu_align._cli._main import app
from gpu_align._network import Batch, Examples, Limits, Score, evaluate_many

METHODS = ("naive", "norms", "repair", "rescale", "refit", "refit-parents", "distill")
"""Of merging; the automatic one tries all but one of them."""
DIGITS = 1e-9
"""Relative difference of float64 values that is rounding."""


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)
        self.second, self.last = nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(24, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(image)))
        return self.head(F.relu(self.last(self.second(x))).flatten(1))


class Attention(nn.Module):
    """Tokens and weights by name, and logits beside a state."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 7)

    def forward(self, tokens: Tensor, share: Tensor) -> dict[str, Tensor]:
        x = self.table(tokens) * share[:, None, None]
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(x)))
        return {"state": x, "logits": self.head(x)}


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


@dataclass(frozen=True)
class Case:
    """Two networks in float64, and data."""

    first: nn.Module
    second: nn.Module
    inputs: Any
    targets: Tensor

    @property
    def states(self) -> list[dict[str, Tensor]]:
        return [dict(net.state_dict()) for net in (self.first, self.second)]

    @property
    def data(self) -> tuple[Any, Tensor]:
        return self.inputs, self.targets

    def program(self, batch: int, dynamic: Dim | None = None) -> ExportedProgram:
        example = Batch(self.inputs)[:batch].inputs
        args, kwargs = ((), example) if isinstance(example, dict) else ((example,), {})
        shapes: Any = None
        if dynamic is not None:
            names = example if isinstance(example, dict) else ("input",)
            sizes = {0: dynamic}
            shapes = dict.fromkeys(names, sizes) if kwargs else (sizes,)
        return torch.export.export(self.first, args, kwargs, dynamic_shapes=shapes)


def case(name: str, count: int = 120) -> Case:
    generator = torch.Generator().manual_seed(5)
    inputs: Any
    match name:
        case "mlp":
            make, inputs = perceptron, torch.randn(count, 5, generator=generator).double()
        case "cnn":
            make, inputs = Convolutions, torch.randn(count, 1, 6, 6, generator=generator).double()
        case _:
            make = Attention
            share = torch.rand(count, generator=generator).double()
            tokens = torch.randint(7, (count, 4), generator=generator)
            inputs = {"share": share, "tokens": tokens}  # in another order than forward has them
    shape = (count, 4) if name == "tokens" else (count,)
    targets = torch.randint(3, shape, generator=generator)
    first, second = randomised(make(), 1), randomised(make(), 2)
    return Case(first, second, inputs, targets)


CASES = ("mlp", "cnn", "tokens")
BATCHES = {
    **{str(size): (size, None) for size in (1, 2, 7, 64, 200)},
    "3 to 16": (4, Dim("batch", min=3, max=16)),
}
"""Batches of programs, for data of 120 examples."""


def near(found: object, expected: object, digits: float = DIGITS) -> bool:
    return found == pytest.approx(expected, rel=digits, abs=digits)


@pytest.mark.parametrize(("batch", "name"), each_once(BATCHES, CASES))
def test_scores_are_those_of_the_module(batch: str, name: str) -> None:
    own = case(name)
    examples, program = Examples.of(*own.data), own.program(*BATCHES[batch]).module()
    for size in (50, 9):
        found, expected = (
            evaluate_many(module, own.states, examples, batch_size=size, device="cpu")
            for module in (program, own.first)
        )
        for score, wanted in zip(found, expected, strict=True):
            assert score.examples == 120
            assert score.batch_weights == wanted.batch_weights
            assert near(score.batch_losses, wanted.batch_losses)
            assert near((score.loss, score.accuracy), (wanted.loss, wanted.accuracy))
            assert near(score.ece, wanted.ece)


class Layers(nn.Module):
    """Its hidden values have their examples on the second axis, as those of a recurrence do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x).tanh()
        second = self.second(first).tanh()
        return {"hidden": torch.stack([first, second]), "logits": self.head(second)}


def test_outputs_of_which_two_axes_may_be_that_of_examples_are_refused() -> None:
    own, module = case("mlp", 70), randomised(Layers(), 3)
    program = torch.export.export(module, (own.inputs[:2],)).module()
    states, examples = [dict(module.state_dict())], Examples.of(*own.data)
    with pytest.raises(ModelError, match=r"several axes have as many entries.*another size"):
        evaluate_many(program, states, examples, lambda y, _: y["hidden"].mean(), device="cpu")


@pytest.mark.parametrize("size", [8, 20, 64])
def test_a_loss_of_the_callers_own_gets_all_outputs_as_the_module_gives_them(size: int) -> None:
    own, module = case("mlp", 70), randomised(Layers(), 3)
    program = torch.export.export(module, (own.inputs[:size],)).module()
    seen: list[Mapping[str, Tensor]] = []

    def loss(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        assert len(outputs["logits"]) == len(targets)
        seen.append(outputs)
        return outputs["hidden"].square().mean()

    states, examples = [dict(module.state_dict())], Examples.of(*own.data)
    for each in (module, program):
        evaluate_many(each, states, examples, loss, batch_size=15, device="cpu")
    pairs = list(zip(seen[:5], seen[5:], strict=True))
    assert len(pairs) == 5
    for expected, found in pairs:
        assert list(found) == ["hidden", "logits"]
        assert found["hidden"].shape == expected["hidden"].shape
        assert all(torch.allclose(found[name], expected[name]) for name in expected)


class Beside(nn.Module):
    """A network that returns something that is not of examples."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.linear, self.constant = nn.Linear(5, 3), constant

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(x)
        return logits, self.linear.bias * 2 if self.constant else logits.mean()


def test_what_is_not_of_examples_is_refused_where_it_is_looked_at() -> None:
    own = case("mlp", 20)

    def run(constant: bool, loss: Any) -> list[Score]:
        module = randomised(Beside(constant), 3)
        program = torch.export.export(module, (own.inputs[:8],)).module()
        states, examples = [dict(module.state_dict())], Examples.of(*own.data)
        found = evaluate_many(program, states, examples, loss, device="cpu")
        expected = evaluate_many(module, states, examples, loss, device="cpu")
        assert near(found[0].loss, expected[0].loss)
        return found

    run(constant=False, loss="cross_entropy")  # which looks at the logits alone
    run(constant=True, loss=lambda outputs, targets: outputs[0].mean() + outputs[1].sum())
    with pytest.raises(ModelError, match=r"without an axis of examples.*dynamic batch"):
        run(constant=False, loss=lambda outputs, targets: outputs[0].mean())


@pytest.mark.parametrize(("name", "norms"), each_once(CASES, ("stored", "batch")))
def test_task_losses_and_their_gradients_are_those_of_the_module(name: str, norms: Any) -> None:
    own = case(name, 60)

    def values(model: Any, state: dict[str, Tensor]) -> list[Tensor]:
        loss = TaskLoss(model, own.data, batch_size=25, norms=norms)
        leaves = {
            n: t.clone().requires_grad_(t.is_floating_point() and "running" not in n)
            for n, t in state.items()
        }
        value = loss.of_batch(leaves, loss.fit.lots[0][:25])
        learned = [leaf for leaf in leaves.values() if leaf.requires_grad]
        gradients = torch.autograd.grad(value, learned)
        return [value.detach(), loss.held_loss(state), *gradients]

    expected = values(own.first, own.states[1])
    for program in (own.program(7), own.program(64), own.program(4, Dim("batch"))):
        for found, wanted in zip(values(program, own.states[1]), expected, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-11)


def test_batch_norms_see_the_batch() -> None:
    own = case("cnn", 40)
    state = own.states[0]
    batch = TaskLoss(own.program(8), own.data, norms="batch")
    stored = TaskLoss(own.program(8), own.data, norms="stored")
    assert not near(float(batch.held_loss(state)), float(stored.held_loss(state)), 1e-3)


class Sheltered(nn.Module):
    """A batch norm in a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.norm(x)
        return self.head(x)


def test_batch_norms_that_cannot_see_the_batch_are_refused() -> None:
    own = case("mlp", 40)
    module = randomised(Sheltered(), 4)
    program = torch.export.export(module, (own.inputs[:4],))
    with pytest.raises(ModelError, match=r"norms='stored'"):
        TaskLoss(program, own.data).held_loss(module.state_dict())
    found, expected = (
        float(TaskLoss(model, own.data, norms="stored").held_loss(module.state_dict()))
        for model in (program, module)
    )
    assert near(found, expected)


class Folded(nn.Module):
    """A batch norm over examples and places on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.reshape(-1, 1)).reshape(x.shape))


def test_batch_norms_over_more_than_examples_are_refused_in_parts() -> None:
    own, module = case("mlp", 40), randomised(Folded(), 4)
    state = dict(module.state_dict())
    with pytest.raises(ModelError, match=r"on one axis.*norms='stored'"):
        TaskLoss(torch.export.export(module, (own.inputs[:5],)), own.data).held_loss(state)
    whole = torch.export.export(module, (own.inputs[:8],))  # all that are held back
    found, expected = (float(TaskLoss(m, own.data).held_loss(state)) for m in (whole, module))
    assert near(found, expected)


def test_one_example_is_not_left_to_a_batch_norm_alone() -> None:
    own = case("cnn", 25)
    task = TaskLoss(own.first, (own.inputs, own.targets), batch_size=4)
    assert len(task.held) == 5
    whole = TaskLoss(own.first, (own.inputs, own.targets), batch_size=5)
    assert float(task.held_loss(own.states[0])) == float(whole.held_loss(own.states[0]))


class Scaled(nn.Module):
    """It takes a number beside the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layers(x) * scale


def test_inputs_without_an_axis_of_examples_are_left_as_they_are() -> None:
    own = case("mlp")
    nets = [randomised(Scaled(), seed) for seed in (1, 2)]
    inputs = (own.inputs[:4], torch.tensor(2.0).double())
    program = torch.export.export(nets[0], inputs)
    state = dict(nets[1].state_dict())
    found, expected = (
        align(state, target, example_inputs=inputs, search="descent", device="cpu")
        for target in (program.module(), nets[0])
    )
    assert found.distance == expected.distance
    assert found.function_preserved


def test_programs_in_training_are_not_run_in_parts() -> None:
    own = case("cnn", 40)
    program = torch.export.export(copy.deepcopy(own.first).train(), (own.inputs[:8],)).module()
    with pytest.raises(ModelError, match=r"training mode.*model\.eval\(\)"):
        evaluate_many(program, own.states, Examples.of(*own.data), device="cpu")


@pytest.mark.parametrize("search", slow([StraightThrough, Sinkhorn], but=[StraightThrough]))
def test_searches_by_a_task_loss_go_the_way_of_the_module(search: Any) -> None:
    own = case("cnn", 60)
    spec = discover(own.first, own.inputs[:2])
    losses = []
    for model in (own.first, own.program(7).module()):
        task = TaskLoss(model, own.data, batch_size=20)
        found = align(*own.states[::-1], spec=spec, search=search(task, steps=4), device="cpu")
        losses.append((found.distance, *found.permutation.perms["first"].tolist()))
    assert near(losses[1], losses[0])


def tried(networks: list[Any], data: Any, **options: Any) -> dict[tuple[str, str], float]:
    result = merge(networks, data, search="descent", device="cpu", **options)
    return {(trial.order, trial.method): trial.loss or 0.0 for trial in result.trials}


WAYS = [(name, method) for name in CASES for method in METHODS]


@pytest.mark.parametrize("way", slow(WAYS, but=[("tokens", "rescale")]))
def test_merges_by_every_method_are_those_of_the_module(way: tuple[str, str]) -> None:
    name, method = way
    own = case(name)
    # A module's layers are fitted on batches of 16, too, where there are 96 examples.
    program = own.program(16).module()
    expected = tried([own.first, own.states[1]], own.data, method=method, examples=96)
    found = tried([program, own.states[1]], own.data, method=method, examples=96)
    assert near(found, expected, 1e-6)


def test_the_automatic_merge_is_that_of_the_module() -> None:
    own = case("cnn")
    expected = tried([own.first, own.states[1]], own.data, examples=96)
    found = tried([own.program(16).module(), own.states[1]], own.data, examples=96)
    assert len(found) > 8
    assert near(found, expected, 1e-6)


PASSES = [(size, method) for size in (1, 2, 96) for method in ("norms", "repair", "rescale")]


@pytest.mark.parametrize("one", slow(PASSES, but=[(2, "repair")]))
def test_what_is_measured_on_all_examples_does_not_depend_on_the_batch(
    one: tuple[int, str],
) -> None:
    size, method = one
    own = case("cnn")  # of which 96 are fitted on
    expected = tried([own.first, own.states[1]], own.data, method=method)
    found = tried([own.program(size).module(), own.states[1]], own.data, method=method)
    assert near(found, expected, 1e-6)


def test_a_dynamic_batch_is_merged_as_the_module_is() -> None:
    own = case("mlp")
    program = own.program(4, Dim("batch")).module()
    expected = tried([own.first, own.states[1]], own.data, method="distill")
    found = tried([program, own.states[1]], own.data, method="distill")
    assert near(found, expected, 1e-6)


def test_layers_need_two_batches() -> None:
    own = case("mlp")
    program = own.program(64).module()
    networks = [program, own.states[1]]
    for method in ("refit", "refit-parents", "distill"):
        with pytest.raises(InputError, match=r"of 64 examples, .* two batches .*dynamic"):
            tried(networks, own.data, method=method)
    result = merge(networks, own.data, search="descent", device="cpu")
    assert {trial.method for trial in result.trials} == {"", "norms", "repair"}
    [note] = [note for note in result.notes if "left out" in note]
    assert note.startswith("refit, refit-parents and distill were left out: the program takes")


def test_too_few_examples_for_one_batch_are_refused() -> None:
    own = case("cnn")
    program = own.program(97)
    with pytest.raises(InputError, match=r"batches of 97 examples, .* the 96 .*more data"):
        merge([program.module(), own.states[1]], own.data, method="norms", device="cpu")
    with pytest.raises(InputError, match=r"batches of 97"):
        repair(own.first, own.data, model=program, device="cpu")


def test_a_batch_is_taken_where_fewer_examples_were_asked_for() -> None:
    own = case("cnn")
    program = own.program(54).module()
    few, enough = (
        repair(program, own.data, parents=own.states, examples=count, device="cpu")
        for count in (20, 54)
    )
    assert few.after == enough.after
    measured = barrier(*own.states, own.data, model=program, points=3, statistics=2, device="cpu")
    assert measured.statistics_examples == 54


@pytest.mark.parametrize("in_double", slow([False, True], but=[True]))
def test_barriers_are_those_of_the_module(in_double: bool) -> None:
    own = case("cnn")
    options: Any = {"points": 3, "search": "descent", "device": "cpu", "in_double": in_double}
    expected = barrier(*own.states, own.data, model=own.first, **options)
    found = barrier(*own.states, own.data, model=own.program(12), **options)
    for curve, wanted in zip(found.curves, expected.curves, strict=True):
        assert near(curve.losses, wanted.losses)
        assert near(curve.barrier, wanted.barrier)
        assert near(curve.standard_errors, wanted.standard_errors)


@pytest.mark.slow
def test_planes_are_those_of_the_module() -> None:
    own = case("cnn")
    options: Any = {"search": "descent", "device": "cpu", "grid": 2}
    found, expected = (
        loss_plane(*own.states, own.data, model=model, **options).losses
        for model in (own.program(4), own.first)
    )
    assert all(near(row, wanted) for row, wanted in zip(found, expected, strict=True))


@pytest.mark.parametrize("method", slow(["norms", "repair", "rescale"], but=["norms"]))
def test_repairs_are_those_of_the_module(method: str) -> None:
    own, program = case("cnn"), case("cnn").program(4)
    parents = [] if method == "norms" else own.states
    options: Any = {"parents": parents, "method": method, "device": "cpu"}
    expected = repair(own.first, own.data, **options)
    assert expected.after is not None
    for made in (
        repair(program.module(), own.data, **options),
        repair(own.states[0], own.data, model=program, **options),
    ):
        assert made.after is not None
        assert near(made.after.loss, expected.after.loss)
        for name, tensor in expected.state_dict.items():
            assert torch.allclose(made.state_dict[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", slow(CASES, but=["mlp"]))
def test_alignment_on_data_is_that_of_the_module(name: str) -> None:
    own = case(name)
    spec = discover(own.first, Batch(own.inputs)[:2].inputs)
    expected = activation_evidence(*own.states, spec, own.data, model=own.first, device="cpu")
    assert expected
    for program in (own.program(2), own.program(4, Dim("batch", min=2, max=27))):
        for model in (program, program.module()):
            found = activation_evidence(*own.states, spec, own.data, model=model, device="cpu")
            assert found.keys() == expected.keys()
            assert all(torch.allclose(found[key], expected[key]) for key in expected)
    options: Any = {"data": own.data, "search": "descent", "device": "cpu"}
    distances = [
        align(own.states[1], network, **options).distance
        for network in (own.first, own.program(2).module())
    ]
    assert near(*distances)


def test_what_a_program_takes() -> None:
    own = case("mlp", 8)
    assert Limits.of(own.first) == Limits(1, None)
    assert Limits.of(own.program(6).module()) == Limits(6, 6)
    assert Limits.of(own.program(6, Dim("batch")).module()).most is None
    assert Limits.of(own.program(6, Dim("batch", min=3, max=9)).module()) == Limits(3, 9)
    # Of a size that is computed, only the one that was traced is known to be right.
    assert Limits.of(own.program(6, 2 * Dim("half")).module()) == Limits(6, 6)


def test_parts_of_a_batch_have_every_example_once_and_then_some_again() -> None:
    batch = Batch(torch.arange(11))
    parts = [part.inputs.tolist() for part in Limits(4, 4).parts(batch)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 8]]
    parts = [part.inputs.tolist() for part in Limits(3, 5).parts(batch)]
    assert parts == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 10, 10]]
    assert [len(part) for part in Limits(20, 20).parts(batch)] == [20]


def test_programs_are_not_widened() -> None:
    own = case("mlp")
    program = own.program(4)
    spec = discover(program, None)
    made = partial_merge(*own.states, spec, program.module(), program.example_inputs[0])
    assert made.width == 1
    assert set(made.whole) == set(spec.groups)
    assert all("exported program" in reason for reason in made.whole.values())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A folder with two checkpoints, data, and programs of several batches."""
    monkeypatch.chdir(tmp_path)
    own = case("cnn")
    for number, state in enumerate(own.states):
        torch.save(state, f"{number}.pt")
    np.savez("data.npz", x=own.inputs.numpy(), y=own.targets.numpy())
    torch.export.save(own.program(2), "fixed.pt2")
    torch.export.save(own.program(2, Dim("batch")), "dynamic.pt2")
    return own


@pytest.mark.usefixtures("folder")
def test_images_are_brought_to_the_shape_that_a_program_takes() -> None:
    model = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10)).eval()
    torch.save(model.state_dict(), "flat.pt")
    torch.export.save(torch.export.export(model, (torch.randn(100, 64),)), "flat.pt2")
    options = "flat.pt flat.pt -o out.pt --search descent --model flat.pt2 --data digits"
    result = CliRunner().invoke(app, ["align", *options.split(), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["distance"] == 0


COMMANDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "align": ("0.pt 1.pt --search descent -o aligned.pt", lambda found: found["distance"]),
    "barrier": (
        "0.pt 1.pt --search descent --points 3",
        lambda found: [curve["losses"] for curve in found["curves"]],
    ),
    "merge": (
        "0.pt 1.pt --search descent --method repair -o merged.pt",
        lambda found: [trial["loss"] for trial in found["trials"]],
    ),
    "repair": (
        "0.pt -o repaired.pt",
        lambda found: [found[key]["loss"] for key in ("before", "after")],
    ),
}


@pytest.mark.parametrize("command", slow(COMMANDS, but=["merge"]))
@pytest.mark.usefixtures("folder")
def test_commands_take_programs_of_a_fixed_batch(command: str) -> None:
    arguments, figures = COMMANDS[command]

    def run(model: str) -> Any:
        options = ("--model", model, "--data", "data.npz", "--device", "cpu", "--json")
        result = CliRunner().invoke(app, [command, *arguments.split(), *options])
        assert result.exit_code == 0, result.output
        return figures(json.loads(result.stdout))

    assert np.allclose(run("fixed.pt2"), run("dynamic.pt2"), rtol=1e-6)
