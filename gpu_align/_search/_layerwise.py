"""Layer-wise beam search: group after group, from the input to the output, never looking back."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import AlignmentProblem, Hypotheses, Term, optimistic
from gpu_align._search._candidates import Candidates, KBest
from gpu_align._search._search import Run, Search, State
from gpu_align._status import Status
from gpu_align._symmetry import TensorSpec


@dataclass(frozen=True)
class _Partial:
    """Hypotheses whose first `decided` groups are chosen; the others stay at the identity.

    `hypotheses.objective` is the score so far: the constant less twice what the settled terms
    and, with look-ahead, at most the open terms contribute. `costs` is the problem whose terms
    make the costs.
    """

    hypotheses: Hypotheses
    decided: int
    costs: AlignmentProblem


@dataclass(frozen=True)
class LayerwiseBeam(Search):
    """Expand the groups in topological order and keep the `width` best distinct hypotheses.

    Each hypothesis is expanded by all candidates for the costs of the next group, and scored by
    its exact distance over all terms that are settled by then.

    Attributes:
        width: hypotheses per model that are kept after each group.
        candidates: how assignments are proposed; KBest(1) at width 1 is the greedy pass.
        rule: what the costs of a group are made of: all weights that are "settled" once it is
            chosen (its biases and norms, weights that tie it to earlier groups or to fixed axes),
            or only "incoming" weights, those with a group on their first axis.
        row_distance: what the costs are, "squared" or "euclidean" distances of rows; the score
            is the squared one in both cases.
        cost_metric: metric of the costs, if it is not the problem's, which is that of the scores.
        lookahead: add to costs and scores the most that an open term (one that ties a chosen
            group to a later one) can contribute, from sorted rows. Up to a constant that all
            hypotheses share, a score then never exceeds the final distance.

    Source: the idea is the coursework MTDoven/Machine-Learning, algorithm_design/permutation;
    the look-ahead is the bound of Gilmore (1962) and Lawler (1963).
    """

    width: int = 1
    candidates: Candidates = field(default_factory=KBest)
    rule: Literal["settled", "incoming"] = "settled"
    row_distance: Literal["squared", "euclidean"] = "squared"
    cost_metric: str | None = None
    lookahead: bool = False
    name: ClassVar[str] = "LayerwiseBeam"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"expected a width of at least 1, got {self.width}")
        if self.rule not in ("settled", "incoming"):
            raise InputError(f"expected 'settled' or 'incoming', got {self.rule!r}")
        if self.row_distance not in ("squared", "euclidean"):
            raise InputError(f"expected 'squared' or 'euclidean', got {self.row_distance!r}")

    def init(self, run: Run, start: Hypotheses | None) -> State:
        """See `Search.init`; hypotheses to begin from only join the result."""
        hypotheses = run.problem.identity() if start is None else start
        blank = run.problem.identity()
        blank = replace(blank, objective=run.problem.constant[blank.model])
        costs = run.problem
        if self.rule == "incoming" or self.cost_metric is not None:
            keep = _is_incoming if self.rule == "incoming" else _is_any
            costs = costs.restricted(keep, self.cost_metric or costs.metric)
        partial = _Partial(blank, 0, costs)
        return State(self.name, hypotheses, partial, expected=len(run.problem.groups))

    def step(self, run: Run, state: State) -> State:
        """Choose one more group in every hypothesis."""
        assert isinstance(state.memory, _Partial)
        partial = self._expand(run, state.memory)
        if partial.decided < len(run.problem.groups):
            return replace(state, memory=partial)
        perms, model = partial.hypotheses.perms, partial.hypotheses.model
        hypotheses = run.problem.hypotheses(perms, model).best(self.width)
        return replace(state, hypotheses=hypotheses, memory=partial, finished=Status.COMPLETED)

    def _expand(self, run: Run, partial: _Partial) -> _Partial:
        problem, parents = run.problem, partial.hypotheses
        group = problem.groups[partial.decided]
        perm = self.candidates.propose(run, self._cost(partial))
        parent = torch.arange(len(parents)).repeat_interleave(perm.shape[1])
        perm = perm.flatten(0, 1)
        before = parents.select(parent)
        perms = {**before.perms, group: perm}
        gain = _picked(problem.unary[group][before.model], perm)
        for term in _settled(problem, partial.decided):
            gain += term.inner(perms, before.model)
            if (
                self.lookahead
                and (place := _first_decided(problem, term, partial.decided - 1)) >= 0
            ):
                gain -= _open_gain(term, place, before)
        if self.lookahead:
            after = replace(before, perms=perms)
            for term, place in _opened(problem, partial.decided):
                gain += _open_gain(term, place, after)
        score = before.objective - 2 * gain
        children = before.put(torch.arange(len(perm)), group, perm, score)
        width = min(self.width, len(children) // problem.models)
        return replace(partial, hypotheses=children.best(width), decided=partial.decided + 1)

    def _cost(self, partial: _Partial) -> Tensor:
        """Return the costs of the next group, [b, n, n]."""
        problem, hypotheses = partial.costs, partial.hypotheses
        group, model = problem.groups[partial.decided], hypotheses.model
        similarity = problem.unary[group][model]
        norms = problem.unary_norms(group)[model]
        for term in _settled(problem, partial.decided):
            for place in (n for n, name in enumerate(term.groups) if name == group):
                if term.groups.count(group) == 1:
                    similarity += term.similarity(place, hypotheses.perms, model)
                else:
                    similarity += optimistic(term, place).to(similarity)[model]
                norms += term.squared_norms(place)[model]
        if self.lookahead:
            for term, place in _opened(problem, partial.decided):
                similarity += optimistic(term, place).to(similarity)[model]
                norms += term.squared_norms(place)[model]
        squared = norms - 2 * similarity
        return squared.clamp_min(0).sqrt() if self.row_distance == "euclidean" else squared


def _is_incoming(tensor: TensorSpec) -> bool:
    return bool(tensor.axes[0].groups)


def _is_any(tensor: TensorSpec) -> bool:
    return True


def _settled(problem: AlignmentProblem, number: int) -> Iterator[Term]:
    """Yield the coupling terms that are settled by choosing group `number`."""
    decided = set(problem.groups[: number + 1])
    for term in problem.touching(problem.groups[number]):
        if decided.issuperset(term.groups):
            yield term


def _opened(problem: AlignmentProblem, number: int) -> Iterator[tuple[Term, int]]:
    """Yield the terms of which group `number` is the first to be chosen, and its place there."""
    group = problem.groups[number]
    for term in problem.touching(group):
        if set(term.groups) != {group} and _first_decided(problem, term, number - 1) < 0:
            yield term, term.groups.index(group)


def _first_decided(problem: AlignmentProblem, term: Term, last: int) -> int:
    """Return the place of the term's earliest group among those up to `last`, or -1."""
    decided = problem.groups[: last + 1]
    places = [(decided.index(g), n) for n, g in enumerate(term.groups) if g in decided]
    return min(places)[1] if places else -1


def _open_gain(term: Term, place: int, hypotheses: Hypotheses) -> Tensor:
    """Return the most that an open term can contribute, float64 [b]."""
    bound = optimistic(term, place)[hypotheses.model]
    return _picked(bound, hypotheses.perms[term.groups[place]])


def _picked(matrix: Tensor, perm: Tensor) -> Tensor:
    """Return `sum_i M[i, p_i]` in float64: [b, n, n], [b, n] -> [b]."""
    return matrix.gather(2, perm[..., None]).sum((1, 2), dtype=torch.float64)
