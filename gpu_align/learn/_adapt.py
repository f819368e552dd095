"""Classifiers changed for a shifted domain, from their weights alone."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from gpu_align._network import Data, Examples
from gpu_align._symmetry import chain_spec
from gpu_align.learn._cells import Features
from gpu_align.learn._domains import shifted
from gpu_align.learn._entries import MessageEntries
from gpu_align.learn._forms import Frames
from gpu_align.learn._layers import ResidualBlock
from gpu_align.learn._linear import EquivariantLinear
from gpu_align.learn._messages import MessagePassing
from gpu_align.learn._nets import perceptron
from gpu_align.learn._readers import Make, in_a_row
from gpu_align.learn._recipes import ClassifierRecipe
from gpu_align.learn._space import WeightSpace
from gpu_align.learn._split_zoos import (
    SEEDS_APART,
    Source,
    SplitZoo,
    classes_of,
    make_split_zoo,
    required_test,
)
from gpu_align.learn._study import Row, Run, Study
from gpu_align.learn._supervised import AUGMENTED, Work, fresh, run_of, trained_numbers
from gpu_align.learn._training import TrainingPlan, train
from gpu_align.learn._zoos import make_zoo

_IMAGES = 64
"""Images on which a changed classifier is judged in a step."""

_ON_SHIFTED = 20
"""Networks trained on shifted images, to compare with."""

_ACCURACY, _BEFORE, _ALIKE = "accuracy", "on images as they were", "two agree"


@dataclass(frozen=True)
class Adaptation:
    """How many classifiers there are, how images are shifted, and how models are trained.

    Attributes:
        train, held, test: numbers of classifiers.
        hidden: units of their hidden layers.
        shift: one of `SHIFTS`.
        amount: of it; None for the usual one.
        effort: factor of the numbers of epochs.
    """

    train: int = 300
    held: int = 50
    test: int = 100
    hidden: tuple[int, ...] = (32, 32)
    shift: str = "rotate"
    amount: float | None = None
    effort: float = 1.0


class Adapter(nn.Module):
    """A model that adds to weights what it makes of them.

    Attributes:
        change: features of unit scale -> what is added, in these units.
    """

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change
        self.size = nn.Parameter(torch.tensor(0.1))

    def forward(self, features: Features) -> Features:
        """Return features by cell with the change added."""
        change = self.change(features)
        return tuple(x + self.size * y for x, y in zip(features, change, strict=True))


class FlatChange(nn.Module):
    """A perceptron from all features in a row to as many numbers, as features by cell."""

    def __init__(self, like: Features, hidden: int = 128) -> None:
        super().__init__()
        self.shapes = [x.shape[1:] for x in like]
        width = sum(shape.numel() for shape in self.shapes)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, width)
        )

    def forward(self, features: Features) -> Features:
        """Return features of the same shapes."""
        parts = self.layers(in_a_row(features)).split([s.numel() for s in self.shapes], 1)
        return tuple(x.unflatten(1, s) for x, s in zip(parts, self.shapes, strict=True))


def message_change(space: WeightSpace, channels: int = 32) -> nn.Module:
    """Return message passing along the weights, and what it says of each: features -> features."""
    network = MessagePassing(space, channels)
    return nn.Sequential(network, MessageEntries(network))


def linear_change(space: WeightSpace, channels: int = 4) -> nn.Module:
    """Return residual blocks of all equivariant linear maps: features -> features."""
    return nn.Sequential(
        EquivariantLinear(space, 1, channels),
        ResidualBlock(space, channels),
        EquivariantLinear(space, channels, 1),
    )


@dataclass(frozen=True)
class _Images:
    """Images of a part, as they were and shifted, [m, d], with their classes."""

    plain: Tensor
    shifted: Tensor
    labels: Tensor

    def some(self) -> tuple[Tensor, Tensor]:
        """Draw shifted images and their classes."""
        rows = torch.randint(len(self.labels), (_IMAGES,), device="cpu").to(self.labels.device)
        return self.shifted[rows], self.labels[rows]


@dataclass(frozen=True)
class _Task:
    """The classifiers and the images.

    Attributes:
        zoo: the classifiers.
        space: of their weights.
        network: how one of them is computed.
        images: of each part.
    """

    zoo: SplitZoo
    space: WeightSpace
    network: nn.Module
    images: dict[str, _Images]

    def outputs(self, features: Features, x: Tensor) -> Tensor:
        """Return what classifiers say of the same images, [b, k, classes]."""
        states = self.space.to_state_dicts(features)
        return vmap(lambda state: functional_call(self.network, state, (x,)))(states)

    def accuracy(self, features: Features, x: Tensor, labels: Tensor) -> float:
        """Return the mean accuracy of classifiers."""
        return float((self.outputs(features, x).argmax(-1) == labels).double().mean())

    def test(self, features: Features) -> dict[str, float]:
        """Return the measures of classifiers on test images, shifted and as they were."""
        images = self.images["test"]
        said = self.outputs(features, images.shifted).argmax(-1)
        return {
            _ACCURACY: float((said == images.labels).double().mean()),
            _BEFORE: self.accuracy(features, images.plain, images.labels),
            _ALIKE: agreement(said),
        }


def agreement(said: Tensor) -> float:
    """Return the share of images on which two of some classifiers say the same class.

    Args:
        said: int64 [classifiers, images]. Of one classifier it is 1.
    """
    count = len(said)
    if count < 2:
        return 1.0
    said_by = F.one_hot(said).sum(0).double()
    return float((said_by * (said_by - 1)).sum(1).mean() / (count * (count - 1)))


def adapt(
    data: object,
    zoo: str | os.PathLike[str],
    adaptation: Adaptation | None = None,
    work: Work | None = None,
    *,
    seed: int = 0,
) -> Study:
    """Change classifiers so that they do well on shifted images, model by model.

    A model is trained with training classifiers and shifted training images; then it changes test
    classifiers, of which it sees nothing but the weights, and these are run on shifted test images.

    Args:
        data: images with classes, and a test part; see `Data.of`.
        zoo: folder of the classifiers; what is there is not made again.
        adaptation: what they are, and how images are shifted.
        work: how models are trained.
        seed: of the split, of the classifiers and of the shift.

    Raises:
        InputError: the data do not fit, or there is no such shift.
        CheckpointError: the zoo is another one, or a file cannot be used or written.

    Source: DWSNets (Navon et al., ICML 2023), section 7.3.
    """
    adaptation, work = adaptation or Adaptation(), work or Work()
    work.progress("reading the data", 0, None)
    examples = Data.of(data, seed=seed, held=0.15)
    images = {
        part: _images(number, part_of, adaptation, seed, work)
        for number, (part, part_of) in enumerate(
            {
                "train": examples.fit,
                "held": examples.held,
                "test": required_test(examples),
            }.items()
        )
    }
    found = make_split_zoo(
        zoo,
        _sources(images["train"], adaptation, seed),
        device=work.device,
        progress=work.progress,
    )
    weights = [tensor for name, tensor in found.states.items() if name.endswith("weight")]
    widths = [weights[0].shape[2], *(weight.shape[1] for weight in weights)]
    spec = chain_spec({name: tensor[0] for name, tensor in found.states.items()})
    task = _Task(found, WeightSpace(spec), perceptron(widths).to(work.device), images)
    return Study(
        "adapt",
        {_ACCURACY: "%", _BEFORE: "%", _ALIKE: "%"},
        (*_unchanged(task, adaptation, work, Path(zoo)), *_changed(task, adaptation, work)),
        settings={**asdict(adaptation), "seed": seed},
        notes=(
            f"Images are shifted by: {adaptation.shift}. A test classifier is changed from its "
            "weights alone and then run on shifted test images; no model has seen either.",
            "Two agree: the share of shifted images on which two classifiers say the same. A "
            "perceptron may write much the same network over all classifiers, which then agree; "
            "models that commute with the symmetries cannot.",
        ),
    )


def _images(
    number: int, examples: Examples, adaptation: Adaptation, seed: int, work: Work
) -> _Images:
    plain, labels = classes_of(examples)
    moved = shifted(plain, adaptation.shift, adaptation.amount, seed + SEEDS_APART * number)
    before, after = (x.flatten(1).to(work.device) for x in (plain, moved))
    return _Images(before, after, labels.to(work.device))


def _sources(images: _Images, adaptation: Adaptation, seed: int) -> dict[str, Source]:
    return {
        part: Source(
            ClassifierRecipe(
                getattr(adaptation, part), adaptation.hidden, seed=seed + SEEDS_APART * number
            ),
            images.plain,
            images.labels,
        )
        for number, part in enumerate(("train", "held", "test"))
    }


@dataclass(frozen=True)
class _Way:
    """A model, the form of weights that it gets, and how it is trained.

    Attributes:
        model, form: their names.
        features: of all classifiers.
        make: makes what finds the change.
        epochs: of the training.
        reordered: whether each network gets other orders of its units in every step.
    """

    model: str
    form: str
    features: Features
    make: Make
    epochs: int
    reordered: bool = False


def _unchanged(task: _Task, adaptation: Adaptation, work: Work, folder: Path) -> tuple[Row, ...]:
    """Return what classifiers reach without a change, and those that saw shifted images."""
    raw = task.space.from_state_dicts(task.zoo.states)
    plain = tuple(x[task.zoo.parts.test].to(work.device) for x in raw)
    seen = task.images["train"]
    count = min(adaptation.test, _ON_SHIFTED)
    recipe = ClassifierRecipe(count, adaptation.hidden, seed=3 * SEEDS_APART)
    work.progress("training networks on shifted images", 0, None)
    others = make_zoo(folder / "shifted", recipe, seen.shifted, seen.labels, device=work.device)
    made = tuple(x.to(work.device) for x in task.space.from_state_dicts(others.states))

    def row(name: str, features: Features, *, apart: bool) -> Row:
        return Row(name, "", (Run(work.seeds[0], task.test(features)),), listed_apart=apart)

    return (
        row("no adaptation", plain, apart=False),
        row("classifiers trained on shifted images", made, apart=True),
    )


def _changed(task: _Task, adaptation: Adaptation, work: Work) -> list[Row]:
    """Train the models, and return what they come to."""
    space, zoo = task.space, task.zoo
    frames = Frames(zoo.states, len(zoo.parts.train), work.device, work.progress)
    raw = tuple(x.to(work.device) for x in space.from_state_dicts(zoo.states))
    centred = frames.to_barycentre(space.spec, "aligning to the barycentre")
    centred = tuple(x.to(work.device) for x in centred)

    def way(model: str, form: str, make: Make, epochs: int, *, reordered: bool = False) -> _Way:
        features = centred if form == "aligned to the barycentre" else raw
        number = max(1, round(adaptation.effort * epochs))
        return _Way(model, form, features, make, number, reordered)

    ways = (
        way("MLP", "raw weights", lambda: FlatChange(raw), 60),
        way("MLP", AUGMENTED, lambda: FlatChange(raw), 60, reordered=True),
        way("MLP", "aligned to the barycentre", lambda: FlatChange(raw), 60),
        way("EquivariantLinear", "raw weights", lambda: linear_change(space), 30),
        way("MessagePassing", "raw weights", lambda: message_change(space), 40),
    )
    return [_row(task, way, work) for way in ways]


def _row(task: _Task, way: _Way, work: Work) -> Row:
    runs, numbers = [], 0
    for seed in work.seeds:
        adapter = fresh(lambda: Adapter(way.make()), seed, work.device)
        runs.append(_trained(task, way, adapter, seed, work))
        numbers = trained_numbers(adapter)
    return Row(way.model, way.form, tuple(runs), numbers)


def _trained(task: _Task, way: _Way, adapter: nn.Module, seed: int, work: Work) -> Run:
    """Train from a seed; return what it comes to."""
    space, parts = task.space, task.zoo.parts
    known = space.statistics(tuple(x[parts.train] for x in way.features))
    scaled = space.standardise(way.features, known)

    def some(numbers: Tensor) -> Features:
        return tuple(x[numbers.to(x.device)] for x in scaled)

    def loss(numbers: Tensor) -> Tensor:
        x, labels = task.images["train"].some()
        chosen = some(parts.train[numbers])
        if way.reordered:
            chosen = space.act(space.random_elements(len(numbers)), chosen)
        outputs = task.outputs(space.unstandardise(adapter(chosen), known), x)
        return F.cross_entropy(outputs.flatten(0, 1), labels.repeat(len(outputs)))

    def changed(part: Tensor) -> Features:
        with torch.no_grad():
            return space.unstandardise(adapter(some(part)), known)

    def held() -> float:
        images = task.images["held"]
        return task.accuracy(changed(parts.held), images.shifted, images.labels)

    name = f"{way.model}, {way.form}, seed {seed}"
    training = train(
        *(adapter, loss, len(parts.train)),
        TrainingPlan(way.epochs, batch=16, rate=3e-3, clip=1.0),
        held=held,
        seed=seed,
        file=work.file(name),
        settings={"networks": task.zoo.digest},
        progress=work.show(name, way.epochs),
    )
    return run_of(training, seed, task.test(changed(parts.test)))
