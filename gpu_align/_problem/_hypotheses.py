"""Hypotheses: a batch of candidate permutations, the unit on which every search works."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_align._device import RandomStream


@dataclass(frozen=True)
class Hypotheses:
    """A batch of b hypotheses; for several models each belongs to one.

    Models are in order and each has as many hypotheses as the others.

    Attributes:
        perms: variable -> int64 [b, n]; j puts unit j of the source at place i, `~j` negates it
            too.
        model: int64 [b], which source each hypothesis permutes.
        objective: float64 [b], squared distance to the target; lower is better.
        lineage: int64 [b], a mark that follows a hypothesis and its descendants.
        models: number of sources.
    """

    perms: Mapping[str, Tensor]
    model: Tensor
    objective: Tensor
    lineage: Tensor
    models: int = 1

    def __len__(self) -> int:
        return len(self.model)

    @property
    def each(self) -> int:
        """Number of hypotheses of each model."""
        return len(self) // max(self.models, 1)

    @property
    def owners(self) -> Tensor:
        """Whose random numbers each hypothesis gets: its number within its model, int64 [b]."""
        return torch.arange(self.each, device=self.model.device).repeat(self.models)

    def only(self, variables: Collection[str]) -> "Hypotheses":
        """Return the batch with the vectors of some matrices only, for a look at these."""
        return replace(self, perms={m: p for m, p in self.perms.items() if m in variables})

    def select(self, index: Tensor) -> "Hypotheses":
        """Return the hypotheses at `index` (int64 [k]); of a part of the batch also unbalanced."""
        return self._mapped(lambda tensor: tensor.index_select(0, index))

    def part(self, rows: slice) -> "Hypotheses":
        """Return a range of the hypotheses; also unbalanced."""
        return self if rows == slice(None) else self._mapped(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> "Hypotheses":
        """Return the batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Hypotheses":
        perms = {name: change(perm) for name, perm in self.perms.items()}
        rest = (change(self.model), change(self.objective), change(self.lineage))
        return Hypotheses(perms, *rest, self.models)

    def marked(self, lineage: int) -> "Hypotheses":
        """Return the batch with one mark on all its hypotheses."""
        return replace(self, lineage=torch.full_like(self.model, lineage))

    def spread(self, width: int) -> "Hypotheses":
        """Return each hypothesis `width` times, next to each other."""
        index = torch.arange(len(self), device=self.model.device)
        return self.select(index.repeat_interleave(width))

    def first(self, width: int) -> "Hypotheses":
        """Return the first `width` of each model, the last one again where there are fewer."""
        index = torch.arange(width, device=self.model.device).clamp_max(self.each - 1)
        start = torch.arange(self.models, device=index.device)[:, None] * self.each
        return self.select((start + index).flatten())

    def of_models(self, models: Tensor) -> "Hypotheses":
        """Return the hypotheses of some models, int64 [k], numbered anew."""
        found = self.select(self._rows_of(models))
        count = len(models)
        model = torch.arange(count, device=found.model.device).repeat_interleave(self.each)
        return replace(found, model=model, models=count)

    def with_models(self, models: Tensor, other: "Hypotheses") -> "Hypotheses":
        """Return the batch with those of some models, int64 [k], replaced by `of_models`' like."""
        rows = self._rows_of(models)
        return replace(
            self.put(rows, other.perms, other.objective),
            lineage=self.lineage.index_copy(0, rows, other.lineage),
        )

    def _rows_of(self, models: Tensor) -> Tensor:
        inside = torch.arange(self.each, device=self.model.device)
        return (models.to(inside)[:, None] * self.each + inside).flatten()

    def put(self, index: Tensor, perms: Mapping[str, Tensor], objective: Tensor) -> "Hypotheses":
        """Return a copy with the vectors of some matrices and the objective replaced at `index`."""
        moved = {name: self.perms[name].index_copy(0, index, perm) for name, perm in perms.items()}
        return replace(
            self,
            perms={**self.perms, **moved},
            objective=self.objective.index_copy(0, index, objective),
        )

    def chosen(self, other: "Hypotheses", wins: Tensor) -> "Hypotheses":
        """Return the batch with the hypotheses of another one where `wins`, bool [b]."""
        return replace(
            self,
            perms={n: torch.where(wins[:, None], other.perms[n], p) for n, p in self.perms.items()},
            objective=torch.where(wins, other.objective, self.objective),
            lineage=torch.where(wins, other.lineage, self.lineage),
        )

    def fingerprint(self) -> Tensor:
        """Return a 64-bit hash of each hypothesis, int64 [b]: equal permutations hash alike."""
        if not self.perms:
            return torch.zeros_like(self.model)
        units = torch.cat(list(self.perms.values()), dim=1)
        owner = torch.zeros(1, dtype=torch.int64, device=units.device)
        odd = RandomStream(0x5EED).words(owner, units.shape[1]) | 1
        return (units * odd).sum(1)  # wraps modulo 2^64

    def best(self, width: int = 1) -> "Hypotheses":
        """Return the `width` best distinct hypotheses of each model, best first.

        Where a model has fewer distinct ones the last places repeat its worst duplicates, so that
        every model keeps the same number.
        """
        if self.each == 1:
            return self
        shape = (self.models, self.each)
        order = self.objective.reshape(shape).argsort(dim=1, stable=True)
        if width > 1:
            order = order.gather(
                1, _distinct_first(self.fingerprint().reshape(shape).gather(1, order))
            )
        start = torch.arange(self.models, device=order.device)[:, None] * self.each
        return self.select((start + order[:, :width]).flatten())


def _distinct_first(fingerprint: Tensor) -> Tensor:
    """Return an order with first occurrences before repetitions, [m, k] -> int64 [m, k]."""
    order = fingerprint.argsort(dim=1, stable=True)
    ordered = fingerprint.gather(1, order)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = torch.zeros_like(again).scatter(1, order, again)
    return repeated.to(torch.int8).argsort(dim=1, stable=True)


def concatenate(parts: Sequence[Hypotheses]) -> Hypotheses:
    """Join batches of hypotheses of one problem, model by model."""
    models = parts[0].models

    def join(tensors: Sequence[Tensor]) -> Tensor:
        apart = [tensor.reshape(models, -1, *tensor.shape[1:]) for tensor in tensors]
        return torch.cat(apart, dim=1).flatten(0, 1)

    return Hypotheses(
        {name: join([part.perms[name] for part in parts]) for name in parts[0].perms},
        join([part.model for part in parts]),
        join([part.objective for part in parts]),
        join([part.lineage for part in parts]),
        models,
    )


def joined(parts: Sequence[Hypotheses]) -> Hypotheses:
    """Join ranges of one batch, one after another."""
    if len(parts) == 1:
        return parts[0]
    return Hypotheses(
        {name: torch.cat([part.perms[name] for part in parts]) for name in parts[0].perms},
        torch.cat([part.model for part in parts]),
        torch.cat([part.objective for part in parts]),
        torch.cat([part.lineage for part in parts]),
        parts[0].models,
    )


def in_chunks(function: Callable[[slice], Tensor], batch: int, chunk: int) -> Tensor:
    """Apply `function` to ranges of at most `chunk` hypotheses and join the results."""
    step = max(chunk, 1)
    if batch <= step:
        return function(slice(0, batch))
    return torch.cat([function(slice(i, min(i + step, batch))) for i in range(0, batch, step)])
