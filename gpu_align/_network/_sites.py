"""Sites: the values of a network in which the units of groups are seen by what comes next."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from gpu_align._symmetry import Block, Factor, Op, TracedModel


@dataclass(frozen=True)
class Site:
    """A piece of a value in which the units of one group lie.

    Attributes:
        step: number of the op that computes the value, see `TracedModel.computed`.
        group: name of the group.
        signed: whether the values of a unit change sign with it.
        shape: that the value is brought to first.
        block: the piece.
    """

    step: int
    group: str
    signed: bool
    shape: tuple[int, ...]
    block: Block

    def units(self, value: Tensor, parents: tuple[str, ...]) -> Tensor:
        """Return what each unit is at each place of each example, [units, examples * places].

        Args:
            value: of the op.
            parents: the group and the one that it is inside of, if any, outermost first.
        """
        part = self.block.unfold(value.reshape(self.shape))
        groups = [factor.group for factor in self.block.factors]
        lead = [groups.index(name) for name in parents]
        rest = [number for number in range(len(groups)) if number not in lead]
        units = math.prod(part.shape[number] for number in lead)
        return part.permute(*lead, *rest).reshape(units, -1)


def lineage(model: TracedModel, group: str) -> tuple[str, ...]:
    """Return a group behind the one that it is inside of, if any."""
    parent = model.spec.groups[group].parent
    return (group,) if parent is None else (parent, group)


def find_sites(model: TracedModel) -> list[Site]:
    """Return where a traced network has the values of its groups that later layers read.

    An op reads a group if the units lie on a value that it takes and not on what it gives: a layer
    sums over them. Values that were only moved, cut or copied since they were computed count once.
    """
    numbers = {node: number for number, node in enumerate(model.computed)}
    read: dict[fx.Node, dict[str, None]] = {}
    for node in model.computed:
        for source in node.all_input_nodes:
            if source in numbers:
                groups = _groups(model, source) - _given(model, node)
                if groups and not _is_move(node):
                    read.setdefault(_origin(source, model, groups), {}).update(
                        dict.fromkeys(sorted(groups))
                    )
    return [
        site
        for node in sorted(read, key=numbers.__getitem__)
        for site in _sites_of(model, node, numbers[node], set(read[node]))
    ]


_MOVES = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "permute", "transpose", "t", "contiguous", "clone"),
        *("expand", "unsqueeze", "squeeze", "flatten", "unflatten", "select", "slice", "split"),
        *("split_with_sizes", "chunk", "unbind", "to", "_to_copy", "dropout", "detach", "alias"),
        *("narrow", "movedim", "type_as", "dropout_", "view_as", "expand_as", "tensor_split"),
    }
)
"""Ops whose outputs are entries of their first input."""


def _is_move(node: fx.Node) -> bool:
    op = Op(node)
    return op.is_item or op.name in _MOVES


def _origin(node: fx.Node, model: TracedModel, groups: set[str]) -> fx.Node:
    """Return the value that holds the same units and was computed, not only moved."""
    origin = node
    while _is_move(node):
        node = node.all_input_nodes[0]
        if model.layout(node) is None:
            continue  # several values, of which one was taken
        if not groups <= _groups(model, node):
            break
        origin = node
    return origin


def _groups(model: TracedModel, node: fx.Node) -> set[str]:
    """Return the groups on a value of floating point."""
    layout = model.layout(node)
    value = node.meta.get("val")
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return set(layout.groups) if layout is not None and is_float else set()


def _given(model: TracedModel, node: fx.Node) -> set[str]:
    """Return the groups on what an op gives, all of its outputs together."""
    layout = model.layout(node)
    if layout is not None:
        return set(layout.groups)
    return {group for user in node.users for group in _groups(model, user)}


def _sites_of(model: TracedModel, node: fx.Node, step: int, read: set[str]) -> Iterator[Site]:
    layout = model.layout(node)
    if layout is None or 0 in layout.shape:
        return
    for block in layout.blocks:
        found = _innermost(model, block)
        if found is not None and found.group in read:
            group = found.group or ""
            signed = model.spec.groups[group].signed and bool(found.power)
            yield Site(step, group, signed, layout.shape, block)


def _innermost(model: TracedModel, block: Block) -> Factor | None:
    """Return the factor whose units a block has: the only group in it but for its parent."""
    free = [factor for factor in block.factors if factor.group is not None]
    parents = {model.spec.groups[factor.group or ""].parent for factor in free}
    inner = [factor for factor in free if factor.group not in parents]
    if len(inner) != 1 or any(
        factor.group not in parents for factor in free if factor not in inner
    ):
        return None
    names = [factor.group for factor in free]
    return inner[0] if len(set(names)) == len(names) else None
