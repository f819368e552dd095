"""Examples held in memory, and batches of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from gpu_align._errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one shape.

    Attributes:
        inputs: what the model is called with: a tensor, a tuple of positional or a dict of keyword
            arguments; each tensor in it has a leading axis of examples.
        targets: [b, ...], or None where no loss is computed.
    """

    inputs: Any
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        if not (self.targets is None or isinstance(self.targets, Tensor)):
            raise InputError(
                f"expected targets as a tensor or None, got {type(self.targets).__name__}"
            )
        if not self._tensors:
            raise InputError(
                "expected inputs with a tensor in them, got "
                f"{type(self.inputs).__name__}; give a tensor, a tuple or a dict of tensors"
            )
        shapes = [tuple(tensor.shape) for tensor in self._tensors]
        if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
            what = "inputs" if self.targets is None else "inputs and targets"
            raise InputError(
                f"expected {what} with the same number of examples on their first axis, got the "
                f"shapes {', '.join(map(str, shapes))}"
            )

    def __len__(self) -> int:
        return len(self._tensors[0])

    def __getitem__(self, which: slice | Tensor) -> Self:
        """Return some of the examples; a slice shares their memory."""
        return self._mapped(lambda tensor: tensor[which])

    def to(self, device: str | torch.device) -> Self:
        """Return the batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device))

    @cached_property
    def form(self) -> object:
        """What batches that can be joined have in common: shapes of an example, dtypes, values."""
        leaves, structure = tree_flatten((self.inputs, self.targets))
        kinds = (
            (tuple(x.shape[1:]), x.dtype, x.device) if isinstance(x, Tensor) else repr(x)
            for x in leaves
        )
        return str(structure), tuple(kinds)

    def _mapped(self, change: Any) -> Self:
        def changed(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) else leaf

        return type(self)(tree_map(changed, self.inputs), changed(self.targets))

    @cached_property
    def _tensors(self) -> list[Tensor]:
        return [x for x in tree_leaves((self.inputs, self.targets)) if isinstance(x, Tensor)]


def joined(batches: Sequence[Batch]) -> Batch:
    """Return batches of one form as one."""
    if len(batches) == 1:
        return batches[0]

    def join(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    first, *others = ((batch.inputs, batch.targets) for batch in batches)
    return Batch(*tree_map(join, first, *others))


@dataclass(frozen=True, eq=False)
class Examples:
    """All examples of a part of the data, held in memory.

    Attributes:
        lots: one for each shape that examples have (texts of several lengths), none of them empty.
    """

    lots: tuple[Batch, ...]

    def __post_init__(self) -> None:
        if not self.lots or not all(map(len, self.lots)):
            raise InputError("there are no examples; give data with at least one")
        if len({lot.targets is None for lot in self.lots}) > 1:
            raise InputError("some batches have targets and some have none; give all or none")

    @classmethod
    def of(cls, inputs: object, targets: Tensor | None = None) -> Self:
        """Return examples of one shape."""
        return cls((Batch(inputs, targets),))

    @classmethod
    def gathered(cls, batches: Sequence[Batch]) -> Self:
        """Join those batches that have the same form, in the order of their first ones."""
        lots: dict[object, list[Batch]] = {}
        for batch in batches:
            lots.setdefault(batch.form, []).append(batch)
        return cls(tuple(joined(same) for same in lots.values()))

    def __len__(self) -> int:
        return sum(map(len, self.lots))

    @property
    def have_targets(self) -> bool:
        """Whether a loss can be computed."""
        return self.lots[0].targets is not None

    def batches(self, size: int) -> Iterator[Batch]:
        """Go through all examples; the last batch of a lot may be shorter.

        Raises:
            InputError: `size` is below 1.
        """
        if size < 1:
            raise InputError(f"expected batches of at least 1 example, got {size}")
        for lot in self.lots:
            for start in range(0, len(lot), size):
                yield lot[start : start + size]

    def equal_batches(self, most: int) -> Iterator[Batch]:
        """Go through examples in batches of one size for each lot: a model is traced once.

        Args:
            most: largest size; of sizes down to half of it, that which leaves the fewest examples
                over is taken, and these are left out.
        """
        for lot in self.lots:
            least = -(-len(lot) // most)
            counts = range(least, min(2 * least, len(lot)) + 1)
            count = min(counts, key=lambda number: len(lot) % number)
            size = len(lot) // count
            for start in range(0, count * size, size):
                yield lot[start : start + size]

    def take(self, count: int) -> Self:
        """Return the first examples, lot by lot; all of them if there are fewer.

        Raises:
            InputError: `count` is below 1.
        """
        if count < 1:
            raise InputError(f"expected at least 1 example to be taken, got {count}")
        lots = []
        for lot in self.lots:
            lots.append(lot[:count])
            count -= len(lots[-1])
            if count == 0:
                break
        return type(self)(tuple(lots))

    def subset(self, indices: Tensor) -> Self:
        """Return some examples in the order of `indices`, int64 [k], within each lot."""
        lots, start = [], 0
        for lot in self.lots:
            inside = indices[(indices >= start) & (indices < start + len(lot))] - start
            if len(inside):
                lots.append(lot[inside])
            start += len(lot)
        return type(self)(tuple(lots))

    def to(self, device: str | torch.device) -> Self:
        """Return the examples on a device."""
        return type(self)(tuple(lot.to(device) for lot in self.lots))
