"""Groups of a traced model: what is free, which group has which parent, and their names."""

from collections.abc import Iterator, Mapping, Sequence

from gpu_align._symmetry._classes import AxisClass
from gpu_align._symmetry._parents import find_parents
from gpu_align._symmetry._spec import Group
from gpu_align._symmetry._splits import TensorAxes


def name_groups(
    used: Sequence[str], tensors: Mapping[str, TensorAxes], computed: Sequence[TensorAxes]
) -> tuple[dict[AxisClass, str], dict[str, Group]]:
    """Find the groups, in the order in which they are used, parents before what is inside them.

    A group is named after the module that uses it first; one with others inside it after what the
    names of its modules have in common, as it is about all of these.

    Args:
        used: state-dict names in the order of use.
        tensors: state-dict name -> axes.
        computed: axes of all further tensors.

    Returns:
        Free leaf -> name, and name -> group.
    """
    lies_on = _tensors_of_leaves(used, tensors)
    parents = find_parents([*(tensors[name] for name in used), *computed], list(lies_on))
    leaves = dict.fromkeys(leaf for child in lies_on for leaf in (parents.get(child, child), child))
    names: dict[AxisClass, str] = {}
    groups: dict[str, Group] = {}
    for leaf in leaves:
        modules = [name.rpartition(".")[0] or name for name in lies_on[leaf]]
        base = _common(modules) if leaf in parents.values() else ""
        names[leaf] = name = _unused(base or modules[0], groups)
        parent = parents.get(leaf)
        groups[name] = Group(name, leaf.size, parent=names[parent] if parent else None)
    return names, groups


def _tensors_of_leaves(
    used: Sequence[str], tensors: Mapping[str, TensorAxes]
) -> dict[AxisClass, list[str]]:
    """Return the tensors on which each free leaf lies, in the order in which they are used."""
    found: dict[AxisClass, list[str]] = {}
    for name in used:
        for leaf in _free_leaves(tensors[name]):
            found.setdefault(leaf, []).append(name)
    return found


def _free_leaves(axes: TensorAxes) -> Iterator[AxisClass]:
    return (leaf for axis in axes for leaf in axis.leaves() if leaf.is_free)


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
