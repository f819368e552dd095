"""Which class an image has, told from the weights of a sine network that shows it."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._network import Data
from gpu_align._symmetry import chain_spec, discover
from gpu_align.learn._cells import Features
from gpu_align.learn._forms import Frames, between_classes, standardised, standardised_each
from gpu_align.learn._readers import FlatPerceptron, Probes, in_a_row, linear_reader, message_reader
from gpu_align.learn._recipes import SirenRecipe
from gpu_align.learn._space import WeightSpace
from gpu_align.learn._split_zoos import (
    SEEDS_APART,
    Source,
    SplitZoo,
    grey_images,
    make_split_zoo,
    required_test,
    taken,
)
from gpu_align.learn._study import Row, Study
from gpu_align.learn._supervised import AUGMENTED, Setting, Task, Way, Work, measured
from gpu_align.learn._training import TrainingPlan

RAW, PERMUTED = "raw weights", "aligned by permutation"
SIGNED = "aligned by permutation and sign"
CENTRED = "aligned to the barycentre"
PROBED = "values at points of its choice"


@dataclass(frozen=True)
class Classification:
    """How networks of images are made and read.

    Attributes:
        recipe: of the networks of training images; the others have `test_views` of each image.
        test_views: networks of each held-back and test image.
        images: of the training part at most, and of the others in proportion; None for all.
        effort: factor of the numbers of epochs.
    """

    recipe: SirenRecipe = SirenRecipe(views=2)  # noqa: RUF009
    test_views: int = 2
    images: int | None = None
    effort: float = 1.0

    def plan(self, epochs: int, rate: float = 3e-3, decay: float = 1e-2) -> TrainingPlan:
        """Return a training of so many epochs at an effort of 1."""
        return TrainingPlan(max(1, round(self.effort * epochs)), rate=rate, decay=decay)


def classify(
    data: object,
    zoo: str | os.PathLike[str],
    classification: Classification | None = None,
    work: Work | None = None,
    *,
    seed: int = 0,
) -> Study:
    """Tell the classes of images from the weights of networks that show them, model by model.

    All networks of an image are in one part. Everything is chosen by the held-back images: settings
    and epochs; test images are only reported on.

    Args:
        data: images of one channel with classes, and a test part; see `Data.of`.
        zoo: folder of the networks; what is there is not made again.
        classification: how networks are made and read.
        work: how models are trained.
        seed: of the split and of the networks.

    Raises:
        InputError: the data do not fit.
        CheckpointError: the zoo is another one, or a file cannot be used or written.

    Source: DWSNets (Navon et al., ICML 2023), section 7.1.
    """
    classification, work = classification or Classification(), work or Work()
    work.progress("reading the data", 0, None)
    images = Data.of(data, seed=seed, held=0.15)
    sources = _sources(images, classification, seed)
    classes = 1 + max(int(source.labels.max()) for source in sources.values())
    if classes < 2:
        raise InputError("expected images of at least two classes, got one")
    found = make_split_zoo(zoo, sources, device=work.device, progress=work.progress)
    task = Task(
        found.facts["label"].to(work.device),
        found.parts,
        F.cross_entropy,
        {"accuracy": accuracy},
        found.digest,
    )
    forms = _forms(found, classification.recipe, work)
    ways = _ways(forms, found, classification, classes)
    rows = tuple(measured(way, task, work).row for way in ways)
    return Study(
        "classify",
        {"accuracy": "%"},
        rows,
        _checks(forms, task.targets, rows, found),
        _settings(found, classification, seed),
    )


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of networks whose class is said."""
    return float((outputs.argmax(1) == targets).double().mean())


def _sources(data: Data, classification: Classification, seed: int) -> dict[str, Source]:
    data, recipe = taken(data, classification.images), classification.recipe
    sources = {}
    parts = {"train": data.fit, "held": data.held, "test": required_test(data)}
    for number, (name, examples) in enumerate(parts.items()):
        views = classification.test_views if number else recipe.views
        own = replace(recipe, views=views, seed=seed + SEEDS_APART * number)
        sources[name] = Source(own, *grey_images(examples))
    return sources


def _forms(zoo: SplitZoo, recipe: SirenRecipe, work: Work) -> dict[str, Features]:
    """Return the weights in each form, on the device of the work."""
    traced = discover(recipe.model(), torch.zeros(2, 2, device="cpu"))
    orders = chain_spec({name: tensor[0] for name, tensor in zoo.states.items()})
    frames = Frames(zoo.states, len(zoo.parts.train), work.device, work.progress)
    found = {
        RAW: WeightSpace(traced).from_state_dicts(zoo.states),
        PERMUTED: frames.to_one(orders, "aligning by permutation"),
        SIGNED: frames.to_one(traced, "aligning by permutation and sign"),
        CENTRED: frames.to_barycentre(traced, "aligning to the barycentre"),
    }
    return {name: tuple(x.to(work.device) for x in form) for name, form in found.items()}


def _ways(
    forms: dict[str, Features], zoo: SplitZoo, classification: Classification, classes: int
) -> Sequence[Way]:
    traced = discover(classification.recipe.model(), torch.zeros(2, 2, device="cpu"))
    signs, orders = WeightSpace(traced), WeightSpace(traced, signs=False)
    known = zoo.parts.train
    plan, inputs = classification.plan, in_a_row(forms[RAW]).shape[1]
    perceptrons = (
        Setting("176 units", lambda: FlatPerceptron(inputs, classes), plan(25, 2e-3)),
        Setting(
            "512 units, strong dropout and decay",
            lambda: FlatPerceptron(inputs, classes, 512, 0.7),
            plan(30, 1e-3, 0.1),
        ),
    )
    each = {name: standardised_each(form, known) for name, form in forms.items()}
    by_tensor = standardised(signs, forms[RAW], known)
    orders_only = (Setting("", lambda: message_reader(orders, classes), plan(20)),)
    with_signs = (Setting("", lambda: message_reader(signs, classes), plan(20)),)
    linear = (Setting("", lambda: linear_reader(orders, classes), plan(20)),)
    network = classification.recipe.model()
    probes = (Setting("", lambda: Probes(signs, network, 2, classes), plan(40)),)
    return (
        Way("MLP", RAW, each[RAW], perceptrons),
        Way("MLP", AUGMENTED, each[RAW], perceptrons, symmetries=signs),
        *(Way("MLP", name, each[name], perceptrons) for name in (PERMUTED, SIGNED, CENTRED)),
        Way("EquivariantLinear", RAW, by_tensor, linear),
        Way("MessagePassing, permutations", RAW, by_tensor, orders_only),
        Way("MessagePassing, permutations and signs", RAW, by_tensor, with_signs),
        Way("probes", PROBED, forms[RAW], probes, listed_apart=True),
    )


def _checks(
    forms: dict[str, Features], labels: Tensor, rows: Sequence[Row], zoo: SplitZoo
) -> dict[str, float]:
    """Return whether the weights say anything: see the description of the study."""
    known = zoo.parts.train.to(labels.device)
    classes = int(labels[known].max())
    shares = {
        f"share of variance between classes, {name}": between_classes(
            tuple(x[known] for x in form), labels[known]
        )
        for name, form in forms.items()
    }
    (probes,) = (row for row in rows if row.listed_apart)
    return {
        **shares,
        "share of variance between classes by chance": classes / (len(known) - 1),
        "accuracy of probes": probes.mean("accuracy"),
        "PSNR of the networks in dB, median": float(zoo.facts["psnr"].median()),
    }


def _settings(zoo: SplitZoo, classification: Classification, seed: int) -> dict[str, object]:
    parts = zoo.parts
    return {
        "training networks": len(parts.train),
        "held-back networks": len(parts.held),
        "test networks": len(parts.test),
        **asdict(classification),
        "seed": seed,
    }
