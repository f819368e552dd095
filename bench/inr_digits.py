"""Which digit a sine network shows, told from its weights: models side by side on one zoo.

    python -m bench.inr_digits [--zoo FOLDER] [--record] [--quick]

A SIREN 2-16-16-1 is fitted twice to each of scikit-learn's 1,797 digits (kept in the folder, by
default zoo/siren_digits). Images are split 1,200 / 200 / 397, so no image of a test network was
seen in training. Every model is trained from three seeds; the epoch of the best validation accuracy
is tested. Two checks of the data come first: how much of the variance of aligned weights lies
between classes, and the accuracy of a model that may run the networks at points of its choice.
--quick has 200 images, one seed and few epochs.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bench.record import record
from gpu_align import CoordinateDescent, PermutationSpec, align, chain_spec, discover
from gpu_align.learn import (
    Elements,
    Features,
    MessageHead,
    MessagePassing,
    SirenRecipe,
    WeightSpace,
    Zoo,
    make_zoo,
)

TRAIN, VALIDATION, QUICK = 1200, 200, 200
BATCH, DECAY = 64, 1e-2


@dataclass(frozen=True)
class Task:
    """Networks as features, split by image.

    Attributes:
        labels: of all networks, [n].
        parts: numbers of the networks for training, validation and test.
    """

    labels: Tensor
    parts: tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Way:
    """A model and the form of the weights that it gets."""

    name: str
    features: Features
    make: Callable[[], nn.Module]
    epochs: int
    rate: float


class Joined(nn.Sequential):
    """A perceptron on all weights in a row."""

    def __init__(self, inputs: int) -> None:
        super().__init__(nn.Linear(inputs, 176), nn.ReLU(), nn.Dropout(0.5), nn.Linear(176, 10))

    def forward(self, features: Features) -> Tensor:
        return super().forward(torch.cat([x.flatten(1) for x in features], 1))


class Probes(nn.Module):
    """A perceptron on what a network says at 64 places that are learned."""

    def __init__(self, space: WeightSpace, recipe: SirenRecipe) -> None:
        super().__init__()
        self.space, self.siren = space, recipe.model().requires_grad_(False)
        self.places = nn.Parameter(2 * torch.rand(64, 2) - 1)
        self.layers = nn.Sequential(
            *(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        )

    def forward(self, features: Features) -> Tensor:
        states = self.space.to_state_dicts(features)
        values = vmap(lambda state: functional_call(self.siren, state, (self.places,)))(states)
        return self.layers(values[..., 0])


def split(zoo: Zoo, seed: int = 0) -> Task:
    """Split by image: all views of an image are in one part."""
    images = int(zoo.facts["image"].max()) + 1
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    first = TRAIN * images // 1797
    cuts = (first, first + VALIDATION * images // 1797)
    parts = order.tensor_split(cuts)
    numbers = [torch.isin(zoo.facts["image"], part).nonzero()[:, 0] for part in parts]
    return Task(zoo.facts["label"], (numbers[0], numbers[1], numbers[2]))


def aligned(zoo: Zoo, spec: PermutationSpec) -> Features:
    """Return the weights with all networks aligned to the first, as features of the spec."""
    target = {name: tensor[0] for name, tensor in zoo.states.items()}
    found = align(zoo.states, target, spec=spec, search=CoordinateDescent())
    elements = Elements.of([result.unwrap().permutation for result in found])
    space = WeightSpace(spec)
    return space.act(elements, space.from_state_dicts(zoo.states))


def standardised(space: WeightSpace, features: Features, task: Task) -> Features:
    """Return features standardised by tensor, by the networks for training."""
    known = space.statistics(tuple(x[task.parts[0]] for x in features))
    return space.standardise(features, known)


def standardised_each(features: Features, task: Task) -> Features:
    """Return features with every entry standardised by itself: the best for a perceptron."""
    known = [torch.std_mean(x[task.parts[0]], 0) for x in features]
    return tuple((x - mean) / std for x, (std, mean) in zip(features, known, strict=True))


def between_classes(features: Features, task: Task) -> tuple[float, float]:
    """Return which share of the variance lies between classes, and which would by chance."""
    rows, labels = torch.cat([x.flatten(1) for x in features], 1).double(), task.labels
    means = torch.stack([rows[labels == label].mean(0) for label in range(10)])
    share = (means[labels] - rows.mean(0)).square().sum() / (rows - rows.mean(0)).square().sum()
    return float(share), 9 / (len(rows) - 1)


def accuracy(model: nn.Module, way: Way, task: Task, part: int) -> float:
    model.eval()
    with torch.no_grad():
        said = [model(tuple(x[n] for x in way.features)) for n in task.parts[part].split(512)]
    right = torch.cat(said).argmax(1) == task.labels[task.parts[part]]
    return float(right.double().mean())


def trained(way: Way, task: Task, seed: int) -> dict[str, float]:
    """Train one model; return its test accuracy, CPU seconds and number of parameters."""
    torch.manual_seed(seed)
    model = way.make()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, way.rate, weight_decay=DECAY)
    rounds = math.ceil(len(task.parts[0]) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, way.rate, total_steps=way.epochs * rounds, pct_start=0.05
    )
    best, test, started = -1.0, 0.0, time.process_time()
    for _ in range(way.epochs):
        model.train()
        numbers = task.parts[0][torch.randperm(len(task.parts[0]))]
        for some in numbers.split(BATCH):
            loss = F.cross_entropy(model(tuple(x[some] for x in way.features)), task.labels[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if (now := accuracy(model, way, task, 1)) >= best:
            best, test = now, accuracy(model, way, task, 2)
    seconds = time.process_time() - started
    return {"accuracy": test, "seconds": seconds, "parameters": sum(p.numel() for p in weights)}


def messages(space: WeightSpace) -> nn.Module:
    network = MessagePassing(space, channels=32)
    return nn.Sequential(network, MessageHead(network, 10))


def ways(zoo: Zoo, task: Task, recipe: SirenRecipe) -> tuple[list[Way], dict[str, Features]]:
    """Return the models, and the weights in each form."""
    traced = discover(recipe.model(), torch.zeros(2, 2))
    orders = chain_spec({name: tensor[0] for name, tensor in zoo.states.items()})
    signs, plain = WeightSpace(traced), WeightSpace(traced, signs=False)
    raw = signs.from_state_dicts(zoo.states)
    forms = {
        "raw": raw,
        "permutation": aligned(zoo, orders),
        "permutation, sign": aligned(zoo, traced),
    }
    inputs = sum(x[0].numel() for x in raw)
    each = {name: standardised_each(form, task) for name, form in forms.items()}
    found = [Way(f"MLP, {n}", x, lambda: Joined(inputs), 25, 2e-3) for n, x in each.items()]
    by_tensor = standardised(signs, raw, task)
    found += [
        Way("messages, permutation", by_tensor, lambda: messages(plain), 24, 3e-3),
        Way("messages, permutation, sign", by_tensor, lambda: messages(signs), 16, 3e-3),
        Way("probes: runs the networks", raw, lambda: Probes(signs, recipe), 40, 3e-3),
    ]
    return found, forms


def digits(*, quick: bool) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16
    count = QUICK if quick else len(images)
    return images[:count], torch.tensor(data.target)[:count]


def main(arguments: Sequence[str] = ()) -> None:
    quick = "--quick" in arguments
    folder = Path("zoo/siren_digits_quick" if quick else "zoo/siren_digits")
    if "--zoo" in arguments:
        folder = Path(arguments[arguments.index("--zoo") + 1])
    torch.set_num_threads(1)
    recipe = SirenRecipe(views=2)
    started = time.process_time()
    zoo = make_zoo(folder, recipe, *digits(quick=quick), progress=show)
    made = time.process_time() - started
    print(f"{len(zoo)} networks, PSNR {float(zoo.facts['psnr'].median()):.1f} dB, {made:.0f} s")
    task = split(zoo)
    started = time.process_time()
    models, forms = ways(zoo, task, recipe)
    print(f"aligned in {time.process_time() - started:.0f} s")
    rows: list[dict] = []
    for name, form in forms.items():
        share, chance = between_classes(form, task)
        print(f"variance between classes, {name}: {share:.4f} (chance {chance:.4f})")
        rows.append({"form": name, "between_classes": share, "chance": chance})
    for way in models:
        if quick:
            way = Way(way.name, way.features, way.make, 2, way.rate)
        runs = [trained(way, task, seed) for seed in range(1 if quick else 3)]
        rows.append({"model": way.name, "runs": runs})
        accuracies = [100 * run["accuracy"] for run in runs]
        spread = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
        print(
            f"{way.name}: {statistics.mean(accuracies):.1f} +- {spread:.1f} %, "
            f"{statistics.mean(run['seconds'] for run in runs):.1f} s, "
            f"{runs[0]['parameters']:.0f} parameters"
        )
    if "--record" in arguments:
        record("inr_digits", rows)


def show(share: float) -> None:
    """Say how much of the zoo is made, on one line of a terminal."""
    if sys.stdout.isatty():
        print(f"\r{share:.0%} of the zoo", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
