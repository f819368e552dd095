"""Scores of networks on data: loss, accuracy and calibration."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpu_align._checkpoint import rename
from gpu_align._device import choose_engine
from gpu_align._errors import InputError
from gpu_align._network._batches import IGNORED
from gpu_align._network._examples import Examples
from gpu_align._network._image_layout import LastLayout
from gpu_align._network._loss import (
    Loss,
    check_classes,
    class_rows,
    counts_classes,
    loss_function,
    reads_main_output,
    weight,
)
from gpu_align._network._runner import Runner
from gpu_align._process import MODULES, full_precision
from gpu_align._symmetry import StateDict, double, unwrapped

BATCH_SIZE = 250
"""Examples that are run at once; larger ones leave the caches of a CPU."""

_BINS = 15


@dataclass(frozen=True)
class Score:
    """How good a network is on examples.

    Attributes:
        loss: mean over the examples; where several targets belong to one (tokens, pixels), over
            the targets.
        accuracy: share of the targets whose class has the largest logit; None without classes.
        ece: expected calibration error, the mean distance of confidence and accuracy over 15 equal
            bins of confidence (Guo et al., On calibration of modern neural networks, ICML 2017,
            eq. 3); None without classes.
        examples: how many there were.
        batch_losses: of each batch in which a target counts.
        batch_weights: how many examples or targets each of them is a mean of.
    """

    loss: float
    accuracy: float | None
    ece: float | None
    examples: int
    batch_losses: tuple[float, ...]
    batch_weights: tuple[int, ...]

    @property
    def standard_error(self) -> float | None:
        """Of the loss, from the spread of the batches; None for a single one."""
        count, total = len(self.batch_losses), sum(self.batch_weights)
        if count < 2:
            return None
        parts = zip(self.batch_losses, self.batch_weights, strict=True)
        spread = sum((w / total * (loss - self.loss)) ** 2 for loss, w in parts)
        return math.sqrt(spread * count / (count - 1))


def evaluate(
    module: nn.Module,
    state: StateDict,
    examples: Examples,
    loss: str | Loss = "auto",
    *,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "auto",
    in_double: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Return the score of one state dict; see `evaluate_many`."""
    return evaluate_many(
        *(module, [state], examples, loss),
        batch_size=batch_size,
        device=device,
        in_double=in_double,
        progress=progress,
    )[0]


def evaluate_many(
    module: nn.Module,
    states: Sequence[StateDict],
    examples: Examples,
    loss: str | Loss = "auto",
    *,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "auto",
    in_double: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Return the scores of several state dicts, each batch being run under all of them.

    Args:
        module: run in evaluation mode and without gradients, and left as it was. That of a program
            is run in parts that it takes, see `Runner`.
        states: state dicts of the module; names that are missing keep the module's values, and
            tensors are run in the module's dtypes.
        examples: with targets.
        loss: see `loss_function`. A function is called with what the model returns, and its mean
            over a batch counts by the number of examples.
        batch_size: how many examples are run at once; scores differ by rounding only.
        device: see `choose_engine`; all states lie on it together.
        in_double: whether to run in float64, whatever the module casts to.
        progress: called with the number of examples that are done, and of all.

    Raises:
        InputError: there are no targets, or the outputs do not fit them.
        ModelError: the forward fails.
    """
    if not examples.have_targets:
        raise InputError("a loss needs targets, and the data have none; give pairs (x, y)")
    function = loss_function(loss)
    place = choose_engine(device).device
    main = reads_main_output(function)
    runner, placed = _placed(module, states, place, in_double=in_double, main=main)
    tallies = [_Tally(function) for _ in states]
    done = 0
    for several in examples.batches(runner.at_once(batch_size)):
        moved = several.to(place)
        assert moved.targets is not None
        targets = (double(moved.targets) if in_double else moved.targets).split(batch_size)
        for tally, state in zip(tallies, placed, strict=True):
            with MODULES, full_precision(), LastLayout():
                outputs = runner.each(state, moved.inputs, batch_size)
                for each, wanted in zip(outputs, targets, strict=True):
                    tally.add(each, wanted)
        done += len(several)
        if progress is not None:
            progress(done, len(examples))
    return [tally.score() for tally in tallies]


def _placed(
    module: nn.Module,
    states: Sequence[StateDict],
    device: torch.device,
    *,
    in_double: bool,
    main: bool,
) -> tuple[Runner, list[dict[str, Tensor]]]:
    """Return what runs a module on a device, and its tensors there under each state dict."""
    inner = unwrapped(module)
    with MODULES:
        names = inner.state_dict().keys()
        runner = Runner(inner, device, in_double=in_double, main=main)
    named = [state if state.keys() <= names else rename(state, names).state for state in states]
    return runner, [runner.placed(state) for state in named]


class _Tally:
    """Sums over the batches that one network has been run on."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.losses: list[float] = []
        self.weights: list[int] = []
        self.examples = 0
        self.bins: Tensor | None = None

    def add(self, outputs: object, targets: Tensor) -> None:
        """Add a batch."""
        self.examples += len(targets)
        counted = weight(self.loss, targets)
        if counted == 0:
            return  # a mean over nothing is not a number
        rows = _class_rows(self.loss, outputs, targets)
        with torch.no_grad():
            self.losses.append(float(self.loss(outputs, targets)))
        self.weights.append(counted)
        if rows is not None:
            added = _calibration(*rows)
            self.bins = added if self.bins is None else self.bins + added

    def score(self) -> Score:
        """Return the score on all batches so far."""
        total = sum(self.weights)
        if total == 0:
            raise InputError(f"no target counts: all of them are {IGNORED}; give other data")
        pairs = zip(self.losses, self.weights, strict=True)
        loss = math.fsum(value * count for value, count in pairs) / total
        accuracy = ece = None
        if self.bins is not None:
            counts, confidence, right = self.bins
            accuracy = float(right.sum() / counts.sum())
            ece = float((right - confidence).abs().sum() / counts.sum())
        return Score(loss, accuracy, ece, self.examples, tuple(self.losses), tuple(self.weights))


def _class_rows(loss: Loss, outputs: object, targets: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return logits and classes as `class_rows`, those that count; None without classes.

    Raises:
        InputError: the loss is of classes, and outputs and targets do not fit.
    """
    is_named = counts_classes(loss, targets)
    try:
        rows = class_rows(outputs, targets)
        if rows is None or (not is_named and rows[0].shape[1] < 2):
            return None
        check_classes(*rows)
    except InputError:
        if is_named:
            raise
        return None  # of a function of the caller's, which may take them for something else
    logits, classes = rows
    counted = classes != IGNORED
    return logits[counted], classes[counted]


def _calibration(logits: Tensor, classes: Tensor) -> Tensor:
    """Return number, sum of confidences and number of right ones in each bin, float64 [3, 15]."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    confidence, guesses = torch.softmax(logits, -1, dtype=wide).max(-1)
    right = (guesses == classes).cpu().double()
    confidence = confidence.cpu().double()
    bins = ((confidence * _BINS).ceil().long() - 1).clamp(0, _BINS - 1)
    sums = (torch.ones_like(right), confidence, right)
    return torch.stack([torch.bincount(bins, values, minlength=_BINS) for values in sums])
