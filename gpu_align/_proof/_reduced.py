"""The problem as a proof sees it: gains of pairs of units, and what couples two groups."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._problem import (
    AlignmentProblem,
    Family,
    Matcher,
    Term,
    bounded_shares,
    exact_match,
    index_of,
    is_signed,
    signed_matrix,
    unsigned,
)


@dataclass(frozen=True)
class Couple:
    """What two groups gain together: `sum_ijkl <a[i, k], b[j, l]> P[i, j] Q[k, l]`.

    Attributes:
        groups: the groups of P and Q; may be one group twice.
        target: float64 [n, m, d].
        source: float64 [p, q, d]; where units may be negated, those with the other sign follow.
    """

    groups: tuple[str, str]
    target: Tensor
    source: Tensor


@dataclass(frozen=True)
class Reduced:
    """`F <= fixed + sum_g <gains_g, P_g> + sum_couples`, an equality but for what is bounded.

    P_g is a permutation of n units that may be negated where p = 2 n: its columns are then those of
    the source's units as they are, and of the same units negated.

    Attributes:
        constant: D is at least `constant - 2 F`.
        gains: group -> float64 [n, p].
        couples: the terms of two groups.
        bounded: how many terms are in the gains by a bound of theirs.
        scale: squared norms of both networks: distances are rounded relative to it.
        least: what D cannot be below; -inf with evidence.
    """

    constant: float
    gains: Mapping[str, Tensor]
    couples: tuple[Couple, ...]
    bounded: int
    scale: float
    least: float


def reduced(problem: AlignmentProblem, model: int = 0) -> Reduced:
    """Rewrite the problem of one source in float64.

    Groups inside others, and terms of three matrices or of siblings, enter by their bounds: what
    the units inside a pair of units gain at most is a gain of the pair.
    """
    match = exact_match(problem.engine)
    families = {f.root.group: f for f in problem.families.values() if not f.fixed}
    kept = [t for t in problem.terms if isinstance(t, Term) and _is_couple(t, families)]
    others = [term for term in problem.terms if not any(term is other for other in kept)]
    shares = bounded_shares(problem, others, match)
    gains, fixed = {}, 0.0
    for family in problem.families.values():
        similarity = {
            variable: problem.unary[variable][model : model + 1].to(torch.float64)
            for variable in family.variables
        }
        for variable in family.variables:
            for share in shares[variable]:
                plain = unsigned(variable)
                similarity[plain] = similarity[plain] + share[model : model + 1]
        if family.fixed:
            fixed += float(family.bound(similarity, match).sum())
        else:
            gains[family.root.group] = _gains(family, similarity, match)
    couples = tuple(_couple(term, gains, model) for term in kept)
    scale = float(problem.constant[model])
    least = -math.inf if problem.evidence else 0.0
    return Reduced(scale - 2 * fixed, gains, couples, len(others), abs(scale), least)


def _is_couple(term: Term, families: Mapping[str, Family]) -> bool:
    """Say whether a term is one of two groups that lie inside no other."""
    return len(term.variables) == 2 and all(unsigned(v) in families for v in term.variables)


def _gains(family: Family, similarity: dict[str, Tensor], match: Matcher) -> Tensor:
    """Return the gains of pairs of units of a root, with the best of the units inside them."""
    root = family.root
    unit_gains = {child.group: child.unit_gains(similarity) for child in family.children}
    unit_gains[root.group] = similarity[root.group]
    gains = family.outer(unit_gains, match)[0][0]
    if not root.signed:
        return gains
    signed = similarity[signed_matrix(root.group)][0]
    return torch.cat([gains + signed, gains - signed], dim=1)


def _couple(term: Term, gains: Mapping[str, Tensor], model: int) -> Couple:
    """Return a term with the negated units of the source after the others."""
    target, source = (t.to(torch.float64) for t in (term.target, term.source[model]))
    groups = unsigned(term.variables[0]), unsigned(term.variables[1])
    for axis, (variable, group) in enumerate(zip(term.variables, groups, strict=True)):
        if gains[group].shape[1] > gains[group].shape[0]:
            other = -source if is_signed(variable) else source
            source = torch.cat([source, other], dim=axis)
    return Couple(groups, target, source)


def impossible(i: Tensor, j: Tensor, units: int, columns: int) -> Tensor:
    """Say which pairs of a group no permutation has beside pairs (i, j) of the same group.

    Args:
        i, j: int64 [b].
        units, columns: n and p of the group.

    Returns:
        bool [b, n, p].
    """
    rows, places = (torch.arange(size, device=i.device) for size in (units, columns))
    same_row = (rows == i[:, None])[:, :, None]
    same_unit = (places % units == j[:, None] % units)[:, None]
    return (same_row != same_unit) | (same_row & (places != j[:, None])[:, None])


def supposed(alive: Mapping[str, Tensor], group: str, i: int, j: int) -> dict[str, Tensor]:
    """Return the pairs that a permutation can have beside pair (i, j) of a group, and that one.

    Args:
        alive: group -> bool [n, p], of all permutations.
        group, i, j: the pair.
    """
    units = len(alive[group])
    kept = alive[group].clone()
    kept[i] = False
    kept[:, j % units :: units] = False
    kept[i, j] = True
    return {**alive, group: kept}


def columns_of(form: Reduced, perms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the column of each unit of the target, group -> int64 [n].

    Args:
        form: the problem.
        perms: variable -> int64 [1, n], signed where the problem is.
    """
    found = {}
    for group, gains in form.gains.items():
        perm = perms.get(signed_matrix(group), perms[group])[0]
        is_doubled = gains.shape[1] > len(gains)
        found[group] = index_of(perm) + len(gains) * ((perm < 0) & is_doubled)
    return found
