"""Sites: the values of a network in which the units of groups are seen by what comes next."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from gpu_align._symmetry import Block, Op, PermutationSpec, TracedModel, Units


@dataclass(frozen=True)
class Site:
    """A piece of a value in which the units of one group lie.

    Attributes:
        step: number of the op that computes the value, see `TracedModel.computed`.
        group: name of the group.
        signed: whether the values of a unit change sign with it.
        order: of the axes of the value, into which it is brought first.
        shape: that it is brought to then.
        block: the piece.
    """

    step: int
    group: str
    signed: bool
    order: tuple[int, ...]
    shape: tuple[int, ...]
    block: Block

    def units(self, value: Tensor, parents: tuple[str, ...]) -> Tensor:
        """Return what each unit is at each place of each example, [units, examples * places].

        Args:
            value: of the op.
            parents: the group and the one that it is inside of, if any, outermost first.
        """
        return rows_of(value.permute(self.order).reshape(self.shape), self.block, parents)


def rows_of(tensor: Tensor, block: Block, groups: tuple[str, ...]) -> Tensor:
    """Return a block of a tensor with one row for each unit of the groups, outermost first."""
    part = block.unfold(tensor)
    lead = [block.numbers_of(name)[0] for name in groups]
    rest = [number for number in range(len(block.factors)) if number not in lead]
    units = math.prod(part.shape[number] for number in lead)
    return part.permute(*lead, *rest).reshape(units, -1)


def lineage(spec: PermutationSpec, group: str) -> tuple[str, ...]:
    """Return a group behind the one that it is inside of, if any."""
    parent = spec.groups[group].parent
    return (group,) if parent is None else (parent, group)


def find_sites(model: TracedModel) -> list[Site]:
    """Return the values of a traced network in which the units of its groups can be compared.

    These are the values that later layers read: an op reads a group if the units lie on a value
    that it takes and not on what it gives, as it sums over them. Values that were only moved, cut
    or copied since they were computed count once. A group that is read nowhere on its own, such as
    heads that share their keys, has the values in which it first occurs.

    A group has no site where its units lie beside those of an unrelated group, whose order is not
    known either (hidden units over the tokens of each channel), and where no value is seen: inside
    of a recurrent op of several layers. Of a group with others inside its units only these have.
    """
    numbers = {node: number for number, node in enumerate(model.computed)}
    sites = list(_sites_on(model, _read(model, numbers), numbers))
    missing = set(model.spec.groups) - {site.group for site in sites}
    sites += _sites_on(model, _made(model, numbers, missing), numbers)
    return sorted(sites, key=lambda site: site.step)


def _read(model: TracedModel, numbers: dict[fx.Node, int]) -> dict[fx.Node, set[str]]:
    """Return the values that are read, and of which groups."""
    read: dict[fx.Node, set[str]] = {}
    for node in model.computed:
        if _is_move(node):
            continue
        given = _given(model, node)
        for source in node.all_input_nodes:
            groups = _groups(model, source) - given
            if source in numbers and groups:
                read.setdefault(_origin(source, model, groups), set()).update(groups)
    return read


def _made(
    model: TracedModel, numbers: dict[fx.Node, int], groups: set[str]
) -> dict[fx.Node, set[str]]:
    """Return the values in which groups first occur."""
    made: dict[fx.Node, set[str]] = {}
    for node in model.computed:
        sources = (source for source in node.all_input_nodes if source in numbers)
        fresh = (_groups(model, node) & groups).difference(*(_groups(model, s) for s in sources))
        if fresh:
            made[node] = fresh
    return made


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


def _sites_on(
    model: TracedModel, values: dict[fx.Node, set[str]], numbers: dict[fx.Node, int]
) -> Iterator[Site]:
    for node, groups in values.items():
        layout = model.layout(node)
        if layout is None or 0 in layout.shape:
            continue
        order = _order(tuple(node.meta["val"].shape), layout.shape)
        if order is None:
            continue
        for block in layout.blocks:
            factor = innermost(model.spec, block)
            if factor is not None and factor.group in groups:
                signed = model.spec.groups[factor.group].signed and factor.power != 0
                yield Site(numbers[node], factor.group, signed, order, layout.shape, block)


def _order(given: tuple[int, ...], laid_out: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the order of axes after which a reshape gives the layout; None if it is not known.

    Axes that were once joined may lie apart: the final states of all layers, [layers, batch,
    units], are laid out as [layers * units, batch, 1].
    """
    identity = tuple(range(len(given)))
    if len(given) != len(laid_out):
        return identity
    apart = [n for n in identity if given[n] != laid_out[n]]
    if not apart or apart == list(range(apart[0], apart[-1] + 1)):
        return identity
    joined = [n for n in apart if laid_out[n] > 1]
    if len(joined) != 1:
        return None
    groups = ((n,) if n not in apart else apart if n == joined[0] else () for n in identity)
    return tuple(axis for group in groups for axis in group)


def innermost(spec: PermutationSpec, block: Block) -> Units | None:
    """Return the factor whose units a block has: the only group in it but for its parent."""
    names = [factor.group for factor in block.units.values()]
    parents = {spec.groups[name].parent for name in names}
    inner = [factor for factor in block.units.values() if factor.group not in parents]
    if len(inner) != 1 or len(set(names)) < len(names):
        return None
    return inner[0] if set(names) == set(lineage(spec, inner[0].group)) else None
