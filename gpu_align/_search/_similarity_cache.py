"""What a descent on the host keeps of the last similarities, so that the next are cheaper."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._device import FreeMemory
from gpu_align._problem import AlignmentProblem, Hypotheses

_LEAST_WORK = 2**31
"""Multiply-adds of a similarity from which on it is cached and updated.

Descent of an MLP, two cores: no gain at 3 x 512, a fifth of the time at 3 x 1024 and 3 x 2048.
"""

_SHARE = 0.25
"""Share of the free memory that a cached similarity may take."""


@dataclass
class _Entry:
    """The last similarities of a group; rows of hypotheses without any are undefined.

    Attributes:
        similarity: [b, n, n].
        perms: other variable -> int64 [b, n], where it was then.
        known: bool [b].
    """

    similarity: Tensor
    perms: dict[str, Tensor]
    known: Tensor


class SimilarityCache:
    """The last similarities of a descent, which are updated where others moved.

    The answer is the same without it, up to rounding. Large groups without others inside them are
    cached, as far as memory allows.

    Attributes:
        least_work: multiply-adds of a similarity from which on it is cached.
    """

    def __init__(self, problem: AlignmentProblem, memory: FreeMemory) -> None:
        """Begin with nothing."""
        self._problem, self._memory = problem, memory
        self.least_work = _LEAST_WORK
        self._entries: dict[tuple[str, int], _Entry | None] = {}

    def clear(self) -> None:
        """Drop all."""
        self._entries.clear()

    def holds(self, group: str, batch: int) -> bool:
        """Say whether the similarities of a group are kept for a batch of so many hypotheses."""
        if (group, batch) not in self._entries:
            self._entries[group, batch] = self._room(group, batch)
        return self._entries[group, batch] is not None

    def similarities(
        self, group: str, chosen: Tensor, part: Hypotheses, batch: int
    ) -> Mapping[str, Tensor]:
        """See `Executor.similarities`."""
        entry = self._entries[group, batch] if self.holds(group, batch) else None
        if entry is None:
            return self._problem.similarities(group, part.perms, part.model)
        if bool(entry.known[chosen].all()):
            before = {name: perm[chosen] for name, perm in entry.perms.items()}
            old = entry.similarity[chosen]
            new = self._problem.updated_similarity(group, old, before, part.perms, part.model)
        else:
            new = self._problem.similarity(group, part.perms, part.model)
        entry.known[chosen] = True
        entry.similarity.index_copy_(0, chosen, new)
        for name, perm in entry.perms.items():
            perm.index_copy_(0, chosen, part.perms[name])
        return {group: new}

    def _room(self, group: str, batch: int) -> _Entry | None:
        """Return room for the similarities of a group; None where caching does not pay."""
        problem = self._problem
        if problem.families[group].variables != (group,):
            return None
        size, terms = problem.sizes[group], problem.terms_of(group)
        if size * sum(term.target.numel() for term in terms) < self.least_work:
            return None
        if self._memory.fitting(size**2 * problem.dtype.itemsize, _SHARE) < batch:
            return None
        others = {name for term in terms for name in term.variables}
        return _Entry(
            torch.empty(batch, size, size, dtype=problem.dtype, device="cpu"),
            {
                name: torch.zeros(batch, problem.sizes[name], dtype=torch.int64, device="cpu")
                for name in others
            },
            torch.zeros(batch, dtype=torch.bool, device="cpu"),
        )
