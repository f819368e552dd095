"""Metrics: how a tensor is scaled before distances between networks are taken."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._errors import CheckpointError, InputError
from gpu_align._problem._stack import flat


@dataclass(frozen=True)
class Metric:
    """`D = sum_t w_t || f(A_t) - pi.f(B_t) ||_F^2` with a transform f that commutes with pi.

    Attributes:
        name: how the metric is called.
        transform: float tensor -> tensor of the same shape.
        weight: tensor -> w_t.
        odd: whether f commutes with negating units too; if not, signs stay as they are.
        batched: f for a stack of tensors, [m, *shape], at once; only where the weight depends on
            the shape alone. Without it, many models are scaled one after another.
        exponent: f is divided by this power of two, and so D by its square: weights that are tiny
            or huge are computed with as if they were not.
    """

    name: str
    transform: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], float]
    odd: bool = False
    batched: Callable[[Tensor], Tensor] | None = None
    exponent: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether tensors stay as they are."""
        return self.batched is _identity and self.weight is _one and not self.exponent

    def scaled(self, tensor: Tensor) -> Tensor:
        """Return `sqrt(w_t) f(tensor)` in float64, so that D is a plain squared distance."""
        return self.scaled_each(tensor[None])[0]

    def scaled_each(self, tensors: Tensor) -> Tensor:
        """Return `scaled` of every tensor of a stack, [m, *shape] with m >= 1."""
        if self.batched is None:
            each = (tensor.to(torch.float64) for tensor in tensors)
            scaled = torch.stack([self.transform(t) * self.weight(t) ** 0.5 for t in each])
            return times_power_of_two(scaled, -self.exponent)
        tensors = tensors.to(torch.float64)
        if self.is_plain:
            return tensors
        scaled = self.batched(tensors) * self.weight(tensors[0]) ** 0.5
        return times_power_of_two(scaled, -self.exponent)

    def unit(self) -> float:
        """Return what D is to be multiplied by to be in the units of f itself.

        Raises:
            CheckpointError: no float64 holds squares of weights so large.
        """
        try:
            return math.ldexp(1.0, 2 * self.exponent)
        except OverflowError as error:
            raise CheckpointError(
                f"there are weights of about 2^{self.exponent}, whose squared distances are beyond "
                "float64; scale both networks down by one factor"
            ) from error


def times_power_of_two(tensors: Tensor, exponent: int) -> Tensor:
    """Return float64 tensors times a power of two: exact, but where it leaves their range."""
    if exponent == 0:
        return tensors
    half = exponent // 2  # the power itself may be out of range
    return tensors * 2.0**half * 2.0 ** (exponent - half)


def _one(tensor: Tensor) -> float:
    return 1.0


def _mean(tensor: Tensor) -> float:
    return 1.0 / max(tensor.numel(), 1)


def _identity(tensors: Tensor) -> Tensor:
    return tensors


def _standardize(tensors: Tensor) -> Tensor:
    """Return zero mean and unit (unbiased) standard deviation; a constant tensor becomes zero."""
    entries = _near_one(flat(tensors))
    if entries.shape[1] < 2:
        return torch.zeros_like(tensors)
    centred = entries - entries.mean(1, keepdim=True)
    deviation = centred.std(1, keepdim=True)
    return torch.where(deviation > 0, centred / deviation, 0).reshape(tensors.shape)


def _unit_rows(tensors: Tensor) -> Tensor:
    """Scale each slice of a tensor's first axis, the stack's second, to unit norm.

    Vectors and zero rows stay as they are.
    """
    if tensors.ndim < 3:
        return tensors
    rows = _near_one(tensors.flatten(2))
    norms = rows.norm(dim=2, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0).reshape(tensors.shape)


def _near_one(rows: Tensor) -> Tensor:
    """Divide each row, [..., n], by a power of two, so that squares of its entries are in range."""
    if rows.shape[-1] == 0:
        return rows
    exponent = torch.frexp(rows.abs().amax(-1, keepdim=True)).exponent.clamp(-1000, 1000)
    return rows * torch.pow(torch.full_like(rows[..., :1], 2.0), -exponent)


def _named(
    name: str,
    batched: Callable[[Tensor], Tensor],
    weight: Callable[[Tensor], float] = _one,
    *,
    odd: bool = False,
) -> Metric:
    """Return a metric of which one tensor is a stack of one."""
    return Metric(name, lambda tensor: batched(tensor[None])[0], weight, odd, batched)


METRICS = {
    metric.name: metric
    for metric in (
        _named("l2", _identity, odd=True),
        _named("normalized", _standardize, _mean),
        _named("standardized", _standardize),
        _named("row", _unit_rows, odd=True),
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
    if not isinstance(metric, str) or metric not in METRICS:
        raise InputError(f"expected a metric among {sorted(METRICS)}, got {metric!r}")
    return METRICS[metric]
