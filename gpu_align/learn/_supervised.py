"""Models side by side on one supervised task: what networks are like, told from their weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gpu_align._errors import CheckpointError
from gpu_align.learn._cells import Features
from gpu_align.learn._readers import FlatPerceptron, Make
from gpu_align.learn._space import WeightSpace
from gpu_align.learn._study import Row, Run
from gpu_align.learn._training import Epoch, Training, TrainingPlan, train
from gpu_align.learn._training_file import TrainingFile

AUGMENTED = "raw, reordered anew in each step"
"""The form of weights to which symmetries are applied while a model is trained."""

_AT_ONCE = 512
"""Networks that a model reads at once where it is not trained."""


@dataclass(frozen=True)
class Parts:
    """Numbers of networks: to train on, to choose by, and only to report on."""

    train: Tensor
    held: Tensor
    test: Tensor


@dataclass(frozen=True)
class Task:
    """What is to be told of networks.

    Attributes:
        targets: of all networks, [n, ...].
        parts: which networks are for what.
        loss: of outputs and targets.
        measures: name -> function of outputs and targets; the first one, to go up, is chosen by.
        data: what says whether a kept training belongs to these networks.
    """

    targets: Tensor
    parts: Parts
    loss: Callable[[Tensor, Tensor], Tensor]
    measures: dict[str, Callable[[Tensor, Tensor], float]]
    data: str = ""


@dataclass(frozen=True)
class Setting:
    """A model and its training, one of those that are tried."""

    name: str
    make: Make
    plan: TrainingPlan


def perceptrons(inputs: int, outputs: int, epochs: int) -> tuple[Setting, ...]:
    """Return perceptrons that are tried on features in a row: a small and a regularised one."""

    def setting(name: str, hidden: int, dropout: float, plan: TrainingPlan) -> Setting:
        return Setting(name, lambda: FlatPerceptron(inputs, outputs, hidden, dropout), plan)

    strong = TrainingPlan(epochs, rate=1e-3, decay=0.1)
    return (
        setting("128 units", 128, 0.2, TrainingPlan(epochs, rate=3e-3)),
        setting("512 units, strong dropout and decay", 512, 0.7, strong),
    )


@dataclass(frozen=True)
class Way:
    """A model and the form of the weights that it gets.

    Attributes:
        model, form: their names.
        features: of all networks.
        settings: tried from the first seed; the one that is best on held-back networks is taken.
        symmetries: a space of which symmetries are drawn anew for every network in every step.
        listed_apart: whether it may do what the others may not.
    """

    model: str
    form: str
    features: Features
    settings: tuple[Setting, ...]
    symmetries: WeightSpace | None = None
    listed_apart: bool = False


def _nothing(text: str, done: int, total: int | None) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Work:
    """How experiments are run.

    Attributes:
        seeds: of the trainings.
        device: where models are trained.
        folder: for the files of trainings, made if it is not there; None keeps none.
        resume: whether to go on from such files.
        progress: told what is done, and how much of it.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Path | None = None
    resume: bool = False
    progress: Callable[[str, int, int | None], None] = _nothing

    def file(self, name: str) -> TrainingFile | None:
        """Return where a training of this name is kept.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        if self.folder is None:
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise CheckpointError(
                f"cannot make the folder {str(self.folder)!r}: {failure}"
            ) from failure
        plain = "".join(c if c.isalnum() else "_" for c in name)
        return TrainingFile(self.folder / f"{plain}.pt", resume=self.resume)

    def show(self, name: str, epochs: int) -> Callable[[Epoch], None]:
        """Return what shows the epochs of a training of this name."""
        self.progress(name, 0, epochs)
        return lambda epoch: self.progress(name, epoch.number, epochs)


@dataclass(frozen=True)
class Measured:
    """A row, and what the model of the first seed says of test networks."""

    row: Row
    outputs: Tensor


def measured(way: Way, task: Task, work: Work) -> Measured:
    """Choose a setting by the networks held back, train it from all seeds, and test it.

    Raises:
        CheckpointError: a kept training cannot be used or written.
    """
    first, *others = work.seeds
    tried = [(_trained(way, setting, task, work, first), setting) for setting in way.settings]
    (run, model), setting = max(tried, key=lambda pair: _held(pair[0][0]))
    runs = (run, *(_trained(way, setting, task, work, seed)[0] for seed in others))
    row = Row(
        *(way.model, way.form, runs, trained_numbers(model)),
        setting=setting.name,
        settings=len(way.settings),
        listed_apart=way.listed_apart,
    )
    return Measured(row, read(model, way.features, task.parts.test))


def _held(run: Run) -> float:
    return -torch.inf if run.held is None else run.held


def fresh(make: Make, seed: int, device: torch.device) -> nn.Module:
    """Return a model as it is made from torch's generator with a seed, which is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return make().to(device)


def trained_numbers(model: nn.Module) -> int:
    """Return how many numbers of a model are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def run_of(training: Training, seed: int, values: dict[str, float]) -> Run:
    """Return what a training from a seed has come to."""
    return Run(
        *(seed, values, training.best.held),
        epochs=len(training.epochs),
        epoch=training.best.number,
        seconds=training.seconds,
    )


def _trained(
    way: Way, setting: Setting, task: Task, work: Work, seed: int
) -> tuple[Run, nn.Module]:
    """Train a model from a seed; return what it comes to, and the model."""
    model = fresh(setting.make, seed, work.device)
    inside = task.parts.train

    def loss(numbers: Tensor) -> Tensor:
        chosen = inside[numbers].to(task.targets.device)
        some = tuple(x[chosen] for x in way.features)
        if way.symmetries is not None:
            some = way.symmetries.act(way.symmetries.random_elements(len(numbers)), some)
        return task.loss(model(some), task.targets[chosen])

    name = f"{way.model}, {way.form}, {setting.name or 'setting 1'}, seed {seed}"
    training = train(
        *(model, loss, len(inside), setting.plan),
        held=lambda: _scores(model, way, task, task.parts.held)[next(iter(task.measures))],
        seed=seed,
        file=work.file(name),
        settings={"networks": task.data},
        progress=work.show(name, setting.plan.epochs),
    )
    return run_of(training, seed, _scores(model, way, task, task.parts.test)), model


def read(model: nn.Module, features: Features, numbers: Tensor) -> Tensor:
    """Return what a model says of some networks, [n, ...], without gradients."""
    with torch.no_grad():
        parts = numbers.to(features[0].device).split(_AT_ONCE)
        return torch.cat([model(tuple(x[part] for x in features)) for part in parts])


def _scores(model: nn.Module, way: Way, task: Task, numbers: Tensor) -> dict[str, float]:
    outputs = read(model, way.features, numbers)
    targets = task.targets[numbers.to(task.targets.device)]
    return {name: measure(outputs, targets) for name, measure in task.measures.items()}
