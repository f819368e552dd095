"""Layer-wise beam search: group after group, from the input to the output, never looking back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem import (
    AlignmentProblem,
    AnyTerm,
    Family,
    Hypotheses,
    index_of,
    is_signed,
    optimistic,
    picked,
    unsigned,
)
from gpu_align._search._candidates import Candidates, KBest
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._state import State, stored
from gpu_align._status import Status
from gpu_align._symmetry import TensorSpec


@stored
@dataclass(frozen=True)
class _Partial:
    """Hypotheses whose first `decided` groups are chosen; the others stay at the identity.

    `hypotheses.objective` is the score so far: the constant less twice what the settled terms
    and, with look-ahead, at most the open terms contribute.
    """

    hypotheses: Hypotheses
    decided: int


@dataclass(frozen=True)
class LayerwiseBeam(Search[_Partial]):
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

    @property
    def hypotheses_per_model(self) -> int:
        """See `Search.hypotheses_per_model`."""
        return self.width * (1 + self.candidates.count)

    def init(self, run: Run, start: Hypotheses | None) -> State[_Partial]:
        """See `Search.init`; hypotheses to begin from only join the result."""
        hypotheses = run.problem.identity() if start is None else start
        blank = run.problem.identity()
        blank = replace(blank, objective=run.problem.constant[blank.model])
        return State(self.name, hypotheses, _Partial(blank, 0), expected=len(run.problem.order))

    def step(self, run: Run, state: State[_Partial]) -> State[_Partial]:
        """Choose one more group in every hypothesis."""
        partial = self._expand(run, state.memory)
        if partial.decided < len(run.problem.order):
            return replace(state, memory=partial)
        run.release()
        perms, model = partial.hypotheses.perms, partial.hypotheses.model
        hypotheses = run.problem.hypotheses(perms, model).best(self.width)
        return replace(state, hypotheses=hypotheses, memory=partial, finished=Status.COMPLETED)

    def _expand(self, run: Run, partial: _Partial) -> _Partial:
        problem, parents = run.problem, partial.hypotheses
        similarity, quadratic = _settled_similarity(problem, partial.decided, parents)
        parent, moved = self._candidates(run, partial, similarity)
        run.heartbeat("scores, part 3 of 3")
        before = parents.select(parent)
        after = replace(before, perms={**before.perms, **moved})
        increase = torch.zeros_like(before.objective)  # of F
        for variable, perm in moved.items():
            increase += picked(similarity[variable], perm, parent)
        for term in quadratic:
            increase += term.inner(after.perms, before.model)
        if self.lookahead:
            for term in _settled(problem, partial.decided):
                if (mode := _first_decided(problem, term, partial.decided - 1)) >= 0:
                    increase -= _open_value(term, mode, before)
            for term, mode in _opened(problem, partial.decided):
                increase += _open_value(term, mode, after)
        score = before.objective - 2 * increase
        children = replace(after, objective=score)
        width = min(self.width, children.each)
        return replace(partial, hypotheses=children.best(width), decided=partial.decided + 1)

    def _candidates(
        self, run: Run, partial: _Partial, settled: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Propose vectors for the next family.

        Args:
            run: the running search.
            partial: what is expanded.
            settled: see `_settled_similarity`, of the problem that is solved.

        Returns:
            Which hypothesis each proposal extends, int64 [k], and variable -> int64 [k, n].
        """
        group = run.problem.order[partial.decided]
        problem = run.prepared(self, lambda: self._cost_problem(run.problem))
        family = problem.families[group]
        if problem is not run.problem:
            perms = problem.completed(partial.hypotheses.perms)
            hypotheses = replace(partial.hypotheses, perms=perms)
            settled, _ = _settled_similarity(problem, partial.decided, hypotheses)
        similarity, cost = self._cost(run, problem, partial, family, settled)
        run.heartbeat("candidates, part 2 of 3")
        outer, inner = family.outer({g: -c for g, c in cost.items()}, run.match)
        root = self.candidates.propose(run, -outer)
        parent = torch.arange(len(root), device=root.device).repeat_interleave(root.shape[1])
        moved = family.vectors(
            root.flatten(0, 1),
            {child: columns[parent] for child, columns in inner.items()},
            {variable: s[parent] for variable, s in similarity.items() if is_signed(variable)},
        )
        # The costs may know of no signs where the problem has them, or the other way round.
        wanted = run.problem.families[group].variables
        return parent, {m: moved.get(m, moved[unsigned(m)]) for m in wanted}

    def _cost_problem(self, problem: AlignmentProblem) -> AlignmentProblem:
        """Return the problem whose terms make the costs."""
        if self.rule == "settled" and self.cost_metric is None:
            return problem
        keep = _is_incoming if self.rule == "incoming" else _is_any
        return problem.restricted(keep, self.cost_metric or problem.metric)

    def _cost(
        self,
        run: Run,
        problem: AlignmentProblem,
        partial: _Partial,
        family: Family,
        settled: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return similarities, variable -> [b, n, n], and costs, group -> [b, n, n]."""
        model, similarity = partial.hypotheses.model, dict(settled)
        norms = {m: problem.unary_norms(m)[model] for m in family.variables}
        bounded = []
        for term in _settled(problem, partial.decided):
            own = _own_modes(term, family)
            for mode in own:
                norms[term.variables[mode]] += term.squared_norms(mode)[model]
                if len(own) > 1:
                    bounded.append((term, mode))
        if self.lookahead:
            for term, mode in _opened(problem, partial.decided):
                norms[term.variables[mode]] += term.squared_norms(mode)[model]
                bounded.append((term, mode))
        for done, (term, mode) in enumerate(bounded):
            run.heartbeat(f"bound {done + 1} of {len(bounded)}")
            # A bound holds for any sign, so it is not the sign's business.
            plain = unsigned(term.variables[mode])
            bound = optimistic(term, mode).to(similarity[plain])[model]
            similarity[plain] = similarity[plain] + bound
        costs = {}
        for member in family.members:
            total = torch.stack([norms[variable] for variable in member.variables]).sum(0)
            squared = total - 2 * member.unit_gains(similarity)
            euclidean = self.row_distance == "euclidean"
            costs[member.group] = squared.clamp_min(0).sqrt() if euclidean else squared
        return similarity, costs


def _is_incoming(tensor: TensorSpec) -> bool:
    return bool(tensor.axes[0].groups)


def _is_any(tensor: TensorSpec) -> bool:
    return True


def _settled(problem: AlignmentProblem, number: int) -> Iterator[AnyTerm]:
    """Yield the coupling terms that are settled by choosing group `number`."""
    decided = set(problem.order[: number + 1])
    for term in problem.family_terms(problem.order[number]):
        if decided.issuperset(problem.roots(term)):
            yield term


def _settled_similarity(
    problem: AlignmentProblem, number: int, hypotheses: Hypotheses
) -> tuple[dict[str, Tensor], list[AnyTerm]]:
    """Return the similarities of group `number` over what is settled by it.

    Returns:
        variable -> [b, n, n], over all terms that are settled by it and linear in it, and the
        settled terms that are not linear.
    """
    family, model = problem.families[problem.order[number]], hypotheses.model
    similarity = {variable: problem.unary[variable][model] for variable in family.variables}
    quadratic = []
    for term in _settled(problem, number):
        mode, *more = _own_modes(term, family)
        if more:
            quadratic.append(term)
        else:
            similarity[term.variables[mode]] += term.similarity(mode, hypotheses.perms, model)
    return similarity, quadratic


def _own_modes(term: AnyTerm, family: Family) -> list[int]:
    return [mode for mode, variable in enumerate(term.variables) if variable in family.variables]


def _opened(problem: AlignmentProblem, number: int) -> Iterator[tuple[AnyTerm, int]]:
    """Yield the terms of which group `number` is the first to be chosen, and its mode there."""
    group = problem.order[number]
    for term in problem.family_terms(group):
        roots = problem.roots(term)
        if set(roots) != {group} and _first_decided(problem, term, number - 1) < 0:
            yield term, roots.index(group)


def _first_decided(problem: AlignmentProblem, term: AnyTerm, last: int) -> int:
    """Return the mode of the term's earliest group among those up to `last`, or -1."""
    decided = problem.order[: last + 1]
    modes = [(decided.index(g), n) for n, g in enumerate(problem.roots(term)) if g in decided]
    return min(modes)[1] if modes else -1


def _open_value(term: AnyTerm, mode: int, hypotheses: Hypotheses) -> Tensor:
    """Return the most that an open term can contribute, float64 [b]."""
    bound = optimistic(term, mode)[hypotheses.model]
    return picked(bound, index_of(hypotheses.perms[term.variables[mode]]))
