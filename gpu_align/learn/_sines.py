"""Sine waves a sin(b x), networks that show them, and what is told of both."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align.learn._many import fresh_states, train_together
from gpu_align.learn._nets import Siren
from gpu_align.learn._recipes import Named, Progress
from gpu_align.learn._split_zoos import SEEDS_APART, Source


@dataclass(frozen=True)
class SineRecipe:
    """A `Siren` of one coordinate for each wave a sin(b x), several times from other weights.

    Coordinates from -1 to 1 stand for x from -pi to pi. The networks are those of all waves, then
    of all of them again. Facts: the "amplitude" and "frequency" of the wave and its "number", and
    the mean squared "error" as a share of the wave's own square.

    Attributes:
        views: networks of each wave.
        hidden: units of the hidden layers.
        w0: their frequency.
        steps, rate: of Adam.
        points: at which a network is fitted, at equal distances.
        seed: of the weights.
        shard: networks trained together and kept in one file.
    """

    views: int = 2
    hidden: tuple[int, ...] = (16, 16)
    w0: float = 6.0
    steps: int = 500
    rate: float = 5e-3
    points: int = 100
    seed: int = 0
    shard: int = 400

    def model(self) -> Siren:
        """Return one of the networks with fresh weights."""
        return Siren([1, *self.hidden, 1], self.w0, offset=0.0)

    def count(self, examples: Tensor, labels: Tensor) -> int:
        """Return how many networks there will be.

        Args:
            examples: amplitude and frequency of each wave, [m, 2].
            labels: int64 [m], the numbers of the waves.

        Raises:
            InputError: the data are not of these shapes, or there are no views.
        """
        if examples.ndim != 2 or examples.shape[1] != 2 or labels.shape != examples.shape[:1]:
            raise InputError(
                "expected amplitudes and frequencies [m, 2] and numbers [m], got "
                f"{list(examples.shape)} and {list(labels.shape)}"
            )
        if min(self.views, self.points) < 1:
            raise InputError(
                f"expected at least one view and one point, got {self.views} and {self.points}"
            )
        return self.views * len(examples)

    def train(
        self, numbers: range, examples: Tensor, labels: Tensor, progress: Progress
    ) -> tuple[Named, Named]:
        """Return some of the networks; on the device of the examples."""
        which = torch.tensor(numbers, device="cpu") % len(examples)
        waves = examples.float()[which.to(examples.device)]
        places = torch.linspace(-1, 1, self.points, device="cpu").to(waves)[:, None]
        targets = waves[:, :1] * torch.sin(waves[:, 1:] * torch.pi * places[:, 0])
        data = places.expand(len(which), *places.shape), targets[..., None]
        states = fresh_states(self.model, len(numbers), self.seed + numbers.start)
        found = train_together(
            self.model(),
            {name: tensor.to(waves) for name, tensor in states.items()},
            lambda step: data,
            F.mse_loss,
            steps=self.steps,
            rate=self.rate,
            progress=lambda step: progress(step / self.steps),
        )
        return found.states, {
            "number": labels[which.to(labels.device)],
            "amplitude": waves[:, 0],
            "frequency": waves[:, 1],
            "error": found.losses / targets.square().mean(1).clamp_min(1e-12),
        }


@dataclass(frozen=True)
class Sines:
    """How many waves there are, from which ranges they are drawn, and how they are read.

    Attributes:
        recipe: of the networks; test networks have one view.
        train, held, test: numbers of waves.
        amplitudes, frequencies: ranges of the uniform draws.
        effort: factor of the numbers of epochs.
    """

    recipe: SineRecipe = SineRecipe()
    train: int = 1000
    held: int = 200
    test: int = 400
    amplitudes: tuple[float, float] = (0.0, 10.0)
    frequencies: tuple[float, float] = (0.0, 10.0)
    effort: float = 1.0

    def sources(self, seed: int) -> dict[str, Source]:
        """Draw the waves of each part; networks of no two parts begin alike.

        Raises:
            InputError: a part has no waves, or a range is empty.
        """
        if min(self.train, self.held, self.test) < 1:
            raise InputError(
                "expected at least one wave in each part, got "
                f"train={self.train}, held={self.held}, test={self.test}"
            )
        generator = torch.Generator().manual_seed(seed)
        low, high = torch.tensor([self.amplitudes, self.frequencies], device="cpu").T
        if not bool((low <= high).all()):
            raise InputError(
                f"expected ranges from low to high, got {self.amplitudes}, {self.frequencies}"
            )
        sources = {}
        for number, part in enumerate(("train", "held", "test")):
            count = int(getattr(self, part))
            waves = low + (high - low) * torch.rand(count, 2, generator=generator, device="cpu")
            recipe = SineRecipe(**{**vars(self.recipe), "seed": seed + SEEDS_APART * number})
            sources[part] = Source(recipe, waves, torch.arange(count, device="cpu"))
        return sources

    def epochs(self, count: int) -> int:
        """Return a number of epochs at this effort, from that at an effort of 1."""
        return max(1, round(self.effort * count))


def r_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of the variance of targets that outputs explain, for each column, [k]."""
    left = (targets - outputs).square().sum(0)
    return 1 - left / (targets - targets.mean(0)).square().sum(0)
