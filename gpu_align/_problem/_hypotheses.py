"""Hypotheses: a batch of candidate permutations, the unit on which every search works."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypotheses:
    """A batch of b hypotheses; for several models each belongs to one.

    Attributes:
        perms: matrix -> int64 [b, n]; j puts unit j of the source at place i, `~j` negates it too.
        model: int64 [b], which source each hypothesis permutes.
        objective: float64 [b], squared distance to the target; lower is better.
        origin: int64 [b], a mark that follows a hypothesis and its descendants.
    """

    perms: Mapping[str, Tensor]
    model: Tensor
    objective: Tensor
    origin: Tensor

    def __len__(self) -> int:
        return len(self.model)

    def select(self, index: Tensor) -> "Hypotheses":
        """Return the hypotheses at `index` (int64 or bool [k])."""
        return Hypotheses(
            {name: perm[index] for name, perm in self.perms.items()},
            self.model[index],
            self.objective[index],
            self.origin[index],
        )

    def marked(self, origin: int) -> "Hypotheses":
        """Return the batch with one mark on all its hypotheses."""
        return replace(self, origin=torch.full_like(self.model, origin))

    def put(self, index: Tensor, perms: Mapping[str, Tensor], objective: Tensor) -> "Hypotheses":
        """Return a copy with the vectors of some matrices and the objective replaced at `index`."""
        moved = {name: self.perms[name].index_copy(0, index, perm) for name, perm in perms.items()}
        return replace(
            self,
            perms={**self.perms, **moved},
            objective=self.objective.index_copy(0, index, objective),
        )

    def fingerprint(self) -> Tensor:
        """Return a 64-bit hash of each hypothesis, int64 [b]: equal permutations hash alike."""
        total = torch.zeros_like(self.model)
        generator = torch.Generator().manual_seed(0x5EED)
        for perm in self.perms.values():
            weights = torch.randint(
                -(2**62), 2**62, perm.shape[1:], generator=generator, dtype=torch.int64
            ).to(perm.device)
            total = total + (perm * (2 * weights + 1)).sum(1)  # wraps modulo 2^64
        return total

    def best(self, width: int = 1) -> "Hypotheses":
        """Return the `width` best distinct hypotheses of each model, best first, models in order.

        Where a model has fewer distinct ones the last places repeat its worst duplicates, so that
        every model keeps the same number.
        """
        models = int(self.model.max()) + 1 if len(self) else 0
        fingerprint = self.fingerprint()
        chosen = []
        for model in range(models):
            member = (self.model == model).nonzero().flatten()
            member = member[self.objective[member].argsort(stable=True)]
            chosen.append(member[_distinct_first(fingerprint[member])][:width])
        return self.select(torch.cat(chosen)) if chosen else self


def _distinct_first(fingerprint: Tensor) -> Tensor:
    """Return an order in which the first occurrence of each value comes before repetitions."""
    order = fingerprint.argsort(stable=True)
    repeated = torch.zeros_like(fingerprint, dtype=torch.bool)
    repeated[order[1:]] = fingerprint[order[1:]] == fingerprint[order[:-1]]
    return repeated.to(torch.int8).argsort(stable=True)


def concatenate(parts: Sequence[Hypotheses]) -> Hypotheses:
    """Join batches of hypotheses of one problem."""
    return Hypotheses(
        {name: torch.cat([part.perms[name] for part in parts]) for name in parts[0].perms},
        torch.cat([part.model for part in parts]),
        torch.cat([part.objective for part in parts]),
        torch.cat([part.origin for part in parts]),
    )


def in_chunks(function: Callable[[Tensor], Tensor], batch: int, chunk: int) -> Tensor:
    """Apply `function` to index ranges of at most `chunk` elements and join the results."""
    ranges = torch.arange(batch).split(max(chunk, 1))
    return torch.cat([function(index) for index in ranges]) if batch else function(torch.arange(0))
