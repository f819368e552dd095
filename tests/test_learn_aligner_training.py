"""Training an aligner, the command that does it, and the aligner that comes with gpu-align."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learn_cases import chain, random_states
from marks import slow
from torch import Tensor
from typer.testing import CliRunner, Result

from gpu_align import (
    InputError,
    Learned,
    TaskLoss,
    align,
    chain_spec,
    save_checkpoint,
)
from gpu_align._cli._digits import train
from gpu_align._cli._main import app
from gpu_align._network import load_digits
from gpu_align.learn import (
    Aligner,
    AlignerLosses,
    AlignerSettings,
    ClassifierRecipe,
    Training,
    TrainingFile,
    TrainingPlan,
    Zoo,
    make_zoo,
    perceptron,
    train_aligner,
)
from gpu_align.learn import _training as training_loop
from gpu_align.learn._aligner_losses import distance_share

HIDDEN, COUNT = (6, 5), 12
SETTINGS = AlignerSettings(channels=8, rounds=1, features=16)
PLAN = TrainingPlan(epochs=3, batch=4, rate=1e-2, clip=1.0)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    """Points in four dimensions, of three classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, generator=generator)
    return x, x[:, :3].argmax(1)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, data: tuple[Tensor, Tensor]) -> Zoo:
    recipe = ClassifierRecipe(COUNT, HIDDEN, steps=60, rate=1e-2)
    return make_zoo(tmp_path_factory.mktemp("zoo"), recipe, *data)


def run(
    zoo: Zoo, data: tuple[Tensor, Tensor] | None, **options: object
) -> tuple[Aligner, Training]:
    spec = chain_spec({name: tensor[0] for name, tensor in zoo.states.items()})
    task = None if data is None else TaskLoss(perceptron([4, *HIDDEN, 3]), data, batch_size=20)
    chosen = {"plan": PLAN, "settings": SETTINGS, "held": 0.25, **options}
    return train_aligner(zoo, spec, task=task, **chosen)  # type: ignore[arg-type]


def test_training_brings_networks_closer(zoo: Zoo) -> None:
    only = AlignerLosses(planted=0, distance=1, path=0)
    few = run(zoo, None, plan=replace(PLAN, epochs=1, rate=1e-9), losses=only)
    many = run(zoo, None, plan=replace(PLAN, epochs=15), losses=only)
    assert many[1].best.held is not None
    assert few[1].best.held is not None
    assert many[1].best.held > few[1].best.held
    found = many[0].record
    assert (found["held"], found["task"], found["best"]) == (3, "None", many[1].best.number)
    assert [epoch["loss"] for epoch in found["epochs"]] == [e.loss for e in many[1].epochs]


def test_the_held_back_value_is_that_of_the_hard_alignment(zoo: Zoo) -> None:
    aligner, training = run(zoo, None)
    held = aligner.space.from_stacks({n: t[-3:] for n, t in zoo.states.items()})
    source = tuple(x.roll(-1, 0) for x in held)
    aligned = aligner.space.act(aligner.align(held, source), source)
    expected = -float(distance_share(held, source, aligned).mean())
    assert training.best.held == pytest.approx(expected, rel=1e-6)
    shares = distance_share(held, source, aligned)
    apart = sum((a - b).square().flatten(1).sum(1) for a, b in zip(held, aligned, strict=True))
    norms = sum(x.square().flatten(1).sum(1) for x in (*held, *source))
    torch.testing.assert_close(shares, apart / norms)


@pytest.mark.parametrize("last", slow([2, 4, 8], but=[8]))
def test_an_interrupted_training_ends_with_the_same_file(
    last: int,
    zoo: Zoo,
    data: tuple[Tensor, Tensor],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aligner, _ = run(zoo, data)
    aligner.save(work / "whole.safetensors")
    steps = iter(range(1, 100))
    plain = training_loop.TrainingPlan.rate_at

    def interrupted(plan: TrainingPlan, step: int, of: int) -> float:
        if next(steps) == last:
            raise KeyboardInterrupt
        return plain(plan, step, of)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop.TrainingPlan, "rate_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(zoo, data, file=TrainingFile(work / "kept"))
    torch.manual_seed(77)
    again, _ = run(zoo, data, file=TrainingFile(work / "kept", resume=True))
    again.save(work / "resumed.safetensors")
    assert (work / "whole.safetensors").read_bytes() == (work / "resumed.safetensors").read_bytes()


def test_every_loss_counts(zoo: Zoo, data: tuple[Tensor, Tensor]) -> None:
    nothing = {"planted": 0.0, "distance": 0.0, "path": 0.0}
    first = {}
    for name in nothing:
        losses = AlignerLosses(**(nothing | {name: 1.0}))
        _, training = run(zoo, data, losses=losses, plan=replace(PLAN, epochs=4))
        first[name] = training.epochs[0].loss
        if name == "planted":  # the others depend on which networks are drawn
            assert training.epochs[-1].loss < 0.9 * first[name]
    assert len(set(first.values())) == 3


def test_what_cannot_be_trained_on_is_refused(zoo: Zoo, data: tuple[Tensor, Tensor]) -> None:
    few = Zoo({n: t[:3] for n, t in zoo.states.items()}, {}, {})
    with pytest.raises(InputError, match="at least 4 networks"):
        run(few, None)
    with pytest.raises(InputError, match="share of held-back networks"):
        run(zoo, None, held=1.0)
    spec = chain_spec({name: tensor[0] for name, tensor in zoo.states.items()})
    with pytest.raises(InputError, match="has no tensor"):
        train_aligner(zoo, spec, task=TaskLoss(torch.nn.Linear(4, 3), data), plan=PLAN)
    with pytest.raises(InputError, match="does not fit"):
        train_aligner(random_states(chain(4, 3, 2), 5), spec, plan=PLAN)


# The command

Cli = Callable[..., Result]
FEW = ("--epochs", "2", "--channels", "8", "--rounds", "1", "--batch", "4", "--device", "cpu")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: Zoo, data: tuple[Tensor, Tensor]
) -> Path:
    """A folder with checkpoints of the zoo and its data; we are in it."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        state = {name: tensor[number] for name, tensor in zoo.states.items()}
        save_checkpoint(f"{number}.safetensors", state)
    np.savez("data.npz", x=data[0].numpy(), y=data[1].numpy())
    return tmp_path


FILES = [f"{number}.safetensors" for number in range(6)]


def test_networks_are_trained_and_aligned_by_commands(cli: Cli, folder: Path) -> None:
    make = ("learn", "aligner", "zoo", "--train", "8", "--hidden", "6,5", "--data", "data.npz")
    first = cli(*make, *FEW, "-o", "a.safetensors", "--json")
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert document["schema"] == "gpu-align/learn-aligner/1"
    assert [epoch["number"] for epoch in document["epochs"]] == [1, 2]
    assert document["zoo"]["recipe"] == "ClassifierRecipe"
    assert sorted(path.name for path in folder.glob("a.*")) == ["a.safetensors"]
    again = cli(*make, *FEW, "-o", "b.safetensors")
    assert "wrote aligner: b.safetensors" in again.stdout
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    distances = []
    for search in ("learned", "descent"):
        options = ("--search", search, "--aligner", "a.safetensors", "--json")
        result = cli("align", "7.safetensors", "6.safetensors", *options)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["search"] == "Learned"
        distances.append(found["distance"])
    assert distances == sorted(distances, reverse=True)


def test_checkpoints_of_ones_own_are_enough(cli: Cli, folder: Path) -> None:
    result = cli("learn", "aligner", *FILES, *FEW, "-o", "a.safetensors")
    assert result.exit_code == 0, result.output
    assert "held back" in result.stdout
    record = Aligner.load("a.safetensors").record
    assert record["files"] == FILES
    assert record["losses"]["path"] == 0


def test_an_interrupted_command_is_resumed(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("learn", "aligner", *FILES, *FEW, "-o")
    assert cli(*command, "whole.safetensors").exit_code == 0
    calls = iter(range(10))
    steps = training_loop._Run._steps

    def interrupted(self: training_loop._Run) -> float:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return steps(self)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop._Run, "_steps", interrupted)
        result = cli(*command, "a.safetensors")
    assert result.exit_code == 1
    assert "run the same command with --resume" in result.output
    assert Path("a.safetensors.training").exists()
    assert not Path("a.safetensors").exists()
    refused = cli(*command, "a.safetensors")
    assert (refused.exit_code, "a.safetensors.training" in refused.output) == (2, True)
    assert cli(*command, "a.safetensors", "--resume").exit_code == 0
    assert Path("a.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert not Path("a.safetensors.training").exists()
    refused = cli(*command, "a.safetensors", "--resume")
    assert (refused.exit_code, "no training is kept" in refused.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("zoo", "--train", "8"), "trained on --data; add it"),
        ((*FILES, "--train", "8"), "name a folder for them"),
        (("zoo", "--train", "8", "--data", "data.npz", "--hidden", "6,x"), "numbers of units"),
        (("zoo",), "holds no zoo"),
        ((*FILES, "--data", "data.npz"), "add --model and --input-shape"),
        ((*FILES, "-o", "a.pt"), ".safetensors"),
        ((*FILES, "-o", "0.safetensors"), "0.safetensors"),
    ],
)
def test_bad_input_is_refused(
    arguments: tuple[str, ...], text: str, cli: Cli, folder: Path
) -> None:
    out = () if "-o" in arguments else ("-o", "a.safetensors")
    result = cli("learn", "aligner", *arguments, *FEW, *out)
    assert result.exit_code == 2, result.output
    assert text in " ".join(result.output.split())


def test_an_aligner_of_other_networks_is_refused(cli: Cli, folder: Path) -> None:
    result = cli("align", "1.safetensors", "0.safetensors", "--search", "learned")
    assert result.exit_code == 2
    assert "trained for networks with parameters 64x64" in " ".join(result.output.split())
    result = cli("align", "1.safetensors", "0.safetensors", "--aligner", "0.safetensors")
    assert result.exit_code == 2
    assert "holds no aligner" in " ".join(result.output.split())


# The bundled aligner


def test_the_bundled_aligner_knows_the_demos_perceptrons(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    aligner = Aligner.bundled()
    digits = load_digits()
    target, source = (train("mlp", digits, seed=seed, quick=True) for seed in (0, 1))
    example = digits.test_images[:4]
    result = align(source, target, example_inputs=example, search=Learned(aligner))
    best = align(source, target, example_inputs=example, search="descent")
    gained = result.distance_before - result.distance
    assert gained > 0.9 * (best.distance_before - best.distance)
    assert result.function_preserved


def test_the_log_of_the_bundled_aligner_lies_beside_it() -> None:
    aligner = Aligner.bundled()
    file = Path(__file__).parents[1] / "gpu_align" / "learn" / "digits_mlp.safetensors"
    assert file.stat().st_size < 5_000_000
    log = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert {name: log[name] for name in aligner.record} == aligner.record
    assert log["command"] == "python -m bench.bundled_aligner"
    assert len(log["epochs"]) >= log["best"]
