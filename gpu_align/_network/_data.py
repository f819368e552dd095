"""Data of a network: what is fitted on, what is chosen on, and what is only reported on."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._network._batches import is_pair, pair_of, read_batches
from gpu_align._network._examples import Examples
from gpu_align._network._images import fits, fitted
from gpu_align._network._sources import FORMS, Parts, read_source

MOST = 10_000
"""How many examples of an iterable are read by default.

They are held in memory, and an iterable may have no end. A mean over 10,000 examples is known to a
hundredth of the deviation between examples.
"""


@dataclass(frozen=True)
class Data:
    """Examples in three parts.

    Attributes:
        fit: what is measured and fitted on.
        held: what is chosen on: a part of the training data that is held back.
        test: what is only reported on; None if there is none.
    """

    fit: Examples
    held: Examples
    test: Examples | None = None

    @classmethod
    def of(cls, source: object, *, seed: int = 0, held: float = 0.2, most: int = MOST) -> Self:
        """Read data, and hold a part back that is drawn at random, so that order does no harm.

        Args:
            source: a text or path (see `read_source`), a pair (x, y) of tensors, or an iterable of
                batches, such as a `DataLoader`: pairs (inputs, targets), dicts of keyword
                arguments in which "labels" are the targets, inputs alone, or a `Batch`. Examples
                are taken as training data, and Data as they are.
            seed: of the draw, and of torch's generator while a loader is read.
            held: the share that is held back, between 0 and 1.
            most: how many examples of an iterable are read, the first ones.

        Raises:
            InputError: it cannot be read, or has too few examples.
        """
        if isinstance(source, cls):
            return source
        if not 0 < held < 1:
            raise InputError(f"expected a share of held-back examples within 0 .. 1, got {held}")
        if most < 2:
            raise InputError(f"expected at least 2 examples to be read, got most={most}")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            named = isinstance(source, str | os.PathLike)
            found = read_source(str(source)) if named else source
            if isinstance(found, cls):
                return found
            parts = found if isinstance(found, Parts) else Parts(_examples(found, most))
        fit, kept = split(parts.train, held, seed)
        return cls(fit, kept, parts.test)

    def fitted(self, shape: Sequence[int]) -> Self:
        """Return the data with images fitted to a model; see `fitted`."""
        test = None if self.test is None else fitted(self.test, shape)
        if fits(self.fit, shape):
            return type(self)(self.fit, self.held, test)
        return type(self)(fitted(self.fit, shape), fitted(self.held, shape), test)


def split(examples: Examples, held: float, seed: int) -> tuple[Examples, Examples]:
    """Draw the examples that are held back.

    Returns:
        The others and those held back, disjoint, each in the order of the draw.

    Raises:
        InputError: one of the two would be empty.
    """
    total = len(examples)
    back = round(held * total)
    if not 0 < back < total:
        raise InputError(
            f"too few examples: {total}, of which {back} would be held back; both parts need "
            "at least one, so give more data or another share"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator, device="cpu")
    return examples.subset(order[back:]), examples.subset(order[:back])


def _examples(source: Any, most: int) -> Examples:
    if isinstance(source, Examples):
        return source
    if isinstance(source, tuple) and is_pair(source):
        return Examples((pair_of(source),))
    alone = isinstance(source, str | bytes | Mapping | Tensor | np.ndarray)
    if isinstance(source, Iterable) and not alone:
        return read_batches(source, most)
    raise InputError(
        f"expected data as a pair (x, y) of tensors, an iterable of batches or a text ({FORMS}), "
        f"got {type(source).__name__}; a Dataset goes into a DataLoader"
    )
