"""prove: how much closer than a permutation any other one could be, and whether at all."""

import math
import time

import torch

from gpu_align._device import free_bytes
from gpu_align._errors import InputError
from gpu_align._interrupt import uninterrupted
from gpu_align._problem import AlignmentProblem, exact_match
from gpu_align._process import full_precision, torch_threads
from gpu_align._proof._ascent import Ascent
from gpu_align._proof._check import Judge, Known, objective_of, rounding_of
from gpu_align._proof._convex import Convex, toward_permutations
from gpu_align._proof._duals import Duals, best_duals, in_two_passes
from gpu_align._proof._proof import Proof
from gpu_align._proof._record import ProofStep
from gpu_align._proof._reduced import Couple, Reduced, reduced
from gpu_align._proof._stage import Stage
from gpu_align._search import Progress, ProgressCallback
from gpu_align._status import Status
from gpu_align._symmetry import Permutation

_ON_HOST, _ON_DEVICE = 2**22, 2**27
"""Pairs of pairs of units for which a second must be given, on one core or a device.

A sweep that solves their assignments takes about two thirds of it; the bound of one that is cut
short is below that of the convex relaxation.
"""

_SHARE = 0.5  # of the free memory
_COPIES = 4  # of the duals: those of the ascent, of its last stage, and of two that are kept
_EXCLUDED = 0.1
"""Share of the candidates that a stage excludes at least to be kept for that."""

_CHEAP_DUALS: Duals = in_two_passes
_CHEAP = 0.02
"""Share of the gap that a sweep of cheap duals closes at least to be followed by another one."""

_SETTLED = 1e-3
"""Share of the gap that a sweep closes at least to be followed by another one."""

_SILENCE = 1.0
"""Seconds of silence after which progress is shown within a sweep."""

_MOST_STEPS, _JUDGED = 500, 4
"""Steps of Frank-Wolfe, and how many of them are for one that is judged."""

ASCENT, CONVEX, NONE = "dual ascent", "convex relaxation", "none"

_HOW = {
    Status.PROVED_OPTIMAL: "no better permutation is left",
    Status.COMPLETED: "the bound hardly rises any more",
    Status.TIME_BUDGET: "the seconds were spent",
    Status.INTERRUPTED: "interrupted",
}


class _OutOfTime(Exception):
    """The seconds are spent."""


class _Effort:
    """What is proved so far, and the stages that prove it.

    Attributes:
        judge: says what stages prove.
        known: by the stages that are kept, whose excluded pairs are gone for good.
        now: with the best stage since.
        history: after every sweep.
    """

    def __init__(
        self, problem: AlignmentProblem, form: Reduced, distance: float, judge: Judge
    ) -> None:
        self._unit, self._distance, self.judge = problem.unit, distance, judge
        self.rounding = rounding_of(form)
        self.known = self.now = Known.nothing(form)
        self.stages: list[Stage | Convex] = []
        self._last: Stage | Convex | None = None
        self.history: list[ProofStep] = []
        self._started = self._shown = time.perf_counter()
        self.limit = math.inf
        self.progress: ProgressCallback | None = None

    @property
    def seconds(self) -> float:
        """Time spent."""
        return time.perf_counter() - self._started

    @property
    def gap(self) -> float:
        """By how much a better permutation might be closer; none is left where it is 0."""
        gap = self._distance - self.now.bound
        return 0.0 if gap <= self.rounding else gap

    def take(self, stage: Stage | Convex) -> None:
        """Judge a stage; keep it if it is the best one or excludes many pairs."""
        # Half of the rounding is left to a check, whose sums may differ.
        threshold = self._distance - self.rounding / 2
        found = self.known.after(self.judge(stage, self.known.alive), threshold)
        few = (1 - _EXCLUDED) * self.known.candidates
        if found.bound >= threshold or found.candidates <= few:
            self.stages.append(stage)
            self.known = self.now = found
            self._last = None
        elif found.bound > self.now.bound:
            self.now, self._last = found, stage
        self.history.append(
            ProofStep(self.seconds, self._unit * self.now.bound, self.now.candidates)
        )
        self._show()

    def heartbeat(self) -> None:
        """Show progress after a silence.

        Raises:
            _OutOfTime: the seconds are spent.
        """
        if time.perf_counter() - self._shown >= _SILENCE:
            self._show()
        if self.seconds >= self.limit:
            raise _OutOfTime

    def all_stages(self) -> tuple[Stage | Convex, ...]:
        """Return the stages in the order of their use."""
        return (*self.stages, *([] if self._last is None else [self._last]))

    def _show(self) -> None:
        self._shown = time.perf_counter()
        if self.progress is None:
            return
        bound, distance = self._unit * self.now.bound, self._unit * self._distance
        share = 100 * self.gap / self._distance if self._distance > 0 else 0.0
        part = f"bound {bound:.6g}, gap {share:.3g} %, {self.now.candidates} candidates left"
        left = max(self.limit - self.seconds, 0.0)
        self.progress(
            Progress("Proof", len(self.history), None, distance, self.seconds, left, part)
        )


def prove(
    problem: AlignmentProblem,
    incumbent: Permutation,
    *,
    seconds: float = 60.0,
    model: int = 0,
    progress: ProgressCallback | None = None,
) -> Proof:
    """Prove that no permutation is closer than one that was found, or how much closer one could be.

    Dual ascent for the level-1 relaxation from the bound by inner assignments: each pair of units
    takes what the other groups' units can gain beside it, and what it gains too little in its own
    group it gives back. A pair with which no permutation can be better is excluded, which raises
    the bound of the others. Where its duals do not fit the memory, or a sweep the time, a convex
    relaxation gives the bound. Ctrl-C ends it with what is proved until then.

    Args:
        problem: computed with in float64.
        incumbent: the permutation, best one that is optimal: from a worse one little is excluded.
        seconds: time for it; the last stage is judged after that.
        model: which source.
        progress: called after every sweep and now and then within one; `part` has the bound.

    Raises:
        InputError: there is no such model, seconds are not above 0, or the permutation is of
            another spec.

    Source: Hahn & Grant, "Lower bounds for the quadratic assignment problem based upon a dual
    formulation", Operations Research 46 (1998), sections 2 and 3.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"expected a finite number of seconds above 0, got seconds={seconds!r}")
    if incumbent.spec != problem.spec or not 0 <= model < problem.models:
        raise InputError(
            f"expected a permutation of the problem's spec and a model below {problem.models}, got "
            f"model={model} and a permutation of "
            f"{'this' if incumbent.spec == problem.spec else 'another'} spec"
        )
    with torch_threads.held(single=True), full_precision():
        problem = problem.in_float64()
        form, best = reduced(problem, model), best_duals(problem.engine)
        distance = objective_of(problem, incumbent, model)
        effort = _Effort(problem, form, distance, Judge(form, best))
        effort.limit, effort.progress = seconds, progress
        method, note = _method(form, problem, seconds)
        status = _run(method, form, problem, effort)
        return Proof(
            method=method,
            note=f"{note}; {_HOW[status]}",
            distance=problem.unit * distance,
            lower_bound=problem.unit
            * max(form.least, min(effort.now.bound, distance - effort.rounding)),
            allowance=problem.unit * effort.now.allowance,
            tolerance=problem.unit * effort.rounding,
            pairs=sum(gains.numel() for gains in form.gains.values()),
            candidates=effort.now.candidates,
            seconds=effort.seconds,
            status=status,
            history=tuple(effort.history),
            permutation=incumbent,
            stages=effort.all_stages(),
            alive=effort.now.alive,
            model=model,
        ).sealed()


def narrowed(problem: AlignmentProblem, proof: Proof) -> AlignmentProblem:
    """Return the problem of the proof's source in which excluded pairs cost more than they gain.

    What no better permutation has need not be searched. Other permutations have the same objective.

    Args:
        problem: what the proof is for.
        proof: that has excluded pairs.
    """
    heavy = problem.unit * float(problem.constant[proof.model].abs())
    evidence = {}
    for group, alive in proof.alive.items():
        either = alive.unflatten(1, (-1, len(alive))).any(1)
        evidence[group] = -heavy * (~either).to(torch.float64)
    return problem.of_source(proof.model, evidence)


def _method(form: Reduced, problem: AlignmentProblem, seconds: float) -> tuple[str, str]:
    """Return what to prove with, and why."""
    duals = sum(
        2 * 8 * (c.target[..., 0].numel() * len(c.source) + _second(c)) for c in form.couples
    )
    gains = sum(c.target[..., 0].numel() * c.source[..., 0].numel() for c in form.couples)
    free, rate = free_bytes(problem.device), _ON_HOST if problem.engine.waits else _ON_DEVICE
    bounded = f", {form.bounded} terms by a bound of theirs" if form.bounded else ""
    if _COPIES * duals <= _SHARE * free and gains <= rate * seconds:
        return ASCENT, f"duals of {gains} pairs of pairs of units{bounded}"
    reason = (
        f"{gains} pairs of pairs of units, too many for {seconds:g} s"
        if gains > rate * seconds
        else f"the duals take {_COPIES * duals >> 20} MiB, of which {free >> 20} MiB are free"
    )
    if all(w.shape[0] == w.shape[1] for w in form.gains.values()):
        return CONVEX, f"{reason}{bounded}"
    return NONE, f"{reason}; with signs there is no relaxation that takes less"


def _second(couple: Couple) -> int:
    """Return the number of duals by row of a couple's second group."""
    units, others, _ = couple.target.shape
    return units * others * couple.source.shape[1]


def _run(method: str, form: Reduced, problem: AlignmentProblem, effort: _Effort) -> Status:
    """Prove until the end, and say how it ended."""
    try:
        if method == ASCENT:
            _ascend(form, problem, effort)
        elif method == CONVEX:
            _relax(form, problem, effort)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    except _OutOfTime:
        status = Status.TIME_BUDGET
    else:
        status = Status.COMPLETED
    return Status.PROVED_OPTIMAL if effort.gap == 0 else status


def _ascend(form: Reduced, problem: AlignmentProblem, effort: _Effort) -> None:
    """Sweep until no better permutation is left or the bound no longer rises."""
    best = best_duals(problem.engine)
    ascent, duals = Ascent(form, best), _CHEAP_DUALS
    while before := effort.gap:
        try:
            ascent.sweep(duals, effort.heartbeat)
        except (KeyboardInterrupt, _OutOfTime):
            with uninterrupted():
                effort.take(ascent.stage())
            raise
        effort.take(ascent.stage())
        ascent.alive = effort.known.alive
        closed = 1 - effort.gap / before
        if duals is _CHEAP_DUALS:
            duals = _CHEAP_DUALS if closed >= _CHEAP else best
        elif closed < _SETTLED:
            return


def _relax(form: Reduced, problem: AlignmentProblem, effort: _Effort) -> None:
    """Take steps of Frank-Wolfe, and judge some of the points."""
    point: Convex | None = Convex.empty(form)
    for number in range(_MOST_STEPS):
        if point is None or not effort.gap:
            return
        if number % _JUDGED == 0:
            effort.take(point)
        effort.heartbeat()
        point = toward_permutations(effort.judge.majorant, point, exact_match(problem.engine))
