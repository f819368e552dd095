"""Slow and plain answers in NumPy float64, written independently of the library's code."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gpu_align import PermutationSpec
from gpu_align._symmetry._axis import Axis

Array = NDArray[np.float64]
Perms = Mapping[str, NDArray[np.int64]]

FUNCTION_TOLERANCE = 1e-9
"""Largest relative difference of float64 outputs of one function; rounding gives about 1e-14."""


# The same function


def run_double(model: nn.Module, inputs: object, state: Mapping[str, Tensor]) -> list[Tensor]:
    """Run a float64 copy of the model with these weights loaded by PyTorch itself."""
    double = copy.deepcopy(model).double().eval()
    double.load_state_dict(dict(state))
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    arguments = tree_map(lambda x: x.double() if x.is_floating_point() else x, arguments)
    with torch.no_grad():
        return tree_leaves(double(*arguments))


def assert_same_function(
    model: nn.Module, inputs: object, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> None:
    """Assert that two sets of weights give the same outputs in float64."""
    for a, b in zip(
        run_double(model, inputs, before), run_double(model, inputs, after), strict=True
    ):
        assert torch.isfinite(a).all()
        assert (a - b).abs().max() <= FUNCTION_TOLERANCE * a.abs().max()


# The objective


def axis_index(axis: Axis, perms: Perms) -> NDArray[np.int64]:
    """Enumerate the places of an axis one by one and say where each comes from."""
    result, offset = [], 0
    for segment in axis.segments:
        sizes = [factor.size for factor in segment]
        for places in itertools.product(*map(range, sizes)):
            moved = [
                place if factor.group is None else int(perms[factor.group][place])
                for place, factor in zip(places, segment, strict=True)
            ]
            flat = 0
            for place, size in zip(moved, sizes, strict=True):
                flat = flat * size + place
            result.append(offset + flat)
        offset += math.prod(sizes)
    return np.array(result, dtype=np.int64)


def permuted(spec: PermutationSpec, perms: Perms, state: Mapping[str, Tensor]) -> dict[str, Array]:
    """Re-index every counted tensor, as float64 arrays."""
    result = {}
    for name, tensor_spec in spec.tensors.items():
        if tensor_spec.counted:
            array = state[name].double().numpy()
            for number, axis in enumerate(tensor_spec.axes):
                array = np.take(array, axis_index(axis, perms), axis=number)
            result[name] = array
    return result


def scaled(metric: str, array: Array) -> Array:
    """Scale a tensor such that the metric is the plain squared distance."""
    if metric == "l2":
        return array
    if metric == "row":
        if array.ndim < 2:
            return array
        rows = array.reshape(len(array), -1)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).reshape(array.shape)
    if array.size < 2 or (array == array.flat[0]).all():
        return np.zeros_like(array)
    standard = (array - array.mean()) / array.std(ddof=1)
    return standard / math.sqrt(array.size) if metric == "normalized" else standard


def objective(
    spec: PermutationSpec,
    perms: Perms,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    metric: str = "l2",
) -> float:
    """Return the squared distance of the target and the permuted source."""
    moved = permuted(spec, perms, source)
    return math.fsum(
        ((scaled(metric, target[name].double().numpy()) - scaled(metric, array)) ** 2).sum()
        for name, array in moved.items()
    )


def to_arrays(perms: Mapping[str, Tensor], index: int | None = None) -> dict[str, Array]:
    """Return index vectors (of hypothesis `index` of a batch) as arrays, for all of the above."""
    return {name: (p if index is None else p[index]).numpy() for name, p in perms.items()}


def with_singletons(spec: PermutationSpec, perms: Perms) -> dict[str, NDArray[np.int64]]:
    """Add the groups of one unit, which problems leave out."""
    ones = {name: np.zeros(1, dtype=np.int64) for name, g in spec.groups.items() if g.size == 1}
    return ones | dict(perms)


def all_permutations(spec: PermutationSpec) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Yield every symmetry of a spec: only for tiny groups."""
    choices = [itertools.permutations(range(group.size)) for group in spec.groups.values()]
    for chosen in itertools.product(*choices):
        yield {name: np.array(p) for name, p in zip(spec.groups, chosen, strict=True)}


def brute_force(
    spec: PermutationSpec,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    metric: str = "l2",
) -> float:
    """Return the smallest distance over all symmetries."""
    return min(objective(spec, p, source, target, metric) for p in all_permutations(spec))


# The multilinear form


def _axis_matrix(axis: Axis, matrices: Mapping[str, Array]) -> Array:
    """Return the matrix by which soft permutations act on an axis: blocks of Kronecker products."""
    whole, offset = np.zeros((axis.size, axis.size)), 0
    for segment in axis.segments:
        block = np.ones((1, 1))
        for factor in segment:
            block = np.kron(
                block, np.eye(factor.size) if factor.group is None else matrices[factor.group]
            )
        whole[offset : offset + len(block), offset : offset + len(block)] = block
        offset += len(block)
    return whole


def form(
    spec: PermutationSpec,
    matrices: Mapping[str, Array],
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
) -> float:
    """Return `sum_t <A_t, P.B_t>` of arbitrary matrices, also of the terms without a group."""
    total = 0.0
    for name, tensor_spec in spec.tensors.items():
        if tensor_spec.counted:
            array = source[name].double().numpy()
            for number, axis in enumerate(tensor_spec.axes):
                moved = np.tensordot(_axis_matrix(axis, matrices), array, axes=(1, number))
                array = np.moveaxis(moved, 0, number)
            total += float((array * target[name].double().numpy()).sum())
    return total


def form_gradient(
    spec: PermutationSpec,
    matrices: Mapping[str, Array],
    group: str,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
) -> Array:
    """Return dF/dP of one group by central differences, exact for forms up to degree two."""
    size = spec.groups[group].size
    gradient = np.zeros((size, size))
    for place in np.ndindex(size, size):
        step = np.zeros((size, size))
        step[place] = 0.5
        up = form(spec, {**matrices, group: matrices[group] + step}, source, target)
        down = form(spec, {**matrices, group: matrices[group] - step}, source, target)
        gradient[place] = up - down
    return gradient


def one_hot(perms: Perms) -> dict[str, Array]:
    """Return permutations as matrices with `P[i, perm[i]] = 1`."""
    return {name: np.eye(len(perm))[perm] for name, perm in perms.items()}


# Searches


def assert_local_optimum(
    spec: PermutationSpec, perms: Perms, source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> None:
    """Assert that SciPy's assignment of no single group, the others fixed, is better."""
    for group in spec.groups:
        gradient = form_gradient(spec, one_hot(perms), group, source, target)
        rows, columns = linear_sum_assignment(gradient, maximize=True)
        best = gradient[rows, columns].sum()
        assert gradient[rows, perms[group]].sum() >= best - 1e-9 * abs(best)


def greedy_pass(
    spec: PermutationSpec,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    incoming: bool = False,
    euclidean: bool = False,
    metric: str = "l2",
) -> dict[str, NDArray[np.int64]]:
    """Choose each group once, in order, by the row distances of the tensors that are settled.

    A group may lie on at most one factor of one axis of each tensor, without concatenations.
    """
    perms = {name: np.arange(group.size) for name, group in spec.groups.items()}
    decided: set[str] = set()
    for name, group in spec.groups.items():
        decided.add(name)
        cost = np.zeros((group.size, group.size))
        moved = permuted(spec, perms, source)
        for key, tensor_spec in spec.tensors.items():
            if not tensor_spec.counted or name not in tensor_spec.groups:
                continue
            if not decided.issuperset(tensor_spec.groups):
                continue
            if incoming and not tensor_spec.axes[0].groups:
                continue
            a = _rows(scaled(metric, target[key].double().numpy()), tensor_spec.axes, name)
            b = _rows(scaled(metric, moved[key]), tensor_spec.axes, name)
            cost += ((a[:, None] - b[None]) ** 2).sum(2)
        perms[name] = linear_sum_assignment(np.sqrt(cost) if euclidean else cost)[1]
    return perms


def _rows(array: Array, axes: tuple[Axis, ...], group: str) -> Array:
    factors = [factor for axis in axes for factor in axis.segments[0]]
    place = next(n for n, factor in enumerate(factors) if factor.group == group)
    units = np.moveaxis(array.reshape([factor.size for factor in factors]), place, 0)
    return units.reshape(factors[place].size, -1)
