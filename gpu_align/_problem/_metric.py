"""Metrics: how a tensor is scaled before distances between networks are taken."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._errors import InputError


@dataclass(frozen=True)
class Metric:
    """`D = sum_t w_t || f(A_t) - pi.f(B_t) ||_F^2` with a transform f that commutes with pi.

    Attributes:
        name: how the metric is called.
        transform: float tensor -> tensor of the same shape.
        weight: tensor -> w_t.
        odd: whether f commutes with negating units too; if not, signs stay as they are.
    """

    name: str
    transform: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], float]
    odd: bool = False

    def scaled(self, tensor: Tensor) -> Tensor:
        """Return `sqrt(w_t) f(tensor)` in float64, so that D is a plain squared distance."""
        tensor = tensor.to(torch.float64)
        return self.transform(tensor) * self.weight(tensor) ** 0.5


def _one(tensor: Tensor) -> float:
    return 1.0


def _mean(tensor: Tensor) -> float:
    return 1.0 / max(tensor.numel(), 1)


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _standardize(tensor: Tensor) -> Tensor:
    """Return zero mean and unit (unbiased) standard deviation; a constant tensor becomes zero."""
    if tensor.numel() < 2:
        return torch.zeros_like(tensor)
    centred = tensor - tensor.mean()
    deviation = centred.std()
    return centred / deviation if deviation > 0 else torch.zeros_like(tensor)


def _unit_rows(tensor: Tensor) -> Tensor:
    """Scale each slice of the first axis to unit norm; vectors and zero rows stay as they are."""
    if tensor.ndim < 2:
        return tensor
    norms = tensor.flatten(1).norm(dim=1).reshape(-1, *[1] * (tensor.ndim - 1))
    return tensor / torch.where(norms > 0, norms, torch.ones_like(norms))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("l2", _identity, _one, odd=True),
        Metric("normalized", _standardize, _mean),
        Metric("standardized", _standardize, _one),
        Metric("row", _unit_rows, _one, odd=True),
    )
}
"""Named metrics.

`l2`: plain squared distance of the parameters.
`normalized`: each tensor standardised as a whole, mean square difference per tensor.
`standardized`: the same without the mean: every entry weighs the same.
`row`: the rows of each matrix or kernel scaled to unit norm, for layers whose scale is free.
"""


def as_metric(metric: str | Metric) -> Metric:
    """Return a metric by its name.

    Raises:
        InputError: no metric has this name.
    """
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise InputError(f"expected a metric among {sorted(METRICS)}, got {metric!r}")
    return METRICS[metric]
