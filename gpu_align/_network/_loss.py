"""Losses: functions of what a model returns and of the targets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpu_align._errors import InputError, folded
from gpu_align._network._batches import IGNORED
from gpu_align._symmetry import output_tensors

Loss = Callable[[Any, Tensor], Tensor]
"""From what a model returns and targets [b, ...] to a mean over the examples, a scalar tensor."""

_SHOWN = 8


def loss_function(loss: str | Loss) -> Loss:
    """Return the loss of a name; a function is one already.

    Args:
        loss: "cross_entropy", "mse" or "auto": the first for integer targets, the second for
            floating-point ones.

    Raises:
        InputError: there is no such loss.
    """
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        raise InputError(
            f"expected a loss among {', '.join(_LOSSES)} or a function of outputs and targets, got "
            f"{loss!r}"
        )
    return _LOSSES[loss]


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of logits, see `class_rows`; a target of -100 is left out.

    Raises:
        InputError: outputs and targets do not fit.
    """
    rows = class_rows(outputs, targets)
    if rows is None:
        logits = main_output(outputs)
        raise InputError(
            "cross entropy needs integer targets, [b] for logits [b, c], [b, ...] for "
            f"[b, c, ...], [b, t] for [b, t, v]; got targets {_kind(targets)} for outputs "
            f"{_kind(logits)}"
        )
    logits, classes = rows
    if classes.device.type == "cpu":  # elsewhere the look would wait for the device
        check_classes(logits, classes)
    return functional.cross_entropy(logits, classes, ignore_index=IGNORED)


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Return the mean squared difference; outputs [b, 1] go with targets [b] too.

    Raises:
        InputError: their shapes differ.
    """
    values = main_output(outputs)
    if values.shape == (*targets.shape, 1):
        values = values[..., 0]
    if values.shape != targets.shape:
        raise InputError(
            "the mean squared error needs outputs of the shape of the targets; got targets "
            f"{_kind(targets)} for outputs {_kind(values)}"
        )
    return functional.mse_loss(values, targets.to(values.dtype))


def auto(outputs: Any, targets: Tensor) -> Tensor:
    """Return the cross entropy for integer targets, the mean squared error for others.

    Raises:
        InputError: outputs and targets do not fit.
    """
    return (mse if targets.is_floating_point() else cross_entropy)(outputs, targets)


_LOSSES: dict[str, Loss] = {"auto": auto, "cross_entropy": cross_entropy, "mse": mse}


def reads_main_output(loss: Loss) -> bool:
    """Whether a loss is a named one, which looks at nothing but the main output."""
    return loss in _LOSSES.values()


def counts_classes(loss: Loss, targets: Tensor) -> bool:
    """Whether a loss is the cross entropy for these targets."""
    return loss is cross_entropy or (loss is auto and not targets.is_floating_point())


def weight(loss: Loss, targets: Tensor) -> int:
    """Return how much the mean over a batch counts: its targets that count, or its examples.

    So the mean over all batches is that over all targets, however they are cut into batches.
    """
    by_class = counts_classes(loss, targets)
    return int((targets != IGNORED).sum()) if by_class else len(targets)


def main_output(outputs: Any) -> Tensor:
    """Return the output that a named loss is of.

    It is the one called "logits", the only one, or the first of a tuple.

    Raises:
        InputError: there is none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs
    tensors = output_tensors(outputs)
    if "logits" in tensors:
        return tensors["logits"]
    if len(tensors) == 1 or (tensors and isinstance(outputs, tuple | list)):
        return next(iter(tensors.values()))
    raise InputError(
        "expected a model that returns a tensor, a tuple or something with 'logits', got "
        f"{type(outputs).__name__} with {folded(list(tensors), _SHOWN) or 'no tensors'}; pass a "
        "function of outputs and targets as the loss"
    )


def class_rows(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor] | None:
    """Lay logits out as one row for each target.

    Three axes whose first two are those of the targets are [b, t, v], the logits of the next
    tokens; else the classes are on axis 1, [b, c, ...].

    Returns:
        Logits [m, c] and classes int64 [m]; None if they do not fit.

    Raises:
        InputError: see `main_output`.
    """
    logits = main_output(outputs)
    if targets.is_floating_point() or targets.is_complex() or logits.ndim < 2:
        return None
    if logits.ndim == 3 and logits.shape[:2] == targets.shape:
        rows = logits
    elif (logits.shape[0], *logits.shape[2:]) == targets.shape:
        rows = logits.movedim(1, -1)
    else:
        return None
    return rows.reshape(-1, rows.shape[-1]), targets.reshape(-1).long()


def check_classes(logits: Tensor, classes: Tensor) -> None:
    """Check that there are logits for all classes, [m, c] for [m].

    Raises:
        InputError: there are not.
    """
    counted = classes[classes != IGNORED]
    if len(counted) == 0:
        return
    low, high = (int(end) for end in torch.aminmax(counted))
    if low < 0 or high >= logits.shape[1]:
        raise InputError(
            f"the targets are classes from {low} to {high}, the model has logits for "
            f"{logits.shape[1]}; classes are numbered from 0, and {IGNORED} is left out"
        )


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
