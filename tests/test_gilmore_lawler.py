"""The lower bound and the duals of quadratic groups against the bound of Gilmore and Lawler.

Worked out tensor by tensor in NumPy: a bound that is merely valid, but looser, fails here.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import Pair, pair
from oracles import (
    Array,
    Piece,
    assigned,
    assigned_family,
    form_gradient,
    is_free,
    matrices_of,
    matrix_of,
    pieces,
    roots_of,
    symmetry_of,
)

from gpu_align import AlignmentProblem, CoordinateDescent, align, lower_bound

OTHERS = ("signed", "signed_recurrent", "heads")
"""With signs, and with children."""


def shares(networks: Pair, only: str | None = None) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return what each pair of units gains alone, and its shares of the terms that couple groups.

    A term of k matrices is split evenly over them. Seen from one of them, the others can put its
    weights in any order: at best both rows are sorted, for each fixed place by itself. What couples
    two matrices in several fixed places goes to the larger one: at best the other one's units are
    assigned, for all fixed places at once.

    Args:
        networks: whose counted tensors are gone through.
        only: of these, the one that counts.
    """
    spec = networks.spec
    sizes = {name: spec.units(name) for name in spec.groups}
    names = [*sizes, *(f"{name}±" for name, group in spec.groups.items() if group.signed)]
    alone, coupled = ({n: np.zeros([sizes[n.rstrip("±")]] * 2) for n in names} for _ in range(2))
    couples: dict[tuple[str, ...], list[list[tuple[Array, Array]]]] = {}
    for name, tensor in spec.tensors.items():
        for piece in pieces(tensor) if tensor.counted and only in (None, name) else ():
            factors = piece.units
            free = [n for n, factor in factors.items() if is_free(spec, factor.group)]
            above = {n: spec.groups[factors[n].group].parent for n in free}
            own = [n for n in free if factors[n].group not in above.values()]
            signed = any(spec.groups[factors[n].group].signed and factors[n].power for n in own)
            if len(own) == 2 and (above[own[0]] is None or above[own[0]] != above[own[1]]):
                own.sort(key=lambda n: list(spec.groups).index(factors[n].group))
                groups = [spec.groups[factors[n].group] for n in own]
                powers = [factors[n].power for n in own]
                key = tuple(
                    matrix_of(g, p, signs=True) for g, p in zip(groups, powers, strict=True)
                )
                sides = [([] if above[n] is None else [piece.find(above[n])]) + [n] for n in own]
                couples.setdefault(key, []).append(
                    [_pair_of_rows(networks, name, piece, side, free) for side in sides]
                )
                continue
            for n in own:
                along = ([] if above[n] is None else [piece.find(above[n])]) + [n]
                group = spec.groups[factors[n].group]
                rows = _pair_of_rows(networks, name, piece, along, free)
                if len(own) == 1:
                    gain = np.einsum("ikd,jkd->ij", *rows)
                    alone[matrix_of(group, factors[n].power, signs=True)] += gain
                else:
                    a, b = (np.sort(np.abs(r) if signed else r, axis=1) for r in rows)
                    # A bound holds for any sign, so it is not the sign's business.
                    coupled[group.name] += np.einsum("ikd,jkd->ij", a, b) / len(own)
    for matrices, parts in couples.items():
        _add_couple(
            coupled, matrices, [list(zip(*side, strict=True)) for side in zip(*parts, strict=True)]
        )
    return alone, coupled


def _add_couple(
    coupled: dict[str, Array], matrices: tuple[str, ...], sides: list[list[tuple[Array, ...]]]
) -> None:
    """Add the shares of what two matrices couple; both sides have target and source in pieces."""
    signed = any(matrix.endswith("±") for matrix in matrices)
    both = [[np.concatenate(parts, axis=2) for parts in side] for side in sides]
    if both[0][0].shape[2] == 1:
        for matrix, rows in zip(matrices, both, strict=True):
            a, b = (np.sort(np.abs(r) if signed else r, axis=1)[:, :, 0] for r in rows)
            coupled[matrix.rstrip("±")] += a @ b.T / 2
        return
    larger = int(len(both[1][0]) > len(both[0][0]))
    gains = np.einsum("ikd,jld->ijkl", *both[larger])
    gains = np.abs(gains) if signed else gains
    values = [[assigned(gain)[1] for gain in row] for row in gains]
    coupled[matrices[larger].rstrip("±")] += np.array(values)


def _pair_of_rows(
    networks: Pair, name: str, piece: Piece, along: list[int], free: list[int]
) -> tuple[Array, Array]:
    """Return the rows of the target and of the source; see `_rows`."""
    a, b = (
        _rows(state[name].numpy().ravel()[piece.entry], along, free)
        for state in (networks.target, networks.source)
    )
    return a, b


def _rows(weights: Array, along: list[int], free: list[int]) -> Array:
    """Return the weights as [units, places of other groups, fixed places]."""
    others = [n for n in free if n not in along]
    fixed = [n for n in range(weights.ndim) if n not in free]
    moved = weights.transpose(*along, *others, *fixed)
    extents = [math.prod(weights.shape[n] for n in part) for part in (along, others, fixed)]
    return moved.reshape(extents)


def gilmore_lawler(networks: Pair) -> float:
    """Return the bound on the distance."""
    spec = networks.spec
    alone, coupled = shares(networks)
    norms = fixed = 0.0
    for name in (name for name, tensor in spec.tensors.items() if tensor.counted):
        a, b = (state[name].numpy().ravel() for state in (networks.target, networks.source))
        norms += float((a**2).sum() + (b**2).sum())
        for piece in pieces(spec.tensors[name]):
            if not any(is_free(spec, factor.group) for factor in piece.units.values()):
                fixed += float((a * b)[piece.entry].sum())
    gains = {
        name: alone[name] + coupled[name] + np.abs(alone.get(f"{name}±", np.zeros(1)))
        for name in spec.groups
    }
    best = sum(
        assigned_family(spec, root, gains)[1]
        for root in roots_of(spec)
        if is_free(spec, root) or spec.groups[root].fixed
    )
    return norms - 2 * (fixed + best)


@pytest.mark.parametrize("name", ["mlp", "groupnorm", "recurrent", "trilinear", *OTHERS])
def test_the_bound_is_that_of_gilmore_and_lawler(name: str) -> None:
    networks = pair(name)
    root = next(group for group in networks.spec.groups.values() if group.size > 1)
    # With evidence, even of zero, a bound may be below zero.
    nothing = {root.name: torch.zeros(root.size, root.size)}
    problem = AlignmentProblem(networks.source, networks.target, networks.spec, evidence=nothing)
    slack = 1e-12 * float(problem.constant)
    assert float(lower_bound(problem)) == pytest.approx(gilmore_lawler(networks), rel=0, abs=slack)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["recurrent", "signed_recurrent"])
def test_the_dual_of_a_quadratic_group_is_that_of_gilmore_and_lawler(name: str, seed: int) -> None:
    """The tensor on both axes of which h lies is bounded, all others are as they are."""
    networks = pair(name, seed)
    result = align(
        networks.source, networks.target, spec=networks.spec, search=CoordinateDescent(starts=2)
    )
    spec, symmetry = networks.spec, symmetry_of(result.permutation)
    others = replace(spec, tensors={n: t for n, t in spec.tensors.items() if n != "w_hh"})
    matrices = matrices_of(others, symmetry)
    gradient = form_gradient(others, matrices, networks.source, networks.target)
    _, coupled = shares(networks, only="w_hh")
    gains = gradient["h"] + coupled["h"] + np.abs(gradient.get("h±", np.zeros(1)))
    report = next(group for group in result.groups if group.name == "h")
    assert report.dual == pytest.approx(assigned(gains)[1], rel=1e-9)
    whole = form_gradient(spec, matrices_of(spec, symmetry), networks.source, networks.target)
    twice = sum((whole[m] * matrices[m]).sum() for m in ("h", "h±") if m in whole)
    once = sum((gradient[m] * matrices[m]).sum() for m in ("h", "h±") if m in gradient)
    # The gradient counts the quadratic tensor once for each of its axes.
    assert report.primal == pytest.approx((twice + once) / 2, rel=1e-9)
    assert report.gap == pytest.approx(report.dual - report.primal, abs=1e-9)
