"""Weight matching in the plain way: one pair, one group at a time, NumPy and SciPy.

This is the baseline of the benches, written as a user would write it from the paper (Ainsworth et
al., Git Re-Basin, ICLR 2023, algorithm 1), with the permutation spec as its only help.
"""

import math
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from gpu_align import PermutationSpec
from gpu_align._symmetry import Units

Arrays = Mapping[str, NDArray]
Perms = dict[str, NDArray]


def weight_matching(
    target: Arrays,
    source: Arrays,
    spec: PermutationSpec,
    rng: np.random.Generator,
    seconds: float = math.inf,
) -> Perms:
    """Descend from the identity, groups in random order, until a sweep changes nothing.

    After so many seconds it stops where it is.
    """
    started = time.perf_counter()
    perms = {name: np.arange(group.size) for name, group in spec.groups.items()}
    improved = True
    while improved:
        improved = False
        for name in rng.permutation(list(perms)):
            if time.perf_counter() - started > seconds:
                return perms
            similarity = _similarity(target, source, spec, perms, name)
            columns = linear_sum_assignment(similarity, maximize=True)[1]
            rows = np.arange(len(columns))
            old, new = similarity[rows, perms[name]].sum(), similarity[rows, columns].sum()
            if new > old + 1e-7 * abs(old):
                perms[name], improved = columns, True
    return perms


def squared_distance(target: Arrays, source: Arrays, spec: PermutationSpec, perms: Perms) -> float:
    """Return the squared L2 distance over the parameters, in float64."""
    total = 0.0
    for name, tensor in spec.tensors.items():
        if tensor.counted:
            moved = _permuted(source[name], tensor.axes, perms, skip=None)
            total += float(np.square(target[name].astype(np.float64) - moved).sum())
    return total


def _similarity(
    target: Arrays, source: Arrays, spec: PermutationSpec, perms: Perms, group: str
) -> NDArray:
    size = spec.groups[group].size
    total = np.zeros((size, size))
    for name, axis in spec.perm_to_axes(group):
        tensor = spec.tensors[name]
        if tensor.counted:
            moved = _permuted(source[name], tensor.axes, perms, skip=axis)
            a = np.moveaxis(target[name], axis, 0).reshape(size, -1)
            b = np.moveaxis(moved, axis, 0).reshape(size, -1)
            total += a @ b.T
    return total


def _permuted(array: NDArray, axes, perms: Perms, skip: int | None) -> NDArray:
    for number, axis in enumerate(axes):
        if number == skip or not axis.groups:
            continue
        (segment,) = axis.segments
        index = np.zeros(1, dtype=int)
        for factor in segment:
            place = perms[factor.group] if isinstance(factor, Units) else np.arange(factor.size)
            index = (index[:, None] * factor.size + place).reshape(-1)
        array = np.take(array, index, axis=number)
    return array
