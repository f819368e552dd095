"""A bound by convex relaxation, for problems whose pairs of pairs do not fit the memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gpu_align._problem import Matcher
from gpu_align._proof._duals import Duals
from gpu_align._proof._reduced import Couple, Reduced
from gpu_align._proof._stage import EPS, Verdict, costs

_SVD = 64
"""Roundings of a singular value decomposition, in units of its size."""


@dataclass(frozen=True)
class Convex:
    """A point at which the concave majorant of F is linearised.

    Attributes:
        point: group -> float64 [n, n], any matrix.
    """

    point: Mapping[str, Tensor]

    @classmethod
    def empty(cls, form: Reduced) -> "Convex":
        """Return the mean of all permutations."""
        return cls({g: torch.full_like(w, 1 / w.shape[1]) for g, w in form.gains.items()})

    def to(self, device: torch.device) -> "Convex":
        """Return the point on a device."""
        return Convex({group: point.to(device) for group, point in self.point.items()})

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all matrices with a name each."""
        for group, point in self.point.items():
            yield f"point^{group}", point


@dataclass(frozen=True)
class Majorant:
    """`sum_g <gains_g, P_g> + sum_slices <C, x y> - <W, x^2 + y^2> / 2`, at least F, and concave.

    Each slice `<A, P B Q^T>` of a couple, its means apart, is `<C, x y>` with `x = U_A^T P U_B`,
    `y = V_A^T Q V_B` and `C = sigma tau^T` in the bases of the singular vectors. As x and y have
    orthogonal rows at permutations, `s_k + t_l >= sigma_k tau_l` gives the rest, `W = s + t`.

    Attributes:
        gains: group -> [n, n], with what the means of the couples gain.
        fixed: what every permutation gains.
        slices: of all couples.

    Source: Anstreicher & Brixius, "A new bound for the quadratic assignment problem based on convex
    quadratic programming", Mathematical Programming 89 (2001), section 2.
    """

    gains: Mapping[str, Tensor]
    fixed: float
    slices: tuple["Slice", ...]

    @classmethod
    def of(cls, form: Reduced) -> "Majorant":
        """Decompose the couples of a problem without signs."""
        gains, fixed = {g: w.clone() for g, w in form.gains.items()}, 0.0
        slices = []
        for couple in form.couples:
            (first, second), (n, m, depth) = couple.groups, couple.target.shape
            parts = [_centred(tensor) for tensor in (couple.target, couple.source)]
            (a, a_row, a_column, a_mean), (b, b_row, b_column, b_mean) = parts
            gains[first] += m * a_row[:, 0] @ b_row[:, 0].T
            gains[second] += n * a_column[0] @ b_column[0].T
            fixed += n * m * float((a_mean * b_mean).sum())
            slices += [Slice.of(couple, a[..., d], b[..., d]) for d in range(depth)]
        fixed += sum(part.fixed for part in slices)
        return cls(gains, fixed, tuple(slices))

    def at(self, point: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Return the value and the gradient, group -> [n, n]."""
        value = self.fixed + sum(float((w * point[g]).sum()) for g, w in self.gains.items())
        gradient = {g: w.clone() for g, w in self.gains.items()}
        for part in self.slices:
            value += part.add(point, gradient)
        return value, gradient

    def curvature(self, step: Mapping[str, Tensor]) -> float:
        """Return the quadratic part of the value along a step, at most 0."""
        gradient = {g: torch.zeros_like(w) for g, w in self.gains.items()}
        return sum(part.add(step, gradient) for part in self.slices)


@dataclass(frozen=True)
class Slice:
    """One fixed place of a couple in the bases of its singular vectors, r of each.

    Attributes:
        groups: of P and Q.
        left, right: U_A [n, r] and U_B [n, r], V_A [m, r] and V_B [m, r].
        products: C, [r, r].
        weights: W, [r, r].
    """

    groups: tuple[str, str]
    left: tuple[Tensor, Tensor]
    right: tuple[Tensor, Tensor]
    products: Tensor
    weights: Tensor

    @classmethod
    def of(cls, couple: Couple, a: Tensor, b: Tensor) -> "Slice":
        """Decompose the matrices of target and source, [n, m]."""
        (u_a, sigma, v_a), (u_b, tau, v_b) = (
            torch.linalg.svd(part, full_matrices=False) for part in (a, b)
        )
        own, other = _telescoped(sigma, tau), _telescoped(tau, sigma)
        diagonal = sigma * tau
        s, t = (diagonal - own + other) / 2, (own + diagonal - other) / 2
        products = sigma[:, None] * tau
        weights = torch.maximum(s[:, None] + t, products)
        return cls(couple.groups, (u_a, u_b), (v_a.mT, v_b.mT), products, weights)

    @cached_property
    def fixed(self) -> float:
        """The sum of all s and t: that of the weights' diagonal."""
        return float(self.weights.diagonal().sum())

    def add(self, point: Mapping[str, Tensor], gradient: dict[str, Tensor]) -> float:
        """Add the gradient at a point, and return the quadratic part of the value."""
        first, second = self.groups
        x = self.left[0].mT @ point[first] @ self.left[1]
        y = self.right[0].mT @ point[second] @ self.right[1]
        by_x, by_y = self.products * y - self.weights * x, self.products * x - self.weights * y
        gradient[first] += self.left[0] @ by_x @ self.left[1].mT
        gradient[second] += self.right[0] @ by_y @ self.right[1].mT
        return float((by_x * x).sum() + (by_y * y).sum()) / 2


def judge_convex(
    form: Reduced,
    stage: Convex,
    alive: Mapping[str, Tensor],
    best: Duals,
    majorant: Majorant | None = None,
) -> Verdict:
    """Return what a point proves: F is at most the linearisation there, of any point.

    Args:
        form: the problem.
        stage: the point.
        alive: group -> bool [n, n], pairs that are not excluded already.
        best: solves assignments.
        majorant: of the problem, if it is there already.
    """
    majorant = majorant or Majorant.of(form)
    value, gradient = majorant.at(stage.point)
    lacking, scale = {}, abs(form.constant)
    for group, slope in gradient.items():
        value -= float((slope * stage.point[group]).sum())
        row, column = best(slope[None])
        lacking[group] = slope - row[0][:, None] - column[0]
        value += float(row.sum() + column.sum())
        scale += float(
            row.abs().sum() + column.abs().sum() + slope.norm() * stage.point[group].norm()
        )
    sizes = _SVD + 4 * sum(map(len, form.gains.values()))
    for couple in form.couples:
        scale += float(couple.target.norm() * couple.source.norm()) * couple.target.shape[2]
    allowance = EPS * sizes * scale
    bound = form.constant - 2 * value - allowance
    return Verdict(bound, costs(bound, lacking, alive), allowance)


def _telescoped(sigma: Tensor, tau: Tensor) -> Tensor:
    """Return `t_l = sum_{r >= l} sigma_r (tau_r - tau_{r+1})`, of falling sigma and tau [r].

    With `s_k = sigma_k tau_k - t_k` they are at least 0, and `s_k + t_l >= sigma_k tau_l`.
    """
    falls = sigma * (tau - torch.cat([tau[1:], tau.new_zeros(1)]))
    return falls.flip(0).cumsum(0).flip(0)


def _centred(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the means out of [n, m, d]: interaction, those of rows, of columns, and of all."""
    row, column = tensor.mean(1, keepdim=True), tensor.mean(0, keepdim=True)
    mean = tensor.mean((0, 1), keepdim=True)
    return tensor - row - column + mean, row - mean, column - mean, mean


def toward_permutations(majorant: Majorant, stage: Convex, match: Matcher) -> Convex | None:
    """Return a better point by a step of Frank-Wolfe with exact line search; None at the maximum.

    Args:
        majorant: of the problem.
        stage: the point.
        match: solves assignments.
    """
    _, gradient = majorant.at(stage.point)
    step, rise = {}, 0.0
    for group, slope in gradient.items():
        columns = match(slope[None])[0][0]
        goal = torch.zeros_like(slope).scatter_(1, columns[:, None], 1.0)
        step[group] = goal - stage.point[group]
        rise += float((slope * step[group]).sum())
    if rise <= 0:
        return None
    bend = majorant.curvature(step)
    length = 1.0 if -2 * bend <= rise else -rise / (2 * bend)
    return Convex({group: stage.point[group] + length * move for group, move in step.items()})
