"""How a linear layer is computed: pools that outputs share, products, and where these are added."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align.learn._cells import Cell, Features
from gpu_align.learn._patterns import links


@dataclass(frozen=True, order=True)
class Pool:
    """An input cell on the diagonal of equal axes, its mean over classes of axes.

    Attributes:
        cell: number of the input cell.
        inner: the class of each axis.
        kept: the classes that are left, in the order of the result.
    """

    cell: int
    inner: tuple[int, ...]
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a product is added: to all entries of a cell that have its linked classes.

    Attributes:
        cell: number of the output cell.
        outer: the class of each axis.
        linked: the classes along which the product varies.
    """

    cell: int
    outer: tuple[int, ...]
    linked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Product:
    """One product: all pools side by side, times a matrix, cut into what each place gets."""

    pools: tuple[Pool, ...]
    places: tuple[Place, ...]


def products(
    outer: Sequence[Cell], inner: Sequence[Cell], is_near: Callable[[Cell, Cell], bool]
) -> list[Product]:
    """Return the products of the whole basis; places that read the same pools share one.

    Args:
        outer: the output cells.
        inner: the input cells.
        is_near: whether the maps from an input cell (second) to an output cell are taken.
    """
    read: dict[Place, set[Pool]] = {}
    for (o, to), (i, of) in itertools.product(enumerate(outer), enumerate(inner)):
        for link in links(to.axes, of.axes) if is_near(to, of) else ():
            place = Place(o, link.outer, tuple(number for number, _ in link.linked))
            pool = Pool(i, link.inner, tuple(number for _, number in link.linked))
            read.setdefault(place, set()).add(pool)
    shared: dict[tuple[Pool, ...], list[Place]] = {}
    for place, pools in read.items():
        shared.setdefault(tuple(sorted(pools)), []).append(place)
    return [Product(pools, tuple(places)) for pools, places in shared.items()]


def whole_pools(cells: Sequence[Cell]) -> tuple[Pool, ...]:
    """Return the pools of cells that leave no axis: their invariant linear maps."""
    return tuple(Pool(n, link.inner) for n, c in enumerate(cells) for link in links((), c.axes))


def whole_places(cells: Sequence[Cell]) -> tuple[Place, ...]:
    """Return the places at which a constant can be added: the invariant weights."""
    return tuple(Place(n, link.outer) for n, c in enumerate(cells) for link in links(c.axes, ()))


class Pools:
    """The pools of features, each computed once when it is first asked for."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._known: dict[Pool, Tensor] = {}

    def __getitem__(self, pool: Pool) -> Tensor:
        """Return a pool [b, *sizes of its kept classes, k]."""
        if pool not in self._known:
            self._known[pool] = self._computed(pool)
        return self._known[pool]

    def side_by_side(self, pools: Sequence[Pool]) -> Tensor:
        """Return pools of the same sizes joined along the channels."""
        found = [self[pool] for pool in pools]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    def _computed(self, pool: Pool) -> Tensor:
        every = range(len(set(pool.inner)))
        in_order = tuple(sorted(pool.kept))
        if pool.kept != in_order:
            axes = (in_order.index(number) + 1 for number in pool.kept)
            return self[Pool(pool.cell, pool.inner, in_order)].permute(0, *axes, -1)
        dropped = next((number for number in every if number not in pool.kept), None)
        if dropped is None:
            return _diagonal(self._features[pool.cell], pool.inner)
        # From the mean over one class fewer, which others have asked for as a rule.
        kept = tuple(sorted((*pool.kept, dropped)))
        wider = self[Pool(pool.cell, pool.inner, kept)]
        axis = kept.index(dropped) + 1
        # The small result is divided: the gradient of a sum is not written out.
        return wider.sum(axis) / wider.shape[axis]


def _diagonal(x: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Return the entries at which axes of a class are equal, one axis for each class."""
    if len(set(classes)) == len(classes):
        return x
    last = len(classes) + 1
    inputs = [last, *classes, last + 1]
    return torch.einsum(x, inputs, [last, *dict.fromkeys(classes), last + 1])


def assembled(cell: Cell, parts: Sequence[tuple[Place, Tensor]], batch: int) -> Tensor:
    """Return a cell from what its places get.

    Args:
        cell: the output cell.
        parts: places, with [b or 1, *sizes of the linked classes, k].
        batch: b.

    Returns:
        [b, *sizes, k]
    """
    spread = [(place, _spread(cell, place, part)) for place, part in parts]
    plain = [part for place, part in spread if len(set(place.outer)) == len(place.outer)]
    whole = _sum(sorted(plain, key=torch.Tensor.numel))
    if whole is None:
        zeros = torch.zeros((), dtype=spread[0][1].dtype, device=spread[0][1].device)
        whole = zeros.expand(1, *cell.sizes, spread[0][1].shape[-1])
    whole = whole.expand(batch, *cell.sizes, whole.shape[-1])
    on_diagonals = [item for item in spread if len(set(item[0].outer)) < len(item[0].outer)]
    if on_diagonals:
        whole = whole.clone()
    for place, part in on_diagonals:
        _diagonal(whole, place.outer).add_(part)
    return whole


def _spread(cell: Cell, place: Place, part: Tensor) -> Tensor:
    """Return a part with an axis for each class of its place, of size 1 if it is not linked."""
    sizes = dict(zip(place.outer, cell.sizes, strict=True))
    shape = [size if number in place.linked else 1 for number, size in sizes.items()]
    return part.reshape(len(part), *shape, part.shape[-1])


def _sum(parts: list[Tensor]) -> Tensor | None:
    """Return the sum of parts that are broadcast, the small ones first; None of none."""
    rest = []
    while parts:
        part, *parts = parts
        for number, other in enumerate(parts):
            if all(a <= b for a, b in zip(part.shape, other.shape, strict=True)):
                parts[number] = other + part
                break
        else:
            rest.append(part)
    return sum(rest[1:], start=rest[0]) if rest else None
