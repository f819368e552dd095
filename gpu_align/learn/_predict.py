"""How well a classifier generalises, told from its weights."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor

from gpu_align._network import Data
from gpu_align._symmetry import chain_spec
from gpu_align.learn._cells import Features
from gpu_align.learn._forms import Frames, standardised, standardised_each
from gpu_align.learn._readers import Make, in_a_row, linear_reader, message_reader
from gpu_align.learn._sines import r_squared
from gpu_align.learn._space import WeightSpace
from gpu_align.learn._split_zoos import (
    SEEDS_APART,
    Source,
    SplitZoo,
    classes_of,
    make_split_zoo,
    required_test,
)
from gpu_align.learn._study import Panel, Plot, Study, rounded
from gpu_align.learn._supervised import (
    AUGMENTED,
    Measured,
    Setting,
    Task,
    Way,
    Work,
    measured,
    perceptrons,
)
from gpu_align.learn._training import TrainingPlan
from gpu_align.learn._varied import VariedRecipe

_TAU, _R2 = "Kendall's tau", "R²"
_RANK = 8
"""Fixed places of a tensor inside equivariant models: pixels are projected to so many."""


@dataclass(frozen=True)
class Prediction:
    """How many classifiers there are, and how they are read.

    Attributes:
        train, held, test: numbers of classifiers.
        hidden: units of their hidden layers.
        effort: factor of the numbers of epochs.
    """

    train: int = 2000
    held: int = 400
    test: int = 800
    hidden: tuple[int, ...] = (16, 16)
    effort: float = 1.0


def predict(
    data: object,
    zoo: str | os.PathLike[str],
    prediction: Prediction | None = None,
    work: Work | None = None,
    *,
    seed: int = 0,
) -> Study:
    """Tell how accurate classifiers are on new examples from their weights, model by model.

    The classifiers have seen more or less of the training part, with more or fewer wrong labels,
    from larger or smaller weights. Their accuracy is that on the test part.

    Args:
        data: examples with classes, and a test part; see `Data.of`.
        zoo: folder of the classifiers; what is there is not made again.
        prediction: how many they are, and how they are read.
        work: how models are trained.
        seed: of the split and of the classifiers.

    Raises:
        InputError: the data do not fit.
        CheckpointError: the zoo is another one, or a file cannot be used or written.

    Source: Unterthiner et al., Predicting neural network accuracy from weights (2020), whose
    statistics are one of the models; NFN (Zhou et al., NeurIPS 2023), section 3.1.
    """
    prediction, work = prediction or Prediction(), work or Work()
    work.progress("reading the data", 0, None)
    sources = _sources(Data.of(data, seed=seed, held=0.15), prediction, seed)
    found = make_split_zoo(zoo, sources, device=work.device, progress=work.progress)
    accuracy = found.facts["accuracy"].to(work.device)[:, None]
    task = Task(
        accuracy,
        found.parts,
        F.binary_cross_entropy_with_logits,
        {
            _TAU: lambda said, right: tau(said[:, 0], right[:, 0]),
            _R2: lambda said, right: float(r_squared(said.sigmoid(), right)),
        },
        found.digest,
    )
    results = [measured(way, task, work) for way in _ways(found, prediction, work)]
    low, middle, high = accuracy.quantile(accuracy.new_tensor([0.1, 0.5, 0.9])).tolist()
    return Study(
        "predict",
        {_TAU: "", _R2: ""},
        tuple(result.row for result in results),
        {
            "accuracy of the classifiers, 10 % quantile": low,
            "accuracy of the classifiers, median": middle,
            "accuracy of the classifiers, 90 % quantile": high,
        },
        {**asdict(prediction), "seed": seed},
        (
            "Kendall's tau: by how much more pairs of classifiers are in the right order than in "
            "the wrong one, as a share of all pairs.",
        ),
        (_plot(results, accuracy[found.parts.test]),),
    )


def tau(said: Tensor, right: Tensor) -> float:
    """Return Kendall's tau of two vectors; 0 where one of them is constant."""
    value = float(kendalltau(said.cpu().numpy(), right.cpu().numpy()).statistic)
    return 0.0 if value != value else value


def _sources(data: Data, prediction: Prediction, seed: int) -> dict[str, Source]:
    (x, y), (x_test, y_test) = classes_of(data.fit), classes_of(required_test(data))
    examples = torch.cat([x.flatten(1), x_test.flatten(1)])
    recipe = VariedRecipe(1, fitted=len(x), hidden=prediction.hidden)
    return {
        part: Source(
            replace(recipe, networks=getattr(prediction, part), seed=seed + SEEDS_APART * number),
            examples,
            torch.cat([y, y_test]),
        )
        for number, part in enumerate(("train", "held", "test"))
    }


def statistics(states: dict[str, Tensor]) -> Tensor:
    """Return mean, deviation and quartiles of each tensor of each network, [n, 7 tensors]."""
    found = []
    for tensor in states.values():
        values = tensor.flatten(1).float()
        quantiles = torch.linspace(0, 1, 5, device="cpu").to(values)
        rows = [values.mean(1), values.std(1), *values.quantile(quantiles, 1)]
        found.append(torch.stack(rows, 1))
    return torch.cat(found, 1)


def _ways(zoo: SplitZoo, prediction: Prediction, work: Work) -> list[Way]:
    spec = chain_spec({name: tensor[0] for name, tensor in zoo.states.items()})
    space, known = WeightSpace(spec), zoo.parts.train
    frames = Frames(zoo.states, len(known), work.device, work.progress)
    raw = tuple(x.to(work.device) for x in space.from_state_dicts(zoo.states))
    centred = frames.to_barycentre(spec, "aligning to the barycentre")
    centred = standardised_each(tuple(x.to(work.device) for x in centred), known)
    numbers = standardised_each((statistics(zoo.states).to(work.device),), known)
    by_tensor = standardised(space, raw, known)

    def way(model: str, form: str, features: Features, make: Make, epochs: int) -> Way:
        plan = TrainingPlan(max(1, round(prediction.effort * epochs)), rate=3e-3)
        return Way(model, form, features, (Setting("", make, plan),))

    def perceptron(
        form: str, features: Features, epochs: int = 30, symmetries: WeightSpace | None = None
    ) -> Way:
        count = max(1, round(prediction.effort * epochs))
        tried = perceptrons(in_a_row(features).shape[1], 1, count)
        return Way("MLP", form, features, tried, symmetries)

    each = standardised_each(raw, known)
    return [
        perceptron("raw weights", each),
        perceptron(AUGMENTED, each, symmetries=space),
        perceptron("aligned to the barycentre", centred),
        perceptron("statistics of each tensor", numbers, 60),
        way(
            *("EquivariantLinear", "raw weights", by_tensor),
            *(lambda: linear_reader(space, 1, 8, 1, _RANK), 15),
        ),
        way(
            *("MessagePassing", "raw weights", by_tensor),
            *(lambda: message_reader(space, 1, fixed_rank=_RANK), 30),
        ),
    ]


def _plot(results: Sequence[Measured], right: Tensor) -> Plot:
    panels = [
        Panel(
            f"{result.row.model}, {result.row.form}",
            rounded(100 * right[:, 0]),
            rounded(100 * result.outputs.sigmoid()[:, 0]),
            labels=("accuracy on new examples, %", "as told from the weights, %"),
            diagonal=True,
        )
        for result in results
    ]
    caption = "Classifiers that no training has seen. Good are points on the diagonal."
    return Plot("Accuracy of test classifiers", caption, tuple(panels))
