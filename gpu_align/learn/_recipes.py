"""Recipes of zoos: what small networks are trained on, and how."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from gpu_align._errors import InputError
from gpu_align.learn._many import fresh_states, train_together
from gpu_align.learn._nets import Siren, coordinates, perceptron

Named = dict[str, Tensor]
Progress = Callable[[float], None]
"""Called with the share of the work that is done."""


class Recipe(Protocol):
    """What the networks of a zoo are trained on, and how: a frozen dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def shard(self) -> int:
        """How many networks are trained together and kept in one file."""

    def count(self, examples: Tensor, labels: Tensor) -> int:
        """Return how many networks there will be, once the data are checked."""

    def train(
        self, numbers: range, examples: Tensor, labels: Tensor, progress: Progress
    ) -> tuple[Named, Named]:
        """Return the state dicts of some networks as a stack, and what is known of each."""


@dataclass(frozen=True)
class SirenRecipe:
    """A `Siren` of coordinates for each image, several times from other weights.

    The networks are those of all images, then of all of them again. Facts: the "label" and number
    of the "image", the "psnr" reached in dB, for how many "steps".

    Attributes:
        views: networks of each image.
        hidden: units of the hidden layers.
        w0: their frequency.
        steps, rate: of Adam.
        psnr: a network stops at this peak signal-to-noise ratio, in dB; None: after all steps.
        seed: of the weights.
        shard: networks trained together and kept in one file.
    """

    views: int = 1
    hidden: tuple[int, ...] = (16, 16)
    w0: float = 6.0
    steps: int = 400
    rate: float = 5e-4
    psnr: float | None = None
    seed: int = 0
    shard: int = 400

    def model(self) -> Siren:
        """Return one of the networks with fresh weights."""
        return Siren([2, *self.hidden, 1], self.w0)

    def count(self, examples: Tensor, labels: Tensor) -> int:
        """Return how many networks there will be.

        Args:
            examples: images with values from 0 to 1, [m, height, width].
            labels: int64 [m].

        Raises:
            InputError: the data are not of these shapes, there are no views, or the frequency is
                not above 0.
        """
        if examples.ndim != 3 or labels.shape != examples.shape[:1] or self.views < 1:
            raise InputError(
                "expected images [m, height, width], labels [m] and at least one view, got "
                f"{list(examples.shape)}, {list(labels.shape)} and {self.views}"
            )
        if not 0 < self.w0 < math.inf:
            raise InputError(f"expected a frequency w0 above 0, got {self.w0:g}")
        return self.views * len(examples)

    def train(
        self, numbers: range, examples: Tensor, labels: Tensor, progress: Progress
    ) -> tuple[Named, Named]:
        """Return some of the networks; on the device of the images."""
        image = torch.tensor(numbers, device="cpu") % len(examples)
        targets = examples.float().flatten(1)[image.to(examples.device), :, None]
        places = coordinates(*examples.shape[1:]).to(targets)
        data = places.expand(len(image), *places.shape), targets
        found = train_together(
            self.model(),
            _fresh(self.model, numbers, self.seed, targets.device),
            lambda step: data,
            F.mse_loss,
            steps=self.steps,
            rate=self.rate,
            until=None if self.psnr is None else 10 ** (-self.psnr / 10),
            progress=lambda step: progress(step / self.steps),
        )
        reached = -10 * found.losses.clamp_min(1e-30).log10()
        return found.states, {
            "label": labels[image.to(labels.device)],
            "image": image,
            "psnr": reached,
            "steps": found.steps,
        }


@dataclass(frozen=True)
class ClassifierRecipe:
    """A ReLU perceptron on one data set, from other weights and by other batches each.

    Facts: the "loss" of the last batch, the "accuracy" on all examples.

    Attributes:
        networks: how many.
        hidden: units of the hidden layers.
        steps, rate: of Adam.
        batch: examples in a step.
        seed: of the weights and batches.
        shard: networks trained together and kept in one file.
    """

    networks: int
    hidden: tuple[int, ...] = (32, 32)
    steps: int = 400
    rate: float = 3e-3
    batch: int = 64
    seed: int = 0
    shard: int = 400

    def count(self, examples: Tensor, labels: Tensor) -> int:
        """Return how many networks there will be.

        Args:
            examples: [m, d].
            labels: int64 [m], from 0.

        Raises:
            InputError: the data are not of these shapes, or there are to be no networks.
        """
        if examples.ndim != 2 or labels.shape != examples.shape[:1] or self.networks < 1:
            raise InputError(
                "expected examples [m, d], labels [m] and at least one network, got "
                f"{list(examples.shape)}, {list(labels.shape)} and {self.networks}"
            )
        return self.networks

    def train(
        self, numbers: range, examples: Tensor, labels: Tensor, progress: Progress
    ) -> tuple[Named, Named]:
        """Return some of the networks; on the device of the examples."""
        x, y = examples.float(), labels.to(examples.device)
        widths = [x.shape[1], *self.hidden, int(y.max()) + 1]
        generator = torch.Generator().manual_seed(self.seed + numbers.start)

        def some(step: int) -> tuple[Tensor, Tensor]:
            shape = (len(numbers), self.batch)
            rows = torch.randint(len(x), shape, generator=generator, device="cpu").to(x.device)
            return x[rows], y[rows]

        found = train_together(
            perceptron(widths),
            _fresh(lambda: perceptron(widths), numbers, self.seed, x.device),
            some,
            F.cross_entropy,
            steps=self.steps,
            rate=self.rate,
            progress=lambda step: progress(step / self.steps),
        )
        model = perceptron(widths)
        outputs = vmap(lambda state: functional_call(model, state, (x,)))(found.states)
        accuracy = (outputs.argmax(-1) == y).float().mean(1)
        return found.states, {"loss": found.losses, "accuracy": accuracy}


def _fresh(
    make: Callable[[], torch.nn.Module], numbers: range, seed: int, device: torch.device
) -> Named:
    states = fresh_states(make, len(numbers), seed + numbers.start)
    return {name: tensor.to(device) for name, tensor in states.items()}
