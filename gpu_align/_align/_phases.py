"""Alignment with phases: which half periods of the source's biases bring it closest.

Networks are searched with their phases as they are and with canonical ones, which makes those that
differ by symmetries alone differ by orders and signs alone; `PhaseDescent` goes on from there.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_align._align._canonical import nearest_to_0
from gpu_align._align._phase_descent import Answers, PhaseDescent, joined
from gpu_align._align._settings import Settings
from gpu_align._problem import (
    METRICS,
    AlignmentProblem,
    Hypotheses,
    Metric,
    exact_match,
    is_signed,
    unsigned,
    with_sign,
)
from gpu_align._search import SEARCHES, Outcome, Progress, Search
from gpu_align._status import Status
from gpu_align._symmetry import PermutationSpec, Weights, draw, part_elements, shift_phases

Vectors = Mapping[str, Tensor]

_NO_DECREASE = 1e-12
_CUT_SHORT = (Status.INTERRUPTED, Status.TIME_BUDGET)


def uses_phases(spec: PermutationSpec, settings: Settings, search: Search | None) -> bool:
    """Say whether `align` shifts phases: where the distance of the weights is all that counts.

    Not with activations or a loss, which may prefer what is further away, nor with a metric to
    which the shift of a bias is something else, nor for a proof, which is over orders and signs.
    """
    by_loss = tuple(entry.kind for entry in SEARCHES.values() if entry.needs_data)
    metric = settings.metric
    is_plain = METRICS.get(metric.name) is metric and metric.odd
    looks_elsewhere = settings.evidence is not None or isinstance(search, by_loss)
    return bool(spec.phases) and is_plain and settings.prove is None and not looks_elsewhere


@dataclass(frozen=True)
class PhaseSearch:
    """A search over orders, signs and phases.

    Attributes:
        sources, target: on the device that computes.
        metric: of the distance.
        problem: makes the problem of sources and a target.
        find: searches it, with this share of the budget.
        starts: random starts of the descent in the end.
        seed: of these.
    """

    sources: Weights
    target: Weights
    metric: Metric
    problem: Callable[[Weights, Weights], AlignmentProblem]
    find: Callable[[AlignmentProblem, float], Outcome]
    starts: int
    seed: int

    def run(self) -> tuple[Answers, Outcome]:
        """Search with the phases as they are and with canonical ones; descend from what is found.

        The answer of each source is never further away than the first search's.
        """
        own, theirs = (_canonical(weights) for weights in (self.sources, self.target))
        is_same = not any(bool(k.any()) for k in (*own.values(), *theirs.values()))
        still = {name: torch.zeros_like(k) for name, k in own.items()}
        problem = self.problem(self.sources, self.target)
        found = [self.find(problem, 1.0 if is_same else 0.5)]
        starts = [self._answers(problem, found[0].best, still)]
        if not is_same and found[0].status is not Status.INTERRUPTED:
            problem = self.problem(
                shift_weights(self.sources, own), shift_weights(self.target, theirs)
            )
            found.append(self.find(problem, 0.5))
            starts.append(self._answers(problem, found[1].best, own, theirs))
        statuses = [outcome.status for outcome in found]
        began = time.perf_counter()
        descent = PhaseDescent(self.sources, self.target, self.metric, exact_match(problem.engine))
        if not any(status in _CUT_SHORT for status in statuses):
            starts += self._random(descent, starts[0])
        best, distance, is_whole = self._descended(descent, starts, statuses)
        statuses += [] if is_whole else [Status.INTERRUPTED]
        orders = _as_hypotheses(problem, best, found[0])
        return best, _joined(found, statuses, orders, distance, began)

    def _descended(
        self, descent: PhaseDescent, starts: Sequence[Answers], statuses: Sequence[Status]
    ) -> tuple[Answers, Tensor, bool]:
        """Descend from starts of every source, in parts whose similarities fit the memory.

        Returns:
            The closest answer of each source, its distance, and whether nothing was left out, as
            Ctrl-C does.
        """
        spec, count = self.sources.spec, len(self.sources)
        largest = max((spec.units(name) for name in spec.groups), default=1)
        each = max(part_elements(self.sources.device) // largest**2, 1)
        models = max(each // len(starts), 1)
        waves = [starts[n : n + each] for n in range(0, len(starts), each)]
        is_whole, ends = Status.INTERRUPTED not in statuses, []
        for begin in range(0, count, models):
            rows = torch.arange(begin, min(begin + models, count), device=self.sources.device)
            best = descent.settled(starts[0].select(rows))
            distance = descent.distance(best)
            try:
                for wave in waves if is_whole else ():
                    some = joined([start.select(rows) for start in wave])
                    answers, other = _closest(*descent.run(descent.settled(some)), len(rows))
                    wins = other < distance * (1 - _NO_DECREASE)
                    best, distance = best.where(answers, wins), torch.where(wins, other, distance)
            except KeyboardInterrupt:
                is_whole = False
            ends.append((best, distance))
        parts, distances = zip(*ends, strict=True)
        return joined(parts), torch.cat(distances), is_whole

    def _answers(
        self,
        problem: AlignmentProblem,
        hypotheses: Hypotheses,
        own: Vectors,
        theirs: Vectors | None = None,
    ) -> Answers:
        """Return what was found for shifted sources and a shifted target, for both as given."""
        perms, signs = problem.group_vectors(hypotheses)
        phases = {name: signs[name] * k.gather(1, perms[name]) for name, k in own.items()}
        if theirs is not None:
            phases = {name: k - theirs[name] for name, k in phases.items()}
        return Answers(perms, signs, phases, hypotheses.model)

    def _random(self, descent: PhaseDescent, like: Answers) -> Iterator[Answers]:
        """Yield random starts, the same ones for every source."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.starts):
            drawn = draw(self.sources.spec, generator)
            perms, signs = (
                {
                    name: vectors[name].to(old.device).expand_as(old)
                    if name in descent.movable
                    else old
                    for name, old in now.items()
                }
                for vectors, now in zip(drawn, (like.perms, like.signs), strict=True)
            )
            yield replace(like, perms=perms, signs=signs)


def _closest(answers: Answers, ends: Tensor, models: int) -> tuple[Answers, Tensor]:
    """Return the closest of several answers of each source, starts slowest, and its distance."""
    distance, start = ends.reshape(-1, models).min(0)
    return answers.select(start * models + torch.arange(models, device=ends.device)), distance


def shifted_sources(sources: Weights, answers: Answers) -> Weights:
    """Return the sources with the phases of their answers, their units where they were."""
    back = {
        name: torch.zeros_like(k).scatter(1, answers.perms[name], answers.signs[name] * k)
        for name, k in answers.phases.items()
    }
    return shift_weights(sources, back)


def _as_hypotheses(problem: AlignmentProblem, answers: Answers, first: Outcome) -> Hypotheses:
    """Return the orders and signs of answers, marked as what the first search has found."""
    perms = {}
    for variable in problem.sizes:
        perm = answers.perms[unsigned(variable)]
        if is_signed(variable):
            perm = with_sign(perm, answers.signs[unsigned(variable)] < 0)
        perms[variable] = perm
    return replace(first.best, perms=perms)


def _canonical(weights: Weights) -> dict[str, Tensor]:
    """Return the canonical phases of every model, group -> int64 [m, units]."""
    return {n: nearest_to_0(weights[p.bias], p.shift) for n, p in weights.spec.phases.items()}


def shift_weights(weights: Weights, phases: Vectors) -> Weights:
    """Return models with the phases of their units shifted, int64 [m, units]."""
    on_host = {name: k.cpu() for name, k in phases.items()}
    states = [
        shift_phases(weights.spec, state, {name: k[number] for name, k in on_host.items()})
        for number, state in enumerate(weights.states)
    ]
    return Weights(weights.spec, states, weights.device)


def _joined(
    found: Sequence[Outcome],
    statuses: Sequence[Status],
    best: Hypotheses,
    distance: Tensor,
    began: float,
) -> Outcome:
    """Return one outcome for all searches and the descent that began after them."""
    history: list[Progress] = []
    seconds, least = 0.0, math.inf
    for outcome in found:
        before, steps = seconds, history[-1].step if history else 0
        for entry in outcome.history:
            least = min(least, entry.best_distance)
            later = replace(entry, step=steps + entry.step, seconds=before + entry.seconds)
            history.append(replace(later, best_distance=least))
        seconds += outcome.seconds
    seconds += time.perf_counter() - began
    closest = float(distance.mean())
    history.append(Progress("phases", history[-1].step + 1, None, closest, seconds, None))
    ended = [status for status in statuses if status is not Status.TRIVIAL] or statuses
    cut_short = [status for status in reversed(ended) if status in _CUT_SHORT]
    return Outcome(
        best,
        best,
        tuple(history),
        (cut_short or ended)[0],
        seconds,
        sum(outcome.assignments for outcome in found),
        {name: parts for outcome in found for name, parts in outcome.splits.items()},
    )
