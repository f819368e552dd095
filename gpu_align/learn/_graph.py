"""The graph of a network's units: which cells connect which of them, and what these send."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align.learn._cells import Cell, Key

States = Mapping[Key, Tensor]
"""Features of units: key -> [b, units of the parent if it can move, units, c]."""


@dataclass(frozen=True)
class Node:
    """Units that a cell connects.

    Attributes:
        key: the units.
        axes: of the cell on which they lie: that of the parent, if there is one, then their own.
        odd: whether entries of the cell change their signs with them.
    """

    key: Key
    axes: tuple[int, ...]
    odd: bool


def nodes_of(cell: Cell) -> tuple[Node, ...]:
    """Return the units that a cell connects.

    Units of a parent are met in what is inside them; they are nodes of their own where nothing is,
    or where their signs count.
    """
    above = {axis.parent for axis in cell.axes}
    return tuple(
        Node(axis.key, (n,) if axis.parent is None else (axis.parent, n), axis.odd)
        for n, axis in enumerate(cell.axes)
        if n not in above or axis.odd
    )


def message(
    x: Tensor, nodes: Sequence[Node], target: int | None, even: States, odd: States
) -> Tensor:
    """Return what a cell sends to the units of one of its nodes.

    The sum over all other axes of the entries times the states of all other nodes, divided by the
    root of the number of summands. Of a weight it is W h in one direction, W^T h in the other.

    Args:
        x: the cell, [b, *sizes, f].
        nodes: of the cell; at least one that is not the target.
        target: number of one of them, or None for the network as a whole.
        even, odd: states of units; the second are negated with their units.

    Returns:
        [b, *sizes of the target's axes, f * c]
    """
    place, channel = x.ndim - 1, x.ndim
    operands: list[Tensor | list[int]] = [x, list(range(x.ndim))]
    for number, node in enumerate(nodes):
        if number != target:
            state = (odd if node.odd else even)[node.key]
            operands += [state, [0, *(n + 1 for n in node.axes), channel]]
    left = [] if target is None else [n + 1 for n in nodes[target].axes]
    summed = math.prod(x.shape[n] for n in range(1, place) if n not in left)
    sent: Tensor = torch.einsum(*operands, [0, *left, place, channel])
    return sent.flatten(-2) / math.sqrt(summed)


def is_alone(cell: Cell, node: Node) -> bool:
    """Say whether a cell has no other axes than those of a node."""
    return len(node.axes) == len(cell.axes)


def own_entries(x: Tensor, node: Node) -> Tensor:
    """Return the entries of a cell without other axes than a node's, [b, *sizes of these, f]."""
    return x if node.axes == tuple(sorted(node.axes)) else x.transpose(1, 2)


def magnitude(x: Tensor, node: Node) -> Tensor:
    """Return the root mean square over all other axes, [b, *sizes of the node's axes, f]."""
    others = [n + 1 for n in range(x.ndim - 2) if n not in node.axes]
    square = x.square()
    return (own_entries(square.mean(others) if others else square, node) + 1e-6).sqrt()


def is_loop(nodes: Sequence[Node]) -> bool:
    """Say whether the nodes of a cell are units and the same units again, as in a recurrence.

    Their signs cancel where a unit is connected to itself, or there are none.
    """
    if len(nodes) != 2 or any(len(node.axes) > 1 for node in nodes):
        return False
    return nodes[0].key == nodes[1].key and nodes[0].odd == nodes[1].odd


def loops(x: Tensor) -> Tensor:
    """Return the entries that connect each unit to itself, [b, n, f] of [b, n, n, f]."""
    return x.diagonal(dim1=1, dim2=2).mT
