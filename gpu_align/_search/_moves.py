"""Moving one family: its best two-level assignment, or one under noise."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from gpu_align._problem import Family, Hypotheses, Member, SiblingTerm, to_matrix
from gpu_align._search._run import Run
from gpu_align._search._scale import deviation

_PAIR_ROUNDS = 2
Assign = Callable[[Tensor], Tensor]


def best_move(
    run: Run,
    group: str,
    hypotheses: Hypotheses,
    similarity: Mapping[str, Tensor] | None = None,
    *,
    wanted: Tensor | None = None,
    noise: float = 0.0,
    owners: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Assign a family, the others fixed.

    Args:
        run: the running search.
        group: root of the family.
        hypotheses: the batch before the move.
        similarity: variable -> [b, n, n] of the family; default it is computed.
        wanted: bool [b], which moves are wanted; the others may be any. Default all.
        noise: standard deviation of noise on the similarities, in units of their own.
        owners: int64 [b], whose noise it is; default that of each hypothesis of a model.

    Returns:
        variable -> int64 [b, n], and the decrease of D (noise left out), float64 [b].
    """
    problem = run.problem
    if similarity is None:
        similarity = problem.similarities(group, hypotheses.perms, hypotheses.model)
    noisy = similarity
    if noise > 0:
        owners = hypotheses.owners if owners is None else owners
        noisy = {m: _noisy(run, s, noise, owners) for m, s in noisy.items()}
    if siblings := problem.sibling_terms(group):
        assign = partial(run.assign, wanted=wanted)
        moved = _assign_siblings(run, group, hypotheses, noisy, siblings, assign)
    else:
        moved = problem.families[group].assign(noisy, partial(run.match, wanted=wanted))
    return moved, problem.decrease(group, similarity, moved, hypotheses)


def _noisy(run: Run, similarity: Tensor, noise: float, owners: Tensor) -> Tensor:
    scale = noise * deviation(similarity)[:, None, None]
    return torch.addcmul(similarity, scale, run.normal(owners, *similarity.shape[1:]))


def _assign_siblings(
    run: Run,
    group: str,
    hypotheses: Hypotheses,
    similarity: Mapping[str, Tensor],
    terms: Sequence[SiblingTerm],
    assign: Assign,
) -> dict[str, Tensor]:
    """Assign a family some of whose children are coupled with each other.

    The value of a pair of root units depends on all its children at once. Inside every pair the
    children are assigned in turn, each with the others as guessed so far; the first guess leaves
    out what couples them, and in pairs that are matched now it is what is there.
    """
    family = run.problem.families[group]
    perms, model = hypotheses.perms, hypotheses.model
    alone = dict(similarity)
    for term in terms:
        for mode, variable in enumerate(term.variables[: term.siblings]):
            alone[variable] = alone[variable] - term.similarity(mode, perms, model)
    guess: dict[str, Tensor] = {}
    inner: dict[str, Tensor] = {}
    for child in family.children:
        inner[child.group], guesses = _match_pairs(assign, family, child, alone)
        for variable, guessed in guesses.items():
            now = to_matrix(perms[variable], guessed.dtype)
            here = family.blocks(now)
            matched = here.abs().amax((3, 4), keepdim=True) > 0
            guess[variable] = family.joined(torch.where(matched, here, family.blocks(guessed)))
    for _ in range(_PAIR_ROUNDS):
        for child in family.children:
            full = {m: alone[m] + _in_pairs(terms, m, guess, perms, model) for m in child.variables}
            inner[child.group], guesses = _match_pairs(assign, family, child, full)
            guess |= guesses
    outer = family.root_gains(family.unit_gains(alone)).clone()
    for child in family.children:
        for variable in child.variables:
            outer += family.blocks(alone[variable] * guess[variable]).sum((3, 4))
    for term in terms:
        children = [guess[variable] for variable in term.variables[: term.siblings]]
        value = term.pair_similarity(0, children, perms, model) * children[0]
        outer += family.blocks(value).sum((3, 4))
    return family.vectors(assign(family.square(outer)), inner, alone | guess)


def _match_pairs(
    assign: Assign, family: Family, child: Member, similarity: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Assign a child inside every pair of root units.

    Returns:
        The assignments inside each pair (see `Family.outer`), and the child's similarities with
        all these blocks at once.
    """
    gains = child.unit_gains(similarity)
    blocks = family.blocks(gains)
    columns = assign(blocks.flatten(0, 2)).reshape(blocks.shape[:-1])
    plain = torch.zeros_like(blocks).scatter_(4, columns[..., None], 1)
    similarities = {child.group: family.joined(plain)}
    for variable in child.variables[1:]:
        similarities[variable] = similarities[child.group] * similarity[variable].sign()
    return columns, similarities


def _in_pairs(
    terms: Sequence[SiblingTerm],
    variable: str,
    guess: Mapping[str, Tensor],
    perms: Mapping[str, Tensor],
    model: Tensor,
) -> Tensor:
    """Return what the coupling terms add to the similarity of a child's matrix, in every pair."""
    total = torch.zeros_like(guess[variable])
    for term in terms:
        siblings = term.variables[: term.siblings]
        for mode, name in enumerate(siblings):
            if name == variable:
                total += term.pair_similarity(mode, [guess[m] for m in siblings], perms, model)
    return total
