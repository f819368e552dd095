"""Slow and plain answers in NumPy float64, written independently of the library's code."""

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gpu_align import Permutation, PermutationSpec
from gpu_align._symmetry._axis import Axis, Factor, Units
from gpu_align._symmetry._parts import Group
from gpu_align._symmetry._tensor_spec import TensorSpec

Array = NDArray[np.float64]
Index = NDArray[np.int64]

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


# Symmetries


@dataclass(frozen=True)
class Symmetry:
    """A symmetry as plain arrays.

    Attributes:
        perms: group -> int64 [units], all groups; units of a child are numbered (parent, inside).
        signs: group -> [units] of 1 and -1; groups left out keep theirs.
    """

    perms: Mapping[str, Index]
    signs: Mapping[str, Index] = field(default_factory=dict)


def symmetry_of(permutation: Permutation) -> Symmetry:
    """Return a Permutation as plain arrays."""
    return Symmetry(
        {name: perm.numpy() for name, perm in permutation.perms.items()},
        {name: sign.numpy() for name, sign in permutation.signs.items()},
    )


def hypothesis(spec: PermutationSpec, perms: Mapping[str, Tensor], index: int) -> Symmetry:
    """Return hypothesis `index` of a batch, in which `~j` is unit j negated, as plain arrays.

    Groups of one unit and fixed groups, which problems leave out, stay with their parents or where
    they are.
    """
    found = {name: [int(j) for j in perm[index]] for name, perm in perms.items()}
    plain = {name: np.array(perm) for name, perm in found.items() if name in spec.groups}
    signs = {
        name: np.array([-1 if j < 0 else 1 for j in found[name + "±"]])
        for name in plain
        if name + "±" in found
    }
    for name, group in spec.groups.items():
        if name not in plain:
            plain[name] = np.arange(group.size) if group.parent is None else plain[group.parent]
    for name in signs:
        assert [j if j >= 0 else -1 - j for j in found[name + "±"]] == plain[name].tolist()
    return Symmetry(plain, signs)


def all_symmetries(spec: PermutationSpec, signs: bool = True) -> Iterator[Symmetry]:
    """Yield every symmetry of a spec, with all signs of its signed groups: only for tiny groups."""
    groups = spec.groups.values()
    roots = [group for group in groups if group.parent is None]
    children = [group for group in groups if group.parent is not None]
    signed = [group.name for group in groups if group.signed and signs]
    orders = ([range(g.size)] if g.fixed else itertools.permutations(range(g.size)) for g in roots)
    for outer in itertools.product(*orders):
        above = {g.name: np.array(perm) for g, perm in zip(roots, outer, strict=True)}
        choices = [
            itertools.product(itertools.permutations(range(g.size)), repeat=len(above[g.parent]))
            for g in children
        ]
        for inner in itertools.product(*choices):
            perms = above | {
                g.name: (above[g.parent][:, None] * g.size + np.array(perm)).ravel()
                for g, perm in zip(children, inner, strict=True)
            }
            flips = (itertools.product((1, -1), repeat=len(perms[name])) for name in signed)
            for flip in itertools.product(*flips):
                yield Symmetry(perms, dict(zip(signed, map(np.array, flip), strict=True)))


# Layouts, by going through the entries of a tensor one by one


@dataclass(frozen=True)
class Piece:
    """The entries of a tensor for one choice of a product of factors along every axis.

    Attributes:
        factors: of all axes, one after another.
        entry: int64, one axis per factor: which entry of the flat tensor has these places.
    """

    factors: tuple[Factor, ...]
    entry: Index

    @property
    def units(self) -> dict[int, Units]:
        """The factors that are the units of groups, by their number."""
        return {n: factor for n, factor in enumerate(self.factors) if isinstance(factor, Units)}

    def find(self, group: str) -> int:
        """Return the first factor of a group."""
        return next(n for n, factor in self.units.items() if factor.group == group)


@functools.cache
def pieces(tensor_spec: TensorSpec) -> tuple[Piece, ...]:
    """Go through all entries of a tensor and note the places of each along its factors."""
    found = []
    for chosen in itertools.product(*(_along(axis) for axis in tensor_spec.axes)):
        entry = np.zeros((), dtype=np.int64)
        for axis, piece in zip(tensor_spec.axes, chosen, strict=True):
            entry = np.add.outer(entry * axis.size, piece.entry)
        found.append(Piece(tuple(f for piece in chosen for f in piece.factors), entry))
    return tuple(found)


def _along(axis: Axis) -> list[Piece]:
    """Note the places along one axis, product after product of its factors."""
    found, start = [], 0
    for segment in axis.segments:
        products = [Piece((), np.zeros((), dtype=np.int64))]
        for part in segment:
            inner = [Piece((part,), np.arange(part.size))]
            products = [
                Piece(p.factors + q.factors, np.add.outer(p.entry * part.size, q.entry))
                for p in products
                for q in (_along(part) if isinstance(part, Axis) else inner)
            ]
        found += [replace(piece, entry=start + piece.entry) for piece in products]
        start += math.prod(part.size for part in segment)
    return found


def origins(
    tensor_spec: TensorSpec, groups: Mapping[str, Group], symmetry: Symmetry
) -> tuple[Index, Array]:
    """Return for each entry of the permuted tensor its old place, and its sign; both flat."""
    size = math.prod(tensor_spec.shape)
    old, sign = np.full(size, -1), np.ones(size)
    for piece in pieces(tensor_spec):
        places = np.indices(piece.entry.shape)
        moved, factor_sign = list(places), np.ones(piece.entry.shape)
        for n, factor in piece.units.items():
            unit, parent = places[n], groups[factor.group].parent
            if parent is not None:
                unit = places[piece.find(parent)] * factor.size + unit
            moved[n] = symmetry.perms[factor.group][unit] % factor.size
            if factor.group in symmetry.signs:
                signs = symmetry.signs[factor.group].astype(np.float64)
                factor_sign = factor_sign * signs[unit] ** factor.power
        old[piece.entry.ravel()] = piece.entry[tuple(moved)].ravel()
        sign[piece.entry.ravel()] = factor_sign.ravel()
    return old, sign


def moved_array(
    array: Array, tensor_spec: TensorSpec, groups: Mapping[str, Group], symmetry: Symmetry
) -> Array:
    """Return one tensor permuted."""
    old, sign = origins(tensor_spec, groups, symmetry)
    return (array.ravel()[old] * sign).reshape(array.shape)


# The objective


def permuted(
    spec: PermutationSpec, symmetry: Symmetry, state: Mapping[str, Tensor]
) -> dict[str, Array]:
    """Return every counted tensor permuted, as float64 arrays."""
    return {
        name: moved_array(state[name].double().numpy(), tensor_spec, spec.groups, symmetry)
        for name, tensor_spec in spec.tensors.items()
        if tensor_spec.counted
    }


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


ODD = ("l2", "row")
"""Metrics that see a negated unit as a negated unit; under the others signs stay as they are."""


def objective(
    spec: PermutationSpec,
    symmetry: Symmetry,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    metric: str = "l2",
) -> float:
    """Return the squared distance of the target and the permuted source."""
    moved = permuted(spec, symmetry, source)
    return math.fsum(
        ((scaled(metric, target[name].double().numpy()) - scaled(metric, array)) ** 2).sum()
        for name, array in moved.items()
    )


def brute_force(
    spec: PermutationSpec,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    metric: str = "l2",
) -> float:
    """Return the smallest distance over all symmetries."""
    every = all_symmetries(spec, signs=metric in ODD)
    return min(objective(spec, symmetry, source, target, metric) for symmetry in every)


# The multilinear form


@dataclass(frozen=True)
class _Product:
    """One piece of one tensor in the form, as operands of einsum.

    Attributes:
        names: of the matrices.
        weights: target and source, each with its letters.
        matrices: each with its letters, as [n, n] or [parent, n, parent, n].
    """

    names: tuple[str, ...]
    weights: list[object]
    matrices: list[tuple[Array, list[int]]]

    def without(self, number: int | None) -> Array:
        """Contract all but one matrix, of which the letters stay; all of them for None."""
        kept = [pair for n, pair in enumerate(self.matrices) if n != number]
        letters = [] if number is None else self.matrices[number][1]
        return np.einsum(*self.weights, *itertools.chain(*kept), letters, optimize=True)


def _products(
    spec: PermutationSpec,
    matrices: Mapping[str, Array],
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
) -> Iterator[_Product]:
    """Yield the pieces of the counted tensors.

    Places p in the target and q in the source meet with the product of `P[p, q]` over the factors
    of groups. A factor with a child beside it has none: the child's matrix says where both go.
    """
    for name, tensor_spec in spec.tensors.items():
        if not tensor_spec.counted:
            continue
        a, b = (state[name].double().numpy().ravel() for state in (target, source))
        for piece in pieces(tensor_spec):
            count = len(piece.factors)
            free = {n: factor for n, factor in piece.units.items() if is_free(spec, factor.group)}
            above = {n: spec.groups[factor.group].parent for n, factor in free.items()}
            names, operands = [], []
            for n, factor in free.items():
                if factor.group in above.values():
                    continue
                group, along = spec.groups[factor.group], [n]
                if above[n] is not None:
                    along = [piece.find(above[n]), n]
                names.append(matrix_of(group, factor.power, f"{group.name}±" in matrices))
                shape = [piece.factors[k].size for k in along] * 2
                letters = along + [count + k for k in along]
                operands.append((matrices[names[-1]].reshape(shape), letters))
            moved = {letter for _, letters in operands for letter in letters}
            old = [count + n if count + n in moved else n for n in range(count)]
            weights = [a[piece.entry], list(range(count)), b[piece.entry], old]
            yield _Product(tuple(names), weights, operands)


def is_free(spec: PermutationSpec, group: str) -> bool:
    """Say whether there is anything to decide: a single unit can at most be negated."""
    if spec.groups[group].fixed:
        return False
    return spec.groups[group].size > 1 or spec.groups[group].signed


def matrix_of(group: Group, power: int, signs: bool) -> str:
    """Return the name of the matrix through which a factor sees its group."""
    return f"{group.name}±" if group.signed and power and signs else group.name


def matrices_of(spec: PermutationSpec, symmetry: Symmetry, signs: bool = True) -> dict[str, Array]:
    """Return the matrices of a symmetry, `P[i, perm[i]] = 1`, or the sign of unit i."""
    found = {}
    for name, group in spec.groups.items():
        if group.fixed:
            continue
        perm = symmetry.perms[name]
        found[name] = np.eye(len(perm))[perm]
        if group.signed and signs:
            sign = symmetry.signs.get(name, np.ones(len(perm)))
            found[f"{name}±"] = sign[:, None] * found[name]
    return found


def form(
    spec: PermutationSpec,
    matrices: Mapping[str, Array],
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
) -> float:
    """Return `sum_t <A_t, P.B_t>` of arbitrary matrices, also of what no group lies on."""
    products = _products(spec, matrices, source, target)
    return math.fsum(float(product.without(None)) for product in products)


def form_gradient(
    spec: PermutationSpec,
    matrices: Mapping[str, Array],
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
) -> dict[str, Array]:
    """Return dF/dP of every matrix: what is left where one of its factors is left out, summed."""
    gradient = {name: np.zeros_like(matrix) for name, matrix in matrices.items()}
    for product in _products(spec, matrices, source, target):
        for number, name in enumerate(product.names):
            gradient[name] += product.without(number).reshape(gradient[name].shape)
    return gradient


# Families


def children_of(spec: PermutationSpec, root: str) -> list[Group]:
    """Return the groups inside each unit of a group."""
    return [group for group in spec.groups.values() if group.parent == root]


def best_signs(group: Group, gradient: Mapping[str, Array]) -> Array:
    """Return what each pair of units gains with its better sign."""
    signed = gradient.get(f"{group.name}±", np.zeros(1))
    return gradient[group.name] + np.abs(signed)


def assigned(gains: Array) -> tuple[Index, float]:
    """Return SciPy's assignment with the largest sum, and the sum."""
    rows, columns = linear_sum_assignment(gains, maximize=True)
    return columns, float(gains[rows, columns].sum())


def assigned_family(
    spec: PermutationSpec, root: str, gains: Mapping[str, Array]
) -> tuple[Symmetry, float]:
    """Assign children inside every pair of units of the root, then the root; and the sum."""
    size, fixed, inner = spec.groups[root].size, spec.groups[root].fixed, {}
    total = np.where(np.eye(size), 0.0, -1e9) if fixed else gains[root].copy()
    for child in children_of(spec, root):
        for i, j in np.ndindex(size, size):
            rows, columns = (slice(k * child.size, (k + 1) * child.size) for k in (i, j))
            inner[child.name, i, j], value = assigned(gains[child.name][rows, columns])
            total[i, j] += value
    outer, value = assigned(total)
    perms = {root: outer} | {
        child.name: np.concatenate(
            [j * child.size + inner[child.name, i, j] for i, j in enumerate(outer)]
        )
        for child in children_of(spec, root)
    }
    return Symmetry(perms), value


def roots_of(spec: PermutationSpec) -> list[str]:
    """Return the groups without a parent."""
    return [name for name, group in spec.groups.items() if group.parent is None]


def members_of(spec: PermutationSpec, root: str) -> list[Group]:
    """Return a group, unless it is fixed, and its children."""
    group = spec.groups[root]
    return [*([] if group.fixed else [group]), *children_of(spec, root)]
