"""TensorSpec: the axes of one tensor, and the blocks that they cut it into."""

import itertools
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from gpu_align._symmetry._axis import Axis, Factor, Piece, Units


@dataclass(frozen=True)
class Block:
    """A piece of a tensor that is a product of factors: one piece of every axis."""

    pieces: tuple[Piece, ...]

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The factors of all axes, one after another."""
        return tuple(factor for piece in self.pieces for factor in piece.factors)

    @cached_property
    def units(self) -> dict[int, Units]:
        """The factors that are the units of groups, by their number among all."""
        return {n: factor for n, factor in enumerate(self.factors) if isinstance(factor, Units)}

    def numbers_of(self, group: str) -> list[int]:
        """Return where the units of a group are among the factors: nowhere, once, or more often."""
        return [n for n, factor in self.units.items() if factor.group == group]

    def unfold(self, tensor: Tensor) -> Tensor:
        """Return the piece of a tensor as a view with one axis per factor.

        Axes before those of the spec, such as that of several models, are kept before them.
        """
        first = tensor.ndim - len(self.pieces)
        sizes, strides = list(tensor.shape[:first]), list(tensor.stride()[:first])
        offset = tensor.storage_offset()
        for piece, step in zip(self.pieces, tensor.stride()[first:], strict=True):
            sizes += [factor.size for factor in piece.factors]
            strides += [step * stride for stride in piece.strides]
            offset += step * piece.start
        return tensor.as_strided(sizes, strides, offset)


@dataclass(frozen=True)
class TensorSpec:
    """The axes of one tensor; `counted` says that it is a parameter, not a buffer.

    Buffers (running statistics) are permuted with their units but do not count in a distance.
    """

    axes: tuple[Axis, ...]
    counted: bool = True

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape that a tensor must have."""
        return tuple(axis.size for axis in self.axes)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups on any axis, without repetition."""
        return tuple(dict.fromkeys(name for axis in self.axes for name in axis.groups))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The pieces of the tensor, one for each combination of pieces of its axes."""
        return tuple(map(Block, itertools.product(*(axis.pieces() for axis in self.axes))))
