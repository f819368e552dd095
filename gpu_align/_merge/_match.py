"""How well the units of networks match, group by group."""

from collections.abc import Iterator, Sequence

from gpu_align._merge._result import GroupMatch
from gpu_align._symmetry import Permutation, PermutationSpec, StateDict

Squares = dict[str, tuple[float, float]]
"""Tensor -> square of the mean, and mean of the squares."""


def group_matches(
    spec: PermutationSpec,
    given: Sequence[StateDict],
    ordered: Sequence[StateDict],
    permutations: Sequence[Permutation],
    shares: Sequence[float],
) -> tuple[GroupMatch, ...]:
    """Return how well the units of each group match; see `GroupMatch`.

    Args:
        spec: of all networks.
        given, ordered: the networks before and after their units were brought into one order.
        permutations: what brought them there.
        shares: weights of the networks, summing to 1.
    """
    before, after = (_squares(spec, states, shares) for states in (given, ordered))
    moved = [permutation.moved() for permutation in permutations]
    return tuple(_matches(spec, before, after, moved))


def _matches(
    spec: PermutationSpec, before: Squares, after: Squares, moved: Sequence[dict[str, int]]
) -> Iterator[GroupMatch]:
    for group in spec.groups:
        names = {name for name, _ in spec.perm_to_axes(group)} & before.keys()
        shares = []
        for squares in (before, after):
            left, whole = (sum(squares[name][k] for name in names) for k in (0, 1))
            shares.append(left / whole if whole else 1.0)
        yield GroupMatch(group, spec.units(group), sum(each[group] for each in moved), *shares)


def _squares(
    spec: PermutationSpec, states: Sequence[StateDict], shares: Sequence[float]
) -> Squares:
    """Return for each tensor that counts the square of the mean, and the mean of the squares."""
    squares = {}
    for name in (name for name, tensor in spec.tensors.items() if tensor.counted):
        tensors = [spec.tensor_of(name, state).double().cpu() for state in states]
        parts = [share * tensor for share, tensor in zip(shares, tensors, strict=True)]
        whole = sum(
            share * float(t.square().sum()) for share, t in zip(shares, tensors, strict=True)
        )
        squares[name] = float(sum(parts[1:], parts[0]).square().sum()), whole
    return squares
