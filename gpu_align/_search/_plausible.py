"""Whether what was read from a file can be the state of a search: nobody vouches for the file."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gpu_align._problem import AlignmentProblem, Hypotheses, index_of
from gpu_align._search._scale import tolerance
from gpu_align._search._state import Progress, Snapshot, State
from gpu_align._status import Status

_MOST = 2**63
_ROUNDING = 1e3
"""By how many tolerances an objective may differ that was updated rather than computed."""


def flaw(snapshot: object, problem: AlignmentProblem) -> str | None:
    """Return what a snapshot cannot be continued for; None if nothing.

    The kinds and ranges of all that the loop uses are looked at, permutations and objectives are
    compared with the problem.
    """
    if not isinstance(snapshot, Snapshot) or not _has_fields(snapshot):
        return "it is not complete"
    state = snapshot.state
    if not isinstance(state, State) or not _has_fields(state):
        return "it is not complete"
    for hypotheses in (snapshot.best, state.hypotheses):
        if not isinstance(hypotheses, Hypotheses) or not _fits(hypotheses, problem):
            return "its permutations do not fit these networks"
        if not _has_objectives(hypotheses, problem):
            return "its distances are not those of its permutations"
    if len(snapshot.best) != problem.models:
        return "its permutations do not fit these networks"
    whole = (state.step, snapshot.counter, snapshot.assignments)
    is_told = isinstance(snapshot.history, tuple) and all(map(_is_progress, snapshot.history))
    splits = snapshot.splits
    good = (
        all(map(_is_count, whole)),
        isinstance(state.stage, str),
        state.expected is None or _is_count(state.expected),
        state.finished is None or isinstance(state.finished, Status),
        state.losses is None or _are_losses(state.losses, problem.models, len(state.hypotheses)),
        _is_time(snapshot.seconds),
        is_told,
        isinstance(splits, Mapping)
        and all(isinstance(text, str) for pair in splits.items() for text in pair),
    )
    return None if all(good) else "its numbers are none of a search"


def _has_fields(value: Snapshot | State | Hypotheses | Progress) -> bool:
    return all(field.name in vars(value) for field in fields(value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _are_losses(losses: Any, models: int, hypotheses: int) -> bool:
    right = isinstance(losses, tuple) and len(losses) == models == hypotheses
    return right and all(type(loss) is float for loss in losses)


def _is_progress(entry: Any) -> bool:
    if not isinstance(entry, Progress) or not _has_fields(entry):
        return False
    numbers = (entry.step, 0 if entry.steps is None else entry.steps)
    times = (entry.seconds, 0.0 if entry.seconds_left is None else entry.seconds_left)
    return (
        all(map(_is_count, numbers))
        and all(map(_is_time, times))
        and type(entry.best_distance) is float
        and math.isfinite(entry.best_distance)
        and (entry.loss is None or type(entry.loss) is float)
        and isinstance(entry.stage, str)
        and isinstance(entry.part, str)
    )


def _fits(hypotheses: Hypotheses, problem: AlignmentProblem) -> bool:
    """Say whether a batch holds permutations of the problem's matrices."""
    if not _has_fields(hypotheses) or not isinstance(hypotheses.perms, Mapping):
        return False
    if hypotheses.models != problem.models or hypotheses.perms.keys() != problem.sizes.keys():
        return False
    model, count = hypotheses.model, problem.models
    if not _is_vector(model, torch.int64) or len(model) == 0 or len(model) % count:
        return False
    owners = problem.model_index(len(model) // count)
    if not torch.equal(model.cpu(), owners.cpu()):
        return False
    for variable, size in problem.sizes.items():
        perm = hypotheses.perms[variable]
        if not isinstance(perm, Tensor) or perm.shape != (len(model), size):
            return False
        if perm.dtype != torch.int64 or perm.layout != torch.strided:
            return False
        places = torch.arange(size, device=perm.device).expand_as(perm)
        if not torch.equal(index_of(perm).sort(1).values, places):
            return False
    return True


def _is_vector(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype and value.ndim == 1


def _has_objectives(hypotheses: Hypotheses, problem: AlignmentProblem) -> bool:
    """Say whether the distances of a batch are those of its permutations, up to rounding."""
    count = len(hypotheses.model)
    numbers = ((hypotheses.objective, torch.float64), (hypotheses.lineage, torch.int64))
    if not all(_is_vector(value, dtype) and len(value) == count for value, dtype in numbers):
        return False
    perms = {name: perm.to(problem.device) for name, perm in hypotheses.perms.items()}
    model = hypotheses.model.to(problem.device)
    found = problem.objective(perms, model)
    allowed = _ROUNDING * tolerance(problem, model)
    distance = (found - hypotheses.objective.to(problem.device)).abs()
    return bool((distance <= allowed).all())
