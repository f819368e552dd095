"""Distillation: a merged network trained for a short while to say what its parents say together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_align._errors import ModelError
from gpu_align._merge._average import shares_of
from gpu_align._merge._layers import weighted_mean
from gpu_align._network import (
    IGNORED,
    Batch,
    Examples,
    LastLayout,
    Loss,
    Runner,
    Traces,
    class_rows,
    counts_classes,
)
from gpu_align._process import MODULES, full_precision
from gpu_align._symmetry import StateDict, output_tensors, unwrapped

MORE = 3
"""A network is trained on up to so many times the examples that its layers are fitted on."""

PASSES = 6
"""For each of those that layers are fitted on so many examples pass, again and again if need be."""

_BATCH = 125
_RATE = 2e-4
"""The first rate of Adam; it falls linearly to 0."""

_NOTHING = 1e-4
"""Relative difference of outputs that is not worth a training; Adam would follow mere rounding."""

Lesson = tuple[Batch, Sequence[Tensor]]
"""A batch, and what is to be said of it."""


@dataclass(frozen=True)
class Distillation:
    """How a merged network is trained.

    Norms keep their statistics. What the parents say is held in memory.

    Attributes:
        module: what is run; left as it was.
        traces: of the same model.
        examples: what it is run on; of their targets only which ones count is looked at.
        epochs: how often it is run on each of them.
        loss: of the task. Where it is the cross entropy, the divergence of Kullback and Leibler
            from the parents' mean logits is followed; else the squared difference of all outputs,
            relative to their squares.
        seed: of the order of the batches.

    Source: Lin et al., Ensemble distillation for robust model fusion in federated learning (NeurIPS
    2020), section 3.
    """

    module: nn.Module
    traces: Traces
    examples: Examples
    epochs: int
    loss: Loss
    seed: int

    def of(
        self, start: StateDict, parents: Sequence[StateDict], weights: Sequence[float]
    ) -> dict[str, Tensor]:
        """Return a network that was trained, in the dtypes and on the devices of its start.

        Args:
            start: a state dict of the model.
            parents: other ones, their units in any order.
            weights: of the parents' outputs in their mean.

        Raises:
            ModelError: the forward fails, or no gradient comes back through it.
        """
        shares = shares_of(weights, len(parents))
        teachers = list(map(self.traces.placed, parents))
        given = self.traces.placed(start)
        if torch.is_inference_mode_enabled():
            raise ModelError(
                "distillation takes gradients, which torch.inference_mode forbids; merge outside "
                "of it, or choose another method"
            )
        with full_precision():
            with MODULES:
                is_main = self._is_logits(self.examples.lots[0])
                student = _Student(unwrapped(self.module), given, self.traces.device, main=is_main)
            lessons = list(self._lessons(student.runner, teachers, shares))
            if all(self._is_known(student, *lesson) for lesson in lessons):
                return dict(start)
            with torch.enable_grad():
                self._train(student, lessons)
        made = student.tensors()
        return {name: made[name].to(own) if name in made else own for name, own in start.items()}

    def _lessons(
        self, runner: Runner, teachers: Sequence[StateDict], shares: Sequence[float]
    ) -> Iterator[Lesson]:
        """Yield batches in which something counts, each with the mean of what the parents say."""
        for each in self.examples.batches(_BATCH):
            batch = each.to(self.traces.device)
            said = [self._said(runner, teacher, batch) for teacher in teachers]
            goal = [weighted_mean(outputs, shares) for outputs in zip(*said, strict=True)]
            if any(outputs.numel() for outputs in goal):
                yield batch, goal

    def _is_known(self, student: "_Student", batch: Batch, goal: Sequence[Tensor]) -> bool:
        """Whether a network says nearly the same already as its parents."""
        said = self._said(student.runner, student.state, batch)
        return all(
            float(_square(own - wanted)) <= _NOTHING**2 * float(_square(wanted))
            for own, wanted in zip(said, goal, strict=True)
        )

    def _train(self, student: "_Student", lessons: Sequence[Lesson]) -> None:
        optimizer = torch.optim.Adam(student.leaves, lr=_RATE)
        steps = self.epochs * len(lessons)
        fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        random = torch.Generator(device="cpu").manual_seed(self.seed)
        for _ in range(self.epochs):
            for number in torch.randperm(len(lessons), generator=random, device="cpu").tolist():
                batch, goal = lessons[number]
                optimizer.zero_grad()
                said = self._said(student.runner, student.state, batch, grad=True)
                gap = _divergence(said, goal) if self._is_logits(batch) else _difference(said, goal)
                _take_gradient(gap)
                optimizer.step()
                fall.step()

    def _is_logits(self, batch: Batch) -> bool:
        """Whether the outputs are compared as logits."""
        return batch.targets is not None and counts_classes(self.loss, batch.targets)

    def _said(
        self, runner: Runner, state: StateDict, batch: Batch, *, grad: bool = False
    ) -> list[Tensor]:
        """Return what a network says of a batch: the logits that count, or all its outputs."""
        with MODULES, LastLayout():
            outputs = runner.run(state, batch.inputs, grad=grad)
        if self._is_logits(batch):
            assert batch.targets is not None
            rows = class_rows(outputs, batch.targets)
            assert rows is not None, "networks were measured by their classes before"
            logits, classes = rows
            return [logits[classes != IGNORED]]
        given = output_tensors(outputs).values()
        return [each for each in given if each.is_floating_point() and each.numel()]


class _Student:
    """A network whose parameters are trained.

    Attributes:
        runner: runs it.
        leaves: the parameters, tied ones once, in float32 at least.
        state: all its tensors, those that are trained among them.
    """

    def __init__(
        self, module: nn.Module, given: StateDict, device: torch.device, *, main: bool
    ) -> None:
        self.runner = Runner(module, device, main=main)
        first = {name: names[0] for names in self.runner.ties for name in names}
        known: dict[str, Tensor] = {}
        trained: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if parameter.is_floating_point() and name in given:
                own = given[name]
                wide = torch.promote_types(own.dtype, torch.float32)
                leaf = own.detach().to(wide, copy=True).requires_grad_()
                trained[name] = known.setdefault(first.get(name, name), leaf)
        self.leaves = list(known.values())
        self._trained = trained
        self.state: Mapping[str, Tensor] = {**given, **trained}

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters as they are now."""
        return {name: leaf.detach() for name, leaf in self._trained.items()}


def _square(values: Tensor) -> Tensor:
    """Return the sum of squares, float64; logits that are masked are infinite and left out."""
    return torch.where(values.isfinite(), values, 0.0).double().square().sum()


def _divergence(said: Sequence[Tensor], goal: Sequence[Tensor]) -> Tensor:
    """Return the mean divergence of the classes of logits [m, c] from those of others."""
    [logits], [wanted] = said, goal
    own, other = (F.log_softmax(each, -1, dtype=torch.float32) for each in (logits, wanted))
    return F.kl_div(own, other, log_target=True, reduction="batchmean")


def _difference(said: Sequence[Tensor], goal: Sequence[Tensor]) -> Tensor:
    """Return the squared difference of outputs relative to their squares, summed over them."""
    parts = []
    for each, wanted in zip(said, goal, strict=True):
        wide = torch.promote_types(wanted.dtype, torch.float32)
        least = torch.finfo(wide).tiny
        square = wanted.to(wide).square().mean().clamp_min(least)
        parts.append((each.to(wide) - wanted.to(wide)).square().mean() / square)
    return torch.stack(parts).sum()


def _take_gradient(value: Tensor) -> None:
    """Give the leaves of a value their gradients.

    Raises:
        ModelError: there are none.
    """
    try:
        value.backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"no gradient comes back through the model: {reason}; distillation needs a forward "
            "that can be differentiated, choose another method"
        ) from error
