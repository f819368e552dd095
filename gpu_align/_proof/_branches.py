"""Pairs of units that are excluded one by one, each by supposing it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._proof._ascent import Ascent
from gpu_align._proof._duals import Duals
from gpu_align._proof._effort import Effort
from gpu_align._proof._reduced import Reduced

_SWEEPS = 10
"""Sweeps with a pair at most; fewer where the bound rises too slowly for it to be excluded."""

_PATIENCE = 6
"""Pairs in a row that are not excluded before it is given up: the next ones are less likely to."""


def exclude_pairs(
    form: Reduced, ascent: Ascent, best: Duals, effort: Effort, incumbent: Mapping[str, Tensor]
) -> bool:
    """Suppose pairs of the smaller group, and exclude those with which no permutation is better.

    The ones that cost most come first. Those of the incumbent are left out: they cost nothing.

    Args:
        form: a problem of two coupled groups.
        ascent: its duals, from which those with a pair begin.
        best: solves assignments.
        effort: the proof; takes what excludes a pair.
        incumbent: group -> int64 [n], columns of the permutation that is proved.

    Returns:
        Whether any pair was excluded.
    """
    coupled = [group for couple in form.couples for group in couple.groups]
    group = min(coupled, key=lambda name: len(form.gains[name]))
    costs = effort.judge(ascent.stage(), effort.known.alive).costs[group].cpu()
    costs = costs.scatter(1, incumbent[group].cpu()[:, None], -torch.inf)
    costs.masked_fill_(~effort.known.alive[group].cpu(), -torch.inf)
    failed, excluded = 0, False
    for number in costs.flatten().argsort(descending=True).tolist():
        i, j = divmod(number, costs.shape[1])
        if costs[i, j] == -torch.inf or failed == _PATIENCE or effort.is_full:
            break
        ascent.alive = effort.known.alive
        if _is_excluded(ascent.supposing(group, i, j), best, effort):
            failed, excluded = 0, True
        else:
            failed += 1
    return excluded


def _is_excluded(branch: Ascent, best: Duals, effort: Effort) -> bool:
    """Sweep with a pair until it is excluded, or will hardly be."""
    lacking = torch.inf
    for left in reversed(range(_SWEEPS)):
        branch.sweep(best, effort.heartbeat)
        before, lacking = lacking, effort.probe(branch.stage())
        if lacking <= 0:
            return True
        if lacking > (before - lacking) * left:
            return False
    return False
