"""Sine waves embedded by the weights of networks that show them, without being told which."""

import os
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_align._symmetry import discover
from gpu_align.learn._cells import Features
from gpu_align.learn._forms import Frames, standardised, standardised_each
from gpu_align.learn._readers import FlatPerceptron, Make, in_a_row, linear_reader, message_reader
from gpu_align.learn._sines import Sines, r_squared
from gpu_align.learn._space import WeightSpace
from gpu_align.learn._split_zoos import SplitZoo, make_split_zoo
from gpu_align.learn._study import Panel, Plot, Row, Run, Study, rounded
from gpu_align.learn._supervised import (
    AUGMENTED,
    Work,
    fresh,
    read,
    run_of,
    trained_numbers,
)
from gpu_align.learn._training import TrainingPlan, train

WIDTH = 16
"""Numbers of an embedding."""

_TEMPERATURE = 0.1
_RIDGE = 1e-3
_AMPLITUDE, _FREQUENCY, _ERROR = "R² of a", "R² of b", "mean squared error"


class Embedder(nn.Module):
    """A reader whose outputs are the embedding, and a head that only the training uses."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.reader = reader
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, features: Features) -> Tensor:
        """Return embeddings, [b, WIDTH]."""
        out: Tensor = self.reader(features)
        return out

    def directions(self, features: Features) -> Tensor:
        """Return what is compared in training, of length 1, [b, WIDTH]."""
        return F.normalize(self.head(self(features)), dim=-1)


@dataclass(frozen=True)
class _Way:
    """A model, the form of weights that it gets, how it is trained, and whether it is pictured.

    Symmetries are drawn anew for every network in every step of the training.
    """

    model: str
    form: str
    features: Features
    make: Make
    epochs: int
    pictured: bool = False
    symmetries: WeightSpace | None = None


def embed(
    zoo: str | os.PathLike[str],
    sines: Sines | None = None,
    work: Work | None = None,
    *,
    seed: int = 0,
) -> Study:
    """Embed waves a sin(b x) so that two networks of one wave come to one place.

    Nothing is said of a and b in training: of the networks of a batch, each is to find the other
    one of its wave (InfoNCE). Then a and b are told from the embedding by ridge regression.

    Args:
        zoo: folder of the networks; what is there is not made again.
        sines: the waves; they have two views at least.
        work: how models are trained.
        seed: of the waves and of the networks.

    Raises:
        InputError: a number does not fit.
        CheckpointError: the zoo is another one, or a file cannot be used or written.

    Source: DWSNets (Navon et al., ICML 2023), section 7.2; the loss is that of SimCLR (Chen et al.,
    ICML 2020).
    """
    sines, work = sines or Sines(), work or Work()
    found = make_split_zoo(zoo, sines.sources(seed), device=work.device, progress=work.progress)
    facts = (found.facts["amplitude"], found.facts["frequency"])
    task = _Task(found, torch.stack(facts, 1).to(work.device), sines.recipe.views)
    rows, plots = [], []
    for way in _ways(found, sines, work):
        runs, embeddings, parameters = [], torch.empty(0, device="cpu"), 0
        for number, seed_of_run in enumerate(work.seeds):
            run, places, parameters = _trained(way, task, work, seed_of_run)
            runs.append(run)
            embeddings = embeddings if number else places
        rows.append(Row(way.model, way.form, tuple(runs), parameters))
        if way.pictured:
            plots += _panels(way, embeddings, task.targets[found.parts.test])
    return Study(
        "embed",
        {_FREQUENCY: "", _AMPLITUDE: "", _ERROR: ""},
        tuple(rows),
        {"error of the networks as a share, median": float(found.facts["error"].median())},
        {**asdict(sines), "seed": seed},
        _notes(),
        (
            Plot(
                "Embeddings of test networks",
                "The two main directions of each embedding, coloured by the frequency b and by the "
                "amplitude a, which no training has seen. Good are colours that change smoothly.",
                tuple(plots),
            ),
        ),
    )


@dataclass(frozen=True)
class _Task:
    """The networks, and a and b of each, [n, 2]."""

    zoo: SplitZoo
    targets: Tensor
    views: int

    def views_of(self, numbers: Tensor) -> Tensor:
        """Return the networks of training waves, [k, views]."""
        waves = len(self.zoo.parts.train) // self.views
        return numbers[:, None] + waves * torch.arange(self.views, device="cpu")


def contrast(directions: Tensor) -> Tensor:
    """Return the mean cross entropy of finding, among 2 k vectors, the partner of each.

    Args:
        directions: of length 1, [2 k, d]; i and i + k belong together.
    """
    alike = directions @ directions.T / _TEMPERATURE
    alike = alike.masked_fill(torch.eye(len(alike), dtype=torch.bool, device=alike.device), -1e9)
    partner = torch.arange(len(alike), device=alike.device).roll(len(alike) // 2)
    return F.cross_entropy(alike, partner)


def _trained(way: _Way, task: _Task, work: Work, seed: int) -> tuple[Run, Tensor, int]:
    """Train from a seed; return what it comes to, embeddings of test networks, and parameters."""
    model = fresh(lambda: Embedder(way.make()), seed, work.device)
    assert isinstance(model, Embedder)
    parts = task.zoo.parts
    held = parts.held.reshape(task.views, -1)[:2].to(work.device)

    def some(numbers: Tensor) -> Features:
        return tuple(x[numbers] for x in way.features)

    def loss(numbers: Tensor) -> Tensor:
        views = task.views_of(numbers)
        columns = torch.randperm(task.views, device="cpu")[:2]
        chosen = some(views[:, columns].T.flatten().to(work.device))
        if (space := way.symmetries) is not None:
            chosen = space.act(space.random_elements(len(chosen[0])), chosen)
        return contrast(model.directions(chosen))

    name = f"{way.model}, {way.form}, seed {seed}"
    training = train(
        *(model, loss, len(parts.train) // task.views),
        TrainingPlan(way.epochs, batch=128, rate=3e-3),
        held=lambda: -float(contrast(model.directions(some(held.flatten())))),
        seed=seed,
        file=work.file(name),
        settings={"networks": task.zoo.digest},
        progress=work.show(name, way.epochs),
    )
    values, embeddings = _probed(model, way.features, task)
    return run_of(training, seed, values), embeddings, trained_numbers(model)


def _probed(model: nn.Module, features: Features, task: _Task) -> tuple[dict[str, float], Tensor]:
    """Tell a and b from embeddings by ridge regression, fitted on training networks."""
    parts = task.zoo.parts
    known, new = (read(model, features, part).double() for part in (parts.train, parts.test))
    targets = task.targets.double()
    std, mean = torch.std_mean(known, 0)
    known, new = ((x - mean) / std.clamp_min(1e-12) for x in (known, new))
    middle = targets[parts.train].mean(0)
    square = known.T @ known + _RIDGE * len(known) * torch.eye(
        WIDTH, dtype=known.dtype, device=known.device
    )
    weights = torch.linalg.solve(square, known.T @ (targets[parts.train] - middle))
    said, right = new @ weights + middle, targets[parts.test]
    of_a, of_b = r_squared(said, right).tolist()
    error = float((said - right).square().mean())
    return {_FREQUENCY: of_b, _AMPLITUDE: of_a, _ERROR: error}, new


def _panels(way: _Way, embeddings: Tensor, waves: Tensor) -> list[Panel]:
    """Return the embeddings in their two main directions, coloured by b and by a."""
    centred = (embeddings - embeddings.mean(0)).cpu()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    x, y = (centred @ directions[:2].T).T
    return [
        Panel(
            f"{way.model}, {way.form}",
            rounded(x),
            rounded(y),
            color=rounded(waves[:, column]),
            color_label=label,
        )
        for column, label in ((1, "frequency b"), (0, "amplitude a"))
    ]


def _ways(zoo: SplitZoo, sines: Sines, work: Work) -> list[_Way]:
    """Return the models, each with the form of weights that it gets."""
    forms = sine_forms(zoo, sines, work)
    inputs = in_a_row(forms.raw).shape[1]
    epochs = sines.epochs

    def perceptron() -> nn.Module:
        return FlatPerceptron(inputs, WIDTH, hidden=128, dropout=0.2)

    return [
        _Way("MLP", "raw weights", forms.each["raw"], perceptron, epochs(60), pictured=True),
        _Way(
            *("MLP", AUGMENTED, forms.each["raw"], perceptron, epochs(60)),
            symmetries=forms.signs,
        ),
        _Way("MLP", "aligned to one network", forms.each["one"], perceptron, epochs(60)),
        _Way(
            *("MLP", "aligned to the barycentre", forms.each["barycentre"], perceptron),
            *(epochs(60), True),
        ),
        _Way(
            *("EquivariantLinear", "raw weights", forms.by_tensor),
            *(lambda: linear_reader(forms.orders, WIDTH), epochs(30)),
        ),
        _Way(
            *("MessagePassing", "raw weights", forms.by_tensor),
            *(lambda: message_reader(forms.signs, WIDTH), epochs(40), True),
        ),
    ]


@dataclass(frozen=True)
class SineForms:
    """The weights of networks of waves, in each form, on the device of the work.

    Attributes:
        signs, orders: spaces with and without signs.
        raw: as they are.
        each: "raw", "one" and "barycentre": standardised by entry.
        by_tensor: as they are, standardised by tensor.
    """

    signs: WeightSpace
    orders: WeightSpace
    raw: Features
    each: dict[str, Features]
    by_tensor: Features


def sine_forms(zoo: SplitZoo, sines: Sines, work: Work) -> SineForms:
    """Return the weights of networks of waves in each form."""
    traced = discover(sines.recipe.model(), torch.tensor([[-0.5], [0.7]], device="cpu"))
    signs, orders = WeightSpace(traced), WeightSpace(traced, signs=False)
    frames = Frames(zoo.states, len(zoo.parts.train), work.device, work.progress)
    known = zoo.parts.train
    forms = {
        "raw": signs.from_state_dicts(zoo.states),
        "one": frames.to_one(traced, "aligning to one network"),
        "barycentre": frames.to_barycentre(traced, "aligning to the barycentre"),
    }
    placed = {name: tuple(x.to(work.device) for x in form) for name, form in forms.items()}
    each = {name: standardised_each(form, known) for name, form in placed.items()}
    return SineForms(signs, orders, placed["raw"], each, standardised(signs, placed["raw"], known))


def _notes() -> tuple[str, ...]:
    return (
        "Each network is to find the other network of its wave among those of a batch; nothing is "
        "said of a and b. Then a and b of other waves are told from 16 numbers by ridge "
        "regression: 1 is a perfect R², 0 the mean of all.",
    )
