"""Classifiers that generalise differently well."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from gpu_align._errors import InputError
from gpu_align.learn._many import fresh_states, train_together
from gpu_align.learn._nets import perceptron
from gpu_align.learn._recipes import Named, Progress


@dataclass(frozen=True)
class VariedRecipe:
    """A ReLU perceptron, from a part of the examples of its own, with wrong labels among them.

    Facts: the "accuracy" on examples that none is trained on; the "share" of the others that it
    has seen, the share of wrong labels ("noise"), the factor of its first weights ("scale").

    Attributes:
        networks: how many.
        fitted: the first so many examples are trained on; accuracy is measured on the others.
        hidden: units of the hidden layers.
        steps, rate: of Adam.
        batch: examples in a step.
        shares, scales: ranges of log-uniform draws.
        noise: range of a uniform draw.
        seed: of weights, draws and batches.
        shard: networks trained together and kept in one file.
    """

    networks: int
    fitted: int
    hidden: tuple[int, ...] = (16, 16)
    steps: int = 300
    rate: float = 3e-3
    batch: int = 32
    shares: tuple[float, float] = (0.02, 1.0)
    scales: tuple[float, float] = (0.3, 3.0)
    noise: tuple[float, float] = (0.0, 0.5)
    seed: int = 0
    shard: int = 400

    def count(self, examples: Tensor, labels: Tensor) -> int:
        """Return how many networks there will be.

        Args:
            examples: [m, d].
            labels: int64 [m], from 0.

        Raises:
            InputError: the data are not of these shapes, or there is nothing to do.
        """
        if examples.ndim != 2 or labels.shape != examples.shape[:1]:
            raise InputError(
                f"expected examples [m, d] and labels [m], got {list(examples.shape)} and "
                f"{list(labels.shape)}"
            )
        if self.networks < 1 or not 0 < self.fitted < len(examples):
            raise InputError(
                "expected at least one network, some examples to train on and others to measure "
                f"on, got {self.networks} networks and fitted={self.fitted} of {len(examples)}"
            )
        return self.networks

    def train(
        self, numbers: range, examples: Tensor, labels: Tensor, progress: Progress
    ) -> tuple[Named, Named]:
        """Return some of the networks; on the device of the examples."""
        x, y, count = examples.float(), labels.to(examples.device), len(numbers)
        classes = int(y.max()) + 1
        widths = [x.shape[1], *self.hidden, classes]
        generator = torch.Generator().manual_seed(self.seed + numbers.start)

        def draws(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device="cpu").to(x)

        share, scale = (
            low * (high / low) ** draws(count) for low, high in (self.shares, self.scales)
        )
        noise = self.noise[0] + (self.noise[1] - self.noise[0]) * draws(count)
        seen = (share * self.fitted).long().clamp_min(1)
        known = y[: self.fitted].expand(count, -1)
        other = (known + 1 + (draws(*known.shape) * (classes - 1)).long()) % classes
        told = torch.where(draws(*known.shape) < noise[:, None], other, known)
        first = (draws(count) * self.fitted).long()  # where the part of a network begins

        def some(step: int) -> tuple[Tensor, Tensor]:
            places = (draws(count, self.batch) * seen[:, None]).long()
            rows = (first[:, None] + places) % self.fitted
            return x[rows], told.gather(1, rows)

        fresh = fresh_states(lambda: perceptron(widths), count, self.seed + numbers.start)
        states = {
            name: tensor.to(x) * scale.reshape(-1, *(1,) * (tensor.ndim - 1))
            for name, tensor in fresh.items()
        }
        found = train_together(
            perceptron(widths),
            states,
            some,
            F.cross_entropy,
            steps=self.steps,
            rate=self.rate,
            progress=lambda step: progress(step / self.steps),
        )
        model, rest = perceptron(widths), x[self.fitted :]
        outputs = vmap(lambda state: functional_call(model, state, (rest,)))(found.states)
        accuracy = (outputs.argmax(-1) == y[self.fitted :]).float().mean(1)
        return found.states, {
            "accuracy": accuracy,
            "share": share,
            "noise": noise,
            "scale": scale,
        }
