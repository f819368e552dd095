"""Ridge regression of a layer's weights from sums over data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (*(10.0**power for power in range(-5, 1)), math.inf)
"""Strengths that are tried, relative to the mean square of the inputs; inf keeps the weights."""


@dataclass(frozen=True)
class Normal:
    """Sums over samples of inputs x [blocks, s, k] and of residuals r [blocks, s, n], float64.

    Attributes:
        count: number of samples.
        x, r: sums, [blocks, k] and [blocks, n].
        xx, xr, rr: sums of products, [blocks, k, k], [blocks, k, n] and [blocks].
    """

    count: int
    x: Tensor
    r: Tensor
    xx: Tensor
    xr: Tensor
    rr: Tensor

    @classmethod
    def of(cls, x: Tensor, r: Tensor) -> "Normal":
        """Return those of some samples; products are taken in the dtype of these."""
        turned = x.transpose(1, 2)
        sums = (x.sum(1), r.sum(1), turned @ x, turned @ r, r.square().sum((1, 2)))
        return cls(x.shape[1], *(each.to(torch.float64) for each in sums))

    def merged(self, other: "Normal") -> "Normal":
        """Return those of the samples of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Normal(*(a + b for a, b in pairs))

    def centred(self) -> "Normal":
        """Return them with the mean taken off every sample."""
        x, r = self.x / self.count, self.r / self.count
        return Normal(
            self.count,
            *(torch.zeros_like(x), torch.zeros_like(r)),
            self.xx - self.count * x[:, :, None] * x[:, None],
            self.xr - self.count * x[:, :, None] * r[:, None],
            self.rr - self.count * r.square().sum(1),
        )


@dataclass(frozen=True)
class Fit:
    """What a regression adds to the weights.

    Attributes:
        weight: [blocks, k, n].
        shift: [blocks, n], zeros without a bias.
        ridge: the strength that was chosen.
    """

    weight: Tensor
    shift: Tensor
    ridge: float


def ridge_fit(fit: Normal, held: Normal, *, bias: bool, ridges: Sequence[float] = RIDGES) -> Fit:
    """Fit residuals by least squares, with a ridge that is chosen on held-back samples.

    Args:
        fit, held: sums over the samples that are fitted and over those that judge.
        bias: whether a constant is fitted too, which is not shrunk.
        ridges: strengths, the largest best where they judge alike.
    """
    own = fit.centred() if bias else fit
    values, vectors = torch.linalg.eigh(own.xx)
    values = values.clamp_min(0)
    unit = values.sum(1) / values.shape[1]
    turned = vectors.transpose(1, 2) @ own.xr
    best: Fit | None = None
    least = math.inf
    for ridge in sorted(ridges, reverse=True):
        shrunk = values + ridge * unit[:, None]
        inverse = torch.where(shrunk > 0, 1 / shrunk, 0.0) if ridge < math.inf else 0 * values
        weight = vectors @ (inverse[..., None] * turned)
        shift = torch.zeros_like(fit.r)
        if bias:
            mean = (fit.x / fit.count)[:, None] @ weight
            shift = fit.r / fit.count - mean[:, 0]
        error = _error(held, weight, shift)
        if error < least * (1 - 1e-9) or best is None:
            best, least = Fit(weight, shift, ridge), error
    assert best is not None
    return best


def _error(sums: Normal, weight: Tensor, shift: Tensor) -> float:
    """Return the squared error of `x weight + shift` for the residuals, summed."""
    fitted = (weight * (sums.xx @ weight)).sum() + 2 * (
        sums.x[:, None] @ weight * shift[:, None]
    ).sum()
    constant = sums.count * shift.square().sum()
    inner = (weight * sums.xr).sum() + (shift * sums.r).sum()
    return float(sums.rr.sum() + fitted + constant - 2 * inner)
