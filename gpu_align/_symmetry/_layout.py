"""From axis classes to the groups and the axes of a spec: what is free, its names and its place."""

from collections.abc import Mapping, Sequence

from gpu_align._symmetry._axis import Axis, Factor, Fixed, Segment, Units
from gpu_align._symmetry._classes import AxisClass, Structure
from gpu_align._symmetry._parents import find_parents
from gpu_align._symmetry._parts import Group
from gpu_align._symmetry._propagation import Traced


def layout(axis: AxisClass, names: Mapping[AxisClass, str]) -> Axis:
    """Return the Axis of a class, where `names` gives the group of each leaf that has one."""
    return Axis(tuple(_merge_fixed(segment) for segment in _segments(axis, names)))


def _segments(axis: AxisClass, names: Mapping[AxisClass, str]) -> list[Segment]:
    root = axis.find()
    if _is_still(root, names):
        return [(Fixed(root.size),)]
    if root.structure is None:
        return [(Units(root.size, names[root]),)]
    if root.structure is Structure.CONCAT:
        return [segment for part in root.parts for segment in _segments(part, names)]
    tail: list[Segment] = [()]
    for part in reversed(root.flat_parts(Structure.PRODUCT)):
        if len(tail) > 1 and _is_still(part, names):
            tail = tail * part.size
        else:
            inner = tail[0] if len(tail) == 1 else (Axis(tuple(map(_merge_fixed, tail))),)
            tail = [(*segment, *inner) for segment in _segments(part, names)]
    return tail


def _is_still(axis: AxisClass, names: Mapping[AxisClass, str]) -> bool:
    """Whether no group lies on an axis."""
    return names.keys().isdisjoint(axis.leaves())


def _merge_fixed(segment: Segment) -> Segment:
    merged: list[Factor | Axis] = []
    for part in segment:
        last = merged[-1] if merged else None
        if not isinstance(part, Fixed):
            merged.append(part)
        elif isinstance(last, Fixed):
            merged[-1] = Fixed(last.size * part.size)
        elif part.size != 1 or len(segment) == 1:
            merged.append(part)
    return tuple(merged) or (Fixed(1),)


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
