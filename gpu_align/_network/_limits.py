"""Limits: how many examples an exported program takes at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from gpu_align._network._examples import Batch
from gpu_align._symmetry import bounds


@dataclass(frozen=True)
class Limits:
    """How many examples are run at once.

    A module takes any number of them, a program those that it was exported for: as many as the
    example inputs had, unless dynamic shapes were asked for.

    Attributes:
        least: 1 or more.
        most: None for any number.
    """

    least: int = 1
    most: int | None = None

    def __str__(self) -> str:
        """Say it in a few words."""
        examples = "1 example" if self.least == 1 else f"{self.least} examples"
        return f"batches of {examples}{'' if self.are_fixed else ' or more'}"

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """Return those of a module, which may be that of a program."""
        sizes = set(_batch_sizes(module))
        if len(sizes) != 1:
            return cls()  # there is none, or the first axes are not those of examples
        least, most = sizes.pop()
        return cls(max(least, 1), most)

    @property
    def are_fixed(self) -> bool:
        """Whether there is one size."""
        return self.least == self.most

    def allow(self, count: int) -> bool:
        """Whether so many examples are taken."""
        return self.least <= count and (self.most is None or count <= self.most)

    def nearest(self, count: int) -> int:
        """Return the number that is taken, as near to another one as may be."""
        return max(count if self.most is None else min(count, self.most), self.least)

    def filled(self, batch: Batch) -> Batch:
        """Return a batch with as many examples as are taken: the first ones, or again from them."""
        count = self.nearest(len(batch))
        if count == len(batch):
            return batch
        first = next(x for x in tree_leaves(batch.inputs) if isinstance(x, Tensor))
        return batch[torch.arange(count, device=first.device) % len(batch)]

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """Cut a batch into such that are taken; the last is filled up with examples of its own."""
        size = self.nearest(len(batch))
        for start in range(0, len(batch), size):
            yield self.filled(batch[start : start + size])


def _batch_sizes(module: nn.Module) -> Iterator[tuple[int, int | None]]:
    """Yield the bounds of the first axis of each tensor that the module of a program takes."""
    if not isinstance(module, fx.GraphModule):
        return
    for node in module.graph.find_nodes(op="placeholder"):
        value: Any = node.meta.get("val")
        if isinstance(value, Tensor) and value.ndim:
            found = bounds(value.shape[0])
            if found is not None:
                yield found
