"""prove: how much closer than a permutation any other one could be, and whether at all."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._device import free_bytes
from gpu_align._errors import InputError
from gpu_align._interrupt import uninterrupted
from gpu_align._problem import AlignmentProblem, exact_match
from gpu_align._process import full_precision, torch_threads
from gpu_align._proof._ascent import Ascent
from gpu_align._proof._branches import exclude_pairs
from gpu_align._proof._check import Judge, objective_of
from gpu_align._proof._convex import Convex, toward_permutations
from gpu_align._proof._duals import Duals, best_duals, in_two_passes
from gpu_align._proof._effort import Effort, OutOfTime
from gpu_align._proof._leftover import Leftover, Listing
from gpu_align._proof._proof import Proof
from gpu_align._proof._reduced import Couple, Reduced, columns_of, reduced
from gpu_align._search import ProgressCallback
from gpu_align._status import Status
from gpu_align._symmetry import Permutation

_ON_HOST, _ON_DEVICE = 2**22, 2**27
"""Pairs of pairs of units for which a second must be given, on one core or a device.

A sweep that solves their assignments takes about two thirds of it; the bound of one that is cut
short is below that of the convex relaxation.
"""

_SHARE = 0.5  # of the free memory
_COPIES = 4  # of the duals: those of the ascent, of its last stage, and of two that are kept
_CHEAP_DUALS: Duals = in_two_passes
_CHEAP = 0.02
"""Share of the gap that a sweep of cheap duals closes at least to be followed by another one."""

_SETTLED = 1e-3
"""Share of the gap that a sweep closes at least to be followed by another one."""

_MOST_STEPS, _JUDGED = 500, 4
"""Steps of Frank-Wolfe, and how many of them are for one that is judged."""

ASCENT, CONVEX, NONE = "dual ascent", "convex relaxation", "none"

_HOW = {
    Status.PROVED_OPTIMAL: "no better permutation is left",
    Status.COMPLETED: "the bound hardly rises any more",
    Status.TIME_BUDGET: "the seconds were spent",
    Status.INTERRUPTED: "interrupted",
}


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
            another spec or shifts phases, over which nothing is proved.

    Source: Hahn & Grant, "Lower bounds for the quadratic assignment problem based upon a dual
    formulation", Operations Research 46 (1998), sections 2 and 3.
    """
    _check(problem, incumbent, seconds, model)
    _check_phases(incumbent)
    with torch_threads.held(single=True), full_precision():
        problem = problem.in_float64()
        form, best = reduced(problem, model), best_duals(problem.engine)
        distance = objective_of(problem, incumbent, model)
        judge = Judge(form, best, Listing(problem, model))
        effort = Effort(problem, form, distance, judge)
        effort.limit, effort.progress = seconds, progress
        method, note = _method(form, problem, seconds)
        columns = columns_of(form, problem.vectors(incumbent))
        status = _run(method, form, problem, effort, columns)
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


def _check(problem: AlignmentProblem, incumbent: Permutation, seconds: float, model: int) -> None:
    if not 0 < seconds < math.inf:
        raise InputError(f"expected a finite number of seconds above 0, got seconds={seconds!r}")
    if incumbent.spec != problem.spec or not 0 <= model < problem.models:
        raise InputError(
            f"expected a permutation of the problem's spec and a model below {problem.models}, got "
            f"model={model} and a permutation of "
            f"{'this' if incumbent.spec == problem.spec else 'another'} spec"
        )


def _check_phases(incumbent: Permutation) -> None:
    if incumbent.shifted():
        raise InputError(
            "a proof is over orders and signs, and this permutation shifts phases too; apply its "
            "phases to the source first, and prove the rest"
        )


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


def _run(
    method: str,
    form: Reduced,
    problem: AlignmentProblem,
    effort: Effort,
    incumbent: Mapping[str, Tensor],
) -> Status:
    """Prove until the end, and say how it ended."""
    try:
        if method == ASCENT:
            _ascend(form, problem, effort, incumbent)
        elif method == CONVEX:
            _relax(form, problem, effort)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    except OutOfTime:
        status = Status.TIME_BUDGET
    else:
        status = Status.COMPLETED
    return Status.PROVED_OPTIMAL if effort.gap == 0 else status


def _ascend(
    form: Reduced, problem: AlignmentProblem, effort: Effort, incumbent: Mapping[str, Tensor]
) -> None:
    """Sweep until no better permutation is left or the bound hardly rises; then suppose pairs.

    That is for two groups: of more of them a pair says too little about the others. As soon as what
    is left is little enough, it is gone through.
    """
    best = best_duals(problem.engine)
    ascent, duals = Ascent(form, best), _CHEAP_DUALS
    while before := effort.gap:
        try:
            ascent.sweep(duals, effort.heartbeat)
        except (KeyboardInterrupt, OutOfTime):
            with uninterrupted():
                effort.take(ascent.stage())
            raise
        effort.take(ascent.stage())
        ascent.alive = effort.known.alive
        closed = 1 - effort.gap / before
        if duals is _CHEAP_DUALS and closed >= _CHEAP:
            continue
        if _is_gone_through(effort):
            return
        if duals is best and closed < _SETTLED:
            break
        duals = best
    groups = {group for couple in form.couples for group in couple.groups}
    while effort.gap and 0 < len(groups) <= 2:
        if not exclude_pairs(form, ascent, best, effort, incumbent):
            return
        ascent.alive = effort.known.alive
        ascent.sweep(best, effort.heartbeat)
        effort.take(ascent.stage())
        if _is_gone_through(effort):
            return


def _is_gone_through(effort: Effort) -> bool:
    """Go through all permutations that are left, if they are not too many."""
    if not effort.gap or effort.judge.listing.vectors(effort.known.alive) is None:
        return False
    effort.take(Leftover())
    return True


def _relax(form: Reduced, problem: AlignmentProblem, effort: Effort) -> None:
    """Take steps of Frank-Wolfe, and judge some of the points."""
    point: Convex | None = Convex.empty(form)
    for number in range(_MOST_STEPS):
        if point is None or not effort.gap:
            return
        if number % _JUDGED == 0:
            effort.take(point)
        effort.heartbeat()
        point = toward_permutations(effort.judge.majorant, point, exact_match(problem.engine))
