"""What a descent on the host keeps from its last look at a group, so that the next is cheaper."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._problem import Family, Hypotheses
from gpu_align._search._search import Run
from gpu_align._search._state import stored

_WORTH = 2**31
"""Multiply-adds of a similarity from which on it is kept and updated.

Descent of an MLP, two cores: no gain at 3 x 512, a fifth of the time at 3 x 1024 and 3 x 2048. On
an H200 an update was no faster than computing anew, and there is none there.
"""

_SHARE = 0.25
"""Share of the free memory that a kept similarity may take."""


@dataclass
class _Kept:
    """The last look at a group; rows of hypotheses that were never looked at are undefined.

    Attributes:
        similarity: [b, n, n].
        perms: other variable -> int64 [b, n], where it was at that look.
        seen: bool [b].
    """

    similarity: Tensor
    perms: dict[str, Tensor]
    seen: Tensor


@stored
class Recall:
    """The similarities at the last looks of a descent, which are updated where others moved.

    Only a cache: the answer is the same without it, up to rounding. Large groups without others
    inside them are kept, as far as memory allows.

    Attributes:
        begun: whether a sweep on a device has begun, which keeps duals instead (`Workspace`).
    """

    def __init__(self) -> None:
        self.begun = False
        self._kept: dict[str, _Kept | None] = {}

    def __getstate__(self) -> dict[str, object]:
        # A cache is not kept with a search: it is large, and made anew.
        return {"begun": False, "_kept": {}}

    def look(
        self, run: Run, group: str, chosen: Tensor, part: Hypotheses, batch: int
    ) -> Mapping[str, Tensor]:
        """Return the similarities of a family for some hypotheses, variable -> [c, n, n].

        Args:
            run: the running search.
            group: root of the family.
            chosen: int64 [c], which hypotheses.
            part: these hypotheses.
            batch: number of all hypotheses.
        """
        problem = run.problem
        if not run.waits:
            return problem.similarities(group, part.perms, part.model)
        if group not in self._kept:
            self._kept[group] = _begin(run, problem.families[group], batch)
        kept = self._kept[group]
        if kept is None:
            return problem.similarities(group, part.perms, part.model)
        if bool(kept.seen[chosen].all()):
            before = {name: perm[chosen] for name, perm in kept.perms.items()}
            old = kept.similarity[chosen]
            new = problem.updated_similarity(group, old, before, part.perms, part.model)
        else:
            new = problem.similarity(group, part.perms, part.model)
        kept.seen[chosen] = True
        kept.similarity.index_copy_(0, chosen, new)
        for name, perm in kept.perms.items():
            perm.index_copy_(0, chosen, part.perms[name])
        return {group: new}


def _begin(run: Run, family: Family, batch: int) -> _Kept | None:
    """Return room for the looks at a family; None where keeping them does not pay."""
    problem, group = run.problem, family.root.group
    size, terms = problem.sizes[group], problem.terms_of(group)
    work = size * sum(term.target.numel() for term in terms)
    if len(family.variables) > 1 or work < _WORTH or run.fitting(_SHARE, size**2) < batch:
        return None
    others = {name for term in terms for name in term.variables}
    return _Kept(
        torch.empty(batch, size, size, dtype=problem.dtype),
        {name: torch.zeros(batch, problem.sizes[name], dtype=torch.int64) for name in others},
        torch.zeros(batch, dtype=torch.bool),
    )
