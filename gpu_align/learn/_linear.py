"""EquivariantLinear: all linear maps between weights that commute with the symmetries."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_align._errors import InputError
from gpu_align._symmetry import PermutationSpec
from gpu_align.learn._cells import Cell, Features, check_features
from gpu_align.learn._narrow import Narrow
from gpu_align.learn._plan import (
    Place,
    Pools,
    Product,
    assembled,
    products,
    whole_places,
    whole_pools,
)
from gpu_align.learn._space import WeightSpace, space_of

Far = Literal["full", "low_rank", "none"]


class CellMap(nn.Module):
    """All affine maps between two sequences of cells that commute with the symmetries.

    Attributes:
        inner, outer: the cells.
        c_in, c_out: channels at each place of them.
    """

    def __init__(
        self,
        inner: Sequence[Cell],
        outer: Sequence[Cell],
        c_in: int,
        c_out: int,
        far: Far = "full",
        fixed_rank: int | None = None,
    ) -> None:
        super().__init__()
        _check(c_in, c_out, far)
        self.inner, self.outer, self.c_in, self.c_out = tuple(inner), tuple(outer), c_in, c_out
        is_near = _always if far == "full" else _is_near
        self.plan: list[Product] = products(outer, inner, is_near)
        self.constants: tuple[Place, ...] = whole_places(outer)
        self.narrow, self.widen = Narrow(inner, fixed_rank), Narrow(outer, fixed_rank)
        self.weights = nn.ParameterList(self._weight(product) for product in self.plan)
        self.bias = nn.Parameter(torch.zeros(sum(map(self._width, self.constants))))
        self.summary = whole_pools(inner) if far == "low_rank" else ()
        if self.summary:
            self.gather = nn.Linear(sum(self._pool_width(p.cell) for p in self.summary), c_out)
            self.spread = nn.Linear(c_out, len(self.bias), bias=False)
        self._scale()

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"{len(self.inner)} -> {len(self.outer)} cells, {self.c_in} -> {self.c_out} channels"

    def forward(self, features: Features) -> Features:
        """Map [b, *sizes, fixed * c_in] of each input cell to the output cells.

        Raises:
            InputError: the features are not those of the input cells.
        """
        check_features(features, self.inner, self.c_in)
        pools = Pools(self.narrow(features))
        parts: list[list[tuple[Place, Tensor]]] = [[] for _ in self.outer]
        self._hand_out(parts, self.constants, self._constant(pools))
        for product, weight in zip(self.plan, self.weights, strict=True):
            found = F.linear(pools.side_by_side(product.pools), weight)
            self._hand_out(parts, product.places, found)
        return tuple(self._cell(n, parts[n], features[0]) for n in range(len(self.outer)))

    def _cell(self, number: int, parts: list[tuple[Place, Tensor]], like: Tensor) -> Tensor:
        """Return an output cell; zeros where no map leads to it."""
        cell = self.outer[number]
        if not parts:
            return like.new_zeros(len(like), *cell.sizes, cell.fixed * self.c_out)
        return self.widen.back(number, assembled(cell, parts, len(like)))

    def _hand_out(
        self, parts: list[list[tuple[Place, Tensor]]], places: Sequence[Place], product: Tensor
    ) -> None:
        widths = [self._width(place) for place in places]
        for place, part in zip(places, product.split(widths, -1), strict=True):
            parts[place.cell].append((place, part))

    def _constant(self, pools: Pools) -> Tensor:
        """Return what is added to all entries of a class alike, [b or 1, k]."""
        if not self.summary:
            return self.bias[None]
        return self.spread(self.gather(pools.side_by_side(self.summary))) + self.bias

    def _width(self, place: Place) -> int:
        return self.widen.fixed[place.cell] * self.c_out

    def _pool_width(self, cell: int) -> int:
        return self.narrow.fixed[cell] * self.c_in

    @torch.no_grad()
    def _weight(self, product: Product) -> nn.Parameter:
        inner = sum(self._pool_width(pool.cell) for pool in product.pools)
        outer = sum(map(self._width, product.places))
        return nn.Parameter(torch.randn(outer, inner))

    @torch.no_grad()
    def _scale(self) -> None:
        """Divide the rows of each cell by the root of the number of its inputs."""
        inputs = [0] * len(self.outer)
        for product, weight in zip(self.plan, self.weights, strict=True):
            for place in product.places:
                inputs[place.cell] += weight.shape[1]
        for product, weight in zip(self.plan, self.weights, strict=True):
            rows = weight.split([self._width(place) for place in product.places])
            for place, own in zip(product.places, rows, strict=True):
                own /= math.sqrt(inputs[place.cell])


class EquivariantLinear(CellMap):
    """All affine maps from weights to weights of a spec that commute with its symmetries.

    A dense layer of every pair of cells, as far as the symmetries allow one: one matrix for each
    partition of their axes (see `dimension`), which acts on the fixed places and channels. Pools
    are means, so the scale does not depend on widths.

    Source: DWSNets (Navon et al., ICML 2023, section 5) for chains of Linear layers; here for any
    spec, and complete at the last layer too.
    """

    def __init__(
        self,
        spec: PermutationSpec | WeightSpace,
        c_in: int,
        c_out: int,
        *,
        far: Far = "full",
        fixed_rank: int | None = None,
    ) -> None:
        """Draw weights of variance 1 / inputs; biases are 0.

        Args:
            spec: of the networks, or their space.
            c_in: channels of the features.
            c_out: channels of the result.
            far: how cells without a common group meet. They do in their means only: by a matrix
                for every pair of cells ("full"), through c_out numbers of the whole network
                ("low_rank"), or not at all ("none").
            fixed_rank: the most fixed places that a cell has inside the layer: what has more is
                projected to so many, and back.

        Raises:
            InputError: an argument is not among these, or a number is below 1.
        """
        space = space_of(spec)
        super().__init__(space.cells, space.cells, c_in, c_out, far, fixed_rank)


def _check(c_in: int, c_out: int, far: str) -> None:
    if min(c_in, c_out) < 1:
        raise InputError(f"expected at least one channel, got c_in={c_in}, c_out={c_out}")
    if far not in ("full", "low_rank", "none"):
        raise InputError(f"expected far 'full', 'low_rank' or 'none', got {far!r}")


def _always(outer: Cell, inner: Cell) -> bool:
    return True


def _is_near(outer: Cell, inner: Cell) -> bool:
    shared = {axis.key for axis in outer.axes} & {axis.key for axis in inner.axes}
    return bool(shared) or outer == inner
