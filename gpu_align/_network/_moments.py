"""Moments: means, deviations and products of two networks' units, streamed and merged exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums over the samples of two networks, float64.

    Attributes:
        count: number of samples.
        mean_a, mean_b: [n], means of the units.
        square_a, square_b: [n], sums of squared deviations from the mean.
        cross: [n, n], sums of products of deviations; unit of a, unit of b.

    Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).
    """

    count: int
    mean_a: Tensor
    mean_b: Tensor
    square_a: Tensor
    square_b: Tensor
    cross: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> "Moments":
        """Return those of samples, [n, samples] each, of any floating-point dtype.

        Samples at which a unit is infinite in both, as scores of attention are behind a mask, say
        nothing of the units and are left out.
        """
        found = cls._of_all(a, b)
        if bool(found.mean_a.isfinite().all()):
            return found
        seen = ~(a.isinf() & (a == b)).any(0)
        return cls._of_all(a[:, seen], b[:, seen])

    @classmethod
    def _of_all(cls, a: Tensor, b: Tensor) -> "Moments":
        a, b = a.to(torch.float64, copy=True), b.to(torch.float64, copy=True)
        mean_a, mean_b = (x.mean(1) if x.shape[1] else x.new_zeros(len(x)) for x in (a, b))
        a -= mean_a[:, None]
        b -= mean_b[:, None]
        square_a, square_b = torch.linalg.vecdot(a, a), torch.linalg.vecdot(b, b)
        return cls(a.shape[1], mean_a, mean_b, square_a, square_b, a @ b.T)

    def merged(self, other: "Moments") -> "Moments":
        """Return those of the samples of both."""
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        share = other.count / count
        gap_a, gap_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        weight = self.count * share
        return Moments(
            count,
            self.mean_a + share * gap_a,
            self.mean_b + share * gap_b,
            self.square_a + other.square_a + weight * gap_a.square(),
            self.square_b + other.square_b + weight * gap_b.square(),
            self.cross + other.cross + weight * torch.outer(gap_a, gap_b),
        )

    @property
    def covariance(self) -> Tensor:
        """The cross-covariance, [n, n]."""
        return self.cross / self.count

    @property
    def products(self) -> Tensor:
        """The mean products of a unit of a and one of b, not centred, [n, n]."""
        return self.covariance + torch.outer(self.mean_a, self.mean_b)

    @property
    def deviations(self) -> tuple[Tensor, Tensor]:
        """The standard deviations of the units of both, [n] each."""
        return (self.square_a / self.count).sqrt(), (self.square_b / self.count).sqrt()

    @property
    def correlation(self) -> Tensor:
        """The correlations, [n, n]; 0 for units that are constant but for rounding."""
        a, b = (
            self._safe(s, m)
            for s, m in ((self.square_a, self.mean_a), (self.square_b, self.mean_b))
        )
        return self.cross * a[:, None] * b

    def _safe(self, square: Tensor, mean: Tensor) -> Tensor:
        """Return 1 / sqrt(square), 0 for what is rounding alone."""
        noise = self.count * (1e-12 * mean.abs()).square() + torch.finfo(torch.float64).tiny
        return torch.where(square > noise, square.clamp_min(noise).rsqrt(), 0.0)
