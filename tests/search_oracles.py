"""What searches are compared with and go by: local optima, a greedy pass, plain scores."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from oracles import (
    ODD,
    Array,
    Symmetry,
    assigned_family,
    best_signs,
    children_of,
    form_gradient,
    is_free,
    matrices_of,
    members_of,
    pieces,
    roots_of,
    scaled,
    symmetry_of,
)
from torch import Tensor

from gpu_align import AlignmentProblem, Permutation, PermutationSpec
from gpu_align._symmetry._parts import Group


def assert_local_optimum(
    spec: PermutationSpec,
    symmetry: Symmetry,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
) -> None:
    """Assert that SciPy's assignment of no single family, the others fixed, is better.

    No two groups of a family may lie on one tensor, other than a child beside its parent.
    """
    matrices = matrices_of(spec, symmetry)
    gradient = form_gradient(spec, matrices, source, target)
    for root in roots_of(spec):
        members = members_of(spec, root)
        gains = {group.name: best_signs(group, gradient) for group in members}
        _, best = assigned_family(spec, root, gains)
        names = [name for g in members for name in (g.name, f"{g.name}±") if name in gradient]
        present = sum((gradient[name] * matrices[name]).sum() for name in names)
        assert present >= best - 1e-9 * abs(best)


def greedy_pass(
    spec: PermutationSpec,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    incoming: bool = False,
    euclidean: bool = False,
    metric: str = "l2",
) -> Symmetry:
    """Choose each family once, in order, by the row distances of the tensors that are settled.

    No two groups of a family may lie on one tensor, other than a child beside its parent.
    """
    a, b = (
        {n: torch.from_numpy(scaled(metric, t.double().numpy())) for n, t in state.items()}
        for state in (target, source)
    )
    found = symmetry_of(Permutation.identity(spec))
    decided: set[str] = set()
    for root in roots_of(spec):
        members = members_of(spec, root)
        decided |= {group.name for group in members}
        settled = {
            name: tensor
            for name, tensor in spec.tensors.items()
            if tensor.groups and decided.issuperset(tensor.groups)
            if tensor.axes[0].groups or not incoming
        }
        part = replace(spec, tensors=settled, ties={}, norm_scales=())
        matrices = matrices_of(spec, found, signs=metric in ODD)
        gradient = form_gradient(part, matrices, b, a)
        cost = {
            g.name: _row_norms(part, g, a)[:, None]
            + _row_norms(part, g, b)[None]
            - 2 * best_signs(g, gradient)
            for g in members
        }
        if euclidean:
            cost = {name: np.sqrt(np.maximum(matrix, 0)) for name, matrix in cost.items()}
        chosen, _ = assigned_family(spec, root, {name: -matrix for name, matrix in cost.items()})
        signs = {
            g.name: np.where(
                np.take_along_axis(gradient[f"{g.name}±"], perm[:, None], 1) < 0, -1, 1
            )[:, 0]
            for g in members
            for perm in [chosen.perms[g.name]]
            if f"{g.name}±" in gradient
        }
        found = Symmetry({**found.perms, **chosen.perms}, {**found.signs, **signs})
    return found


def _row_norms(spec: PermutationSpec, group: Group, state: Mapping[str, Tensor]) -> Array:
    """Return for each unit the squares of the weights that its matrices meet, summed."""
    total = np.zeros(spec.units(group.name))
    for name, tensor_spec in spec.tensors.items():
        for piece in pieces(tensor_spec) if tensor_spec.counted else ():
            present = [f.group for f in piece.units.values() if is_free(spec, f.group)]
            if group.name not in present or {c.name for c in children_of(spec, group.name)} & {
                *present
            }:
                continue
            along = [piece.find(group.name)]
            if group.parent is not None:
                along.insert(0, piece.find(group.parent))
            squares = state[name].numpy().ravel()[piece.entry] ** 2
            others = tuple(n for n in range(squares.ndim) if n not in along)
            summed = squares.sum(others)
            total += (summed if along == sorted(along) else summed.T).ravel()
    return total


class AtIdentity:
    """In the place of an aligner: similarities with all other units where they are."""

    def __repr__(self) -> str:
        return "AtIdentity()"

    def scores(self, problem: AlignmentProblem) -> Mapping[str, Tensor]:
        still = problem.identity()
        return {v: problem.similarity(v, still.perms, still.model) for v in problem.sizes}
