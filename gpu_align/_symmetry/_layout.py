"""From axis classes to the groups and the axes of a spec: what is free, its names and its place."""

from collections.abc import Iterable, Mapping, Sequence

from gpu_align._symmetry._axis import Axis, Factor, Segment
from gpu_align._symmetry._classes import AxisClass, Structure
from gpu_align._symmetry._parents import find_parents
from gpu_align._symmetry._propagation import Traced
from gpu_align._symmetry._spec import Group

_REPEATED = "repeated around a concatenation"


def layout(axis: AxisClass, names: Mapping[AxisClass, str]) -> Axis:
    """Return the Axis of a class, where `names` gives the group of each leaf that has one."""
    return Axis(tuple(_merge_fixed(segment) for segment in _segments(axis, names)))


def make_expressible(axes: Iterable[AxisClass]) -> None:
    """Change what a sequence of products cannot say: a concatenation that is repeated.

    Queries, keys and values of each head side by side are such an axis. If the parts are alike
    they are tied, and the axis is a product; else what repeats them is pinned.
    """
    axes = list(axes)
    while any([_make_expressible(axis) for axis in axes]):
        pass


def _make_expressible(axis: AxisClass) -> bool:
    """Return whether classes were tied, which may have changed other axes."""
    root = axis.find()
    tied = any([_make_expressible(part) for part in root.parts])
    factors = root.flat_parts(Structure.PRODUCT)
    for number, factor in reversed(list(enumerate(factors))):
        around = [other for other in factors[:number] if not other.is_fixed]
        parts = factor.flat_parts(Structure.CONCAT)
        if not around or len(parts) == 1 or factor.is_fixed:
            continue
        alike = len({part.size for part in parts}) == 1
        if alike and all(leaf.pinned is None for leaf in factor.leaves()):
            extents = [AxisClass(len(parts), pinned=_REPEATED), AxisClass(parts[0].size)]
            factor.refine(Structure.PRODUCT, extents, _REPEATED)
            return True
        for other in around:
            other.pin(_REPEATED)
    return tied


def _segments(axis: AxisClass, names: Mapping[AxisClass, str]) -> list[Segment]:
    root = axis.find()
    if names.keys().isdisjoint(root.leaves()):
        return [(Factor(root.size),)]
    if root.structure is None:
        return [(Factor(root.size, names.get(root)),)]
    if root.structure is Structure.CONCAT:
        return [segment for part in root.parts for segment in _segments(part, names)]
    tail: list[Segment] = [()]
    for part in reversed(root.flat_parts(Structure.PRODUCT)):
        if len(tail) > 1:
            tail = tail * part.size
        else:
            tail = [(*segment, *tail[0]) for segment in _segments(part, names)]
    return tail


def _merge_fixed(segment: Segment) -> Segment:
    merged: list[Factor] = []
    for factor in segment:
        if factor.size == 1 and factor.group is None and len(segment) > 1:
            continue
        if merged and factor.group is None and merged[-1].group is None:
            merged[-1] = Factor(merged[-1].size * factor.size)
        else:
            merged.append(factor)
    return tuple(merged) or (Factor(1),)


def name_groups(traced: Traced) -> tuple[dict[AxisClass, str], dict[str, Group]]:
    """Find the groups, in the order in which they are used, parents before what is inside them.

    A group is named after the module that uses it first; one with others inside it after what the
    names of its modules have in common, as it is about all of these.

    Returns:
        Leaf -> name, and name -> group.
    """
    lies_on: dict[AxisClass, list[str]] = {}
    for name in traced.used:
        for leaf in (leaf for axis in traced.tensors[name] for leaf in axis.leaves()):
            lies_on.setdefault(leaf, []).append(name)
    free = [leaf for leaf in lies_on if leaf.is_free]
    stored = [traced.tensors[name] for name in traced.used]
    parents = find_parents(stored, traced.computed, free)
    leaves = dict.fromkeys(leaf for child in free for leaf in (parents.get(child, child), child))
    names: dict[AxisClass, str] = {}
    groups: dict[str, Group] = {}
    for leaf in leaves:
        modules = [name.rpartition(".")[0] or name for name in lies_on[leaf]]
        base = _common(modules) if leaf in parents.values() else ""
        names[leaf] = name = _unused(base or modules[0], groups)
        parent = parents.get(leaf)
        groups[name] = Group(
            name,
            leaf.size,
            parent=names[parent] if parent else None,
            fixed=leaf.pinned is not None,
        )
    return names, groups


def _common(modules: Sequence[str]) -> str:
    """Return the module that all of `modules` are in or are; empty if there is none."""
    paths = [module.split(".") for module in modules]
    shared = 0
    while all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return ".".join(paths[0][:shared])


def _unused(base: str, taken: Mapping[str, Group]) -> str:
    """Return `base`, or `base[1]`, `base[2]`, ... if it is taken."""
    base = base.replace("^", "_")  # a mark of its own in a spec
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}[{number}]"
    return name
