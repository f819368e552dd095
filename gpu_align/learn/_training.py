"""Training: seeded epochs with a schedule, the best weights kept, a file to resume from."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpu_align._errors import GpuAlignError, InputError
from gpu_align.learn._training_file import TrainingFile

Loss = Callable[[Tensor], Tensor]
"""Numbers of some examples, int64 [k] on the CPU -> their loss, a number to go down."""


@dataclass(frozen=True)
class TrainingPlan:
    """How a model is trained: by AdamW, with a rate that rises linearly and falls as a cosine.

    Attributes:
        epochs: how often all examples are seen, unless it ends early.
        batch: examples in a step.
        rate: the highest learning rate.
        decay: weight decay.
        warm_up: share of the steps in which the rate rises.
        clip: largest norm of the gradient; None for any.
        patience: epochs without a better held-back value after which training ends; None for none.
    """

    epochs: int
    batch: int = 64
    rate: float = 3e-3
    decay: float = 1e-2
    warm_up: float = 0.05
    clip: float | None = None
    patience: int | None = None

    def check(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one of them is out of its range.
        """
        if min(self.epochs, self.batch) < 1:
            raise InputError(
                "expected at least one epoch and one example in a step, got "
                f"epochs={self.epochs}, batch={self.batch}"
            )
        if not 0 < self.rate < math.inf or not 0 <= self.decay < math.inf:
            raise InputError(
                "expected a learning rate above 0 and a weight decay from 0 on, got "
                f"rate={self.rate:g}, decay={self.decay:g}"
            )

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, from 0, of so many."""
        rising = max(1, round(self.warm_up * steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


@dataclass(frozen=True)
class Epoch:
    """What an epoch has come to.

    Attributes:
        number: from 1.
        loss: the mean over its steps.
        held: the value on what is held back; None if nothing is.
    """

    number: int
    loss: float
    held: float | None


@dataclass(frozen=True)
class Training:
    """A training that has ended.

    Attributes:
        epochs: all of them.
        best: the epoch whose weights the model has now: the last of those with the highest
            held-back value; without such values the last.
        seconds: of the processor, those before an interruption included.
    """

    epochs: tuple[Epoch, ...]
    best: Epoch
    seconds: float


def train(
    model: nn.Module,
    loss: Loss,
    count: int,
    plan: TrainingPlan,
    *,
    held: Callable[[], float] | None = None,
    seed: int = 0,
    file: TrainingFile | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Callable[[Epoch], None] | None = None,
) -> Training:
    """Train a model, which then has the weights of its best epoch and is in evaluation.

    All random numbers come from torch's generators, which begin with the seed and are left as they
    were. With a file, a training that was interrupted is resumed from its last whole epoch; on the
    CPU it ends as if nothing had happened, to the bit. A file of a training that has ended gives
    its result at once.

    Args:
        model: on the device of the training; it is changed.
        loss: of some examples; called with the model in training.
        count: of examples; each epoch sees each once, in an order of its own.
        plan: how.
        held: a value to go up, on examples that are not trained on; called after each epoch,
            without gradients and with the model in evaluation.
        seed: of all random numbers of the training; the model's first weights are the caller's.
        file: where the training is kept.
        settings: what else the training depends on; a file of others is refused.
        progress: called after each epoch.

    Raises:
        InputError: there are no epochs, no examples or no weights to train.
        CheckpointError: the file cannot be used or written.
        GpuAlignError: the loss is no longer finite.
    """
    _check(model, count, plan)
    devices = [torch.cuda.current_device()] if _on_cuda(model) else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        run = _Run(model, loss, count, plan, held)
        if file is not None:
            identity = {**asdict(plan), "examples": count, "seed": seed, **(settings or {})}
            kept = file.begin({name: repr(value) for name, value in identity.items()})
            if kept is not None:
                run.restore(kept, file)
        return run.finish(file, progress)


class _Run:
    """A training between two epochs."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        count: int,
        plan: TrainingPlan,
        held: Callable[[], float] | None,
    ) -> None:
        self.model, self.loss, self.count, self.plan, self.held = model, loss, count, plan, held
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(self.weights, plan.rate, weight_decay=plan.decay)
        self.epochs: list[Epoch] = []
        self.best: Epoch | None = None
        self.best_state: dict[str, Tensor] = {}
        self.seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether no epoch is to come."""
        if not self.epochs or self.best is None:
            return False
        patience, last = self.plan.patience, self.epochs[-1].number
        waited = patience is not None and last - self.best.number >= patience
        return last >= self.plan.epochs or waited

    def finish(
        self, file: TrainingFile | None, progress: Callable[[Epoch], None] | None
    ) -> Training:
        """Go through the epochs that are left."""
        kept = self.state()
        try:
            while not self.ended:
                self._epoch()
                kept = self.state()
                if file is not None and not self.ended:
                    file.note(kept)
                if progress is not None:
                    progress(self.epochs[-1])
        except KeyboardInterrupt:
            if file is not None and kept["epochs"]:
                file.write(kept)
            raise
        if file is not None:
            file.write(kept)
        assert self.best is not None
        self.model.load_state_dict(self.best_state)
        self.model.eval()
        return Training(tuple(self.epochs), self.best, self.seconds)

    def _epoch(self) -> None:
        began = time.process_time()
        loss = self._steps()
        if not math.isfinite(loss):
            raise GpuAlignError(
                f"the loss is {loss} in epoch {len(self.epochs) + 1}; lower the rate of the "
                f"training, which is {self.plan.rate:g}"
            )
        value = None
        if self.held is not None:
            self.model.eval()
            with torch.no_grad():
                value = self.held()
        epoch = Epoch(len(self.epochs) + 1, loss, value)
        self.epochs.append(epoch)
        if self.best is None or self.best.held is None or value is None or value >= self.best.held:
            self.best, self.best_state = epoch, copy.deepcopy(self.model.state_dict())
        self.seconds += time.process_time() - began

    def _steps(self) -> float:
        """Train through all examples; return the mean of the losses."""
        self.model.train()
        parts = torch.randperm(self.count, device="cpu").split(self.plan.batch)
        steps, before = len(parts) * self.plan.epochs, len(parts) * len(self.epochs)
        total: Tensor | float = 0.0
        for number, part in enumerate(parts):
            for group in self.optimiser.param_groups:
                group["lr"] = self.plan.rate_at(before + number, steps)
            loss = self.loss(part)
            self.optimiser.zero_grad()
            loss.backward()
            if self.plan.clip is not None:
                nn.utils.clip_grad_norm_(self.weights, self.plan.clip)
            self.optimiser.step()
            total = total + loss.detach()
        return float(total) / len(parts)

    def state(self) -> dict[str, Any]:
        """Return all that the epochs to come depend on, as tensors and plain values of its own."""
        random = {"cpu": torch.get_rng_state()}
        if _on_cuda(self.model):
            random["cuda"] = torch.cuda.get_rng_state()
        return {
            "model": copy.deepcopy(self.model.state_dict()),
            "optimiser": copy.deepcopy(self.optimiser.state_dict()),
            "random": random,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": None if self.best is None else self.best.number,
            "best_state": self.best_state,
            "seconds": self.seconds,
        }

    def restore(self, kept: Mapping[str, Any], file: TrainingFile) -> None:
        """Take what `state` has returned.

        Raises:
            CheckpointError: it is of another model.
        """
        with file.reading():
            epochs = [Epoch(**epoch) for epoch in kept["epochs"]]
            self.model.load_state_dict(kept["best_state"])
            self.model.load_state_dict(kept["model"])
            self.optimiser.load_state_dict(kept["optimiser"])
            torch.set_rng_state(kept["random"]["cpu"])
            if _on_cuda(self.model):
                torch.cuda.set_rng_state(kept["random"]["cuda"])
            self.epochs, self.best_state = epochs, kept["best_state"]
            self.best, self.seconds = epochs[kept["best"] - 1], float(kept["seconds"])


def _on_cuda(model: nn.Module) -> bool:
    return any(weight.is_cuda for weight in model.parameters())


def _check(model: nn.Module, count: int, plan: TrainingPlan) -> None:
    plan.check()
    if count < 1:
        raise InputError("expected at least one example to train on, got none")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise InputError("expected a model with weights to train, got one without")
