"""What a descent keeps from its last look at a group, so that the next one is cheaper."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._problem import Family, Hypotheses
from gpu_align._search._search import Run, Warm, deviation
from gpu_align._search._state import stored

_WORTH = 2**31
"""Multiply-adds of a similarity from which on the host keeps and updates it.

Descent of an MLP, two cores: no gain at 3 x 512, a fifth of the time at 3 x 1024 and 3 x 2048.
"""

_WORTH_ON_DEVICE = 2**24
"""The same on a device, where assignments start warm too. A guess, not yet measured."""

_SHARE = 0.25
"""Share of the free memory that kept similarities may take."""

_WARM_CHANGE = 0.1
"""Change of a similarity, in its standard deviations, from which on its assignment starts cold."""


@dataclass(frozen=True)
class Look:
    """What a move needs to know of a group.

    Attributes:
        similarity: matrix -> [c, n, n].
        warm: where its assignments start from; None where they have no memory.
    """

    similarity: Mapping[str, Tensor]
    warm: Warm | None = None


@dataclass
class _Kept:
    """The last look at a group; rows of hypotheses that were never looked at are undefined.

    Attributes:
        similarity: [b, n, n].
        perms: other matrix -> int64 [b, n], where it was at that look.
        seen: bool [b], on the host.
        warm: the last matchings and duals of all hypotheses.
    """

    similarity: Tensor
    perms: dict[str, Tensor]
    seen: Tensor
    warm: Warm

    def warm_start(self, index: Tensor, old: Tensor | None, new: Tensor) -> Warm:
        """Return where assignments start: cold where a similarity has changed too much.

        Args:
            index: int64 [c], which hypotheses.
            old, new: [c, n, n], similarities of the last matchings and of those to come.
        """
        col_dual = self.warm.col_dual[index]
        cold = torch.ones(len(index), dtype=torch.bool, device=index.device)
        if old is not None:
            change = (new - old).square_().mean((1, 2)).sqrt()
            cold = ~(change < _WARM_CHANGE * deviation(new))
        return Warm(col_dual.masked_fill(cold[:, None], torch.nan), self.warm.col_ind[index])


@stored
class Recall:
    """The last looks of a descent: similarities, which are updated, and duals, for warm starts.

    Only a cache: the answer is the same without it, up to rounding. Large groups without others
    inside them are kept, as far as memory allows.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept | None] = {}

    def __getstate__(self) -> dict[str, object]:
        # A cache is not kept with a search: it is large, and made anew.
        return {"_kept": {}}

    def look(
        self, run: Run, group: str, chosen: Tensor, index: Tensor, part: Hypotheses, batch: int
    ) -> Look:
        """Return the similarities of a family for some hypotheses.

        Args:
            run: the running search.
            group: root of the family.
            chosen, index: int64 [c], which hypotheses; on the host and on the device.
            part: these hypotheses.
            batch: number of all hypotheses.
        """
        problem = run.problem
        if group not in self._kept:
            self._kept[group] = self._begin(run, problem.families[group], batch)
        kept = self._kept[group]
        if kept is None:
            return Look(problem.similarities(group, part.perms, part.model))
        old = None
        if bool(kept.seen[chosen].all()):
            old = kept.similarity[index]
            before = {name: perm[index] for name, perm in kept.perms.items()}
            new = problem.updated_similarity(group, old, before, part.perms, part.model)
        else:
            new = problem.similarity(group, part.perms, part.model)
        # The solvers of the host have no use for a warm start.
        warm = None if run.waits else kept.warm_start(index, old, new)
        kept.seen[chosen] = True
        kept.similarity.index_copy_(0, index, new)
        for name, perm in kept.perms.items():
            perm.index_copy_(0, index, part.perms[name])
        return Look({group: new}, warm)

    def keep(self, group: str, index: Tensor, look: Look) -> None:
        """Remember the matchings that were found from a look."""
        kept = self._kept[group]
        if kept is not None and look.warm is not None:
            kept.warm.col_dual.index_copy_(0, index, look.warm.col_dual)
            kept.warm.col_ind.index_copy_(0, index, look.warm.col_ind)

    def _begin(self, run: Run, family: Family, batch: int) -> _Kept | None:
        """Return room for the looks at a family; None where keeping them does not pay."""
        problem, group = run.problem, family.root.group
        size, terms = problem.sizes[group], problem.touching(group)
        work = size * sum(term.target.numel() for term in terms)
        worth = _WORTH if run.waits else _WORTH_ON_DEVICE
        if len(family.matrices) > 1 or work < worth or not run.affords(_SHARE, batch * size**2):
            return None
        others = {name for term in terms for name in term.matrices}
        device, dtype = problem.device, problem.dtype
        return _Kept(
            torch.empty(batch, size, size, dtype=dtype, device=device),
            {
                name: torch.zeros(batch, problem.sizes[name], dtype=torch.int64, device=device)
                for name in others
            },
            torch.zeros(batch, dtype=torch.bool),
            Warm(
                torch.full((batch, size), torch.nan, dtype=torch.float64, device=device),
                torch.zeros(batch, size, dtype=torch.int64, device=device),
            ),
        )
