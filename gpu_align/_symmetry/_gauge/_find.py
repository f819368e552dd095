"""Gauges: which groups have signs and scales, and their powers on every stored tensor.

One walk through the graph after the axes are known; `_power` says what is propagated, the rules of
`_rules` how ops speak about it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor, fx

from gpu_align._symmetry._axis import Axis, Factor, Units
from gpu_align._symmetry._classes import AxisClass, Structure, concat, product
from gpu_align._symmetry._gauge._walk import Names, PowerWalk
from gpu_align._symmetry._layout import layout
from gpu_align._symmetry._power import (
    AxisPowers,
    Power,
    TensorPowers,
    Unknown,
)
from gpu_align._symmetry._propagation import Traced
from gpu_align._symmetry._spec import PermutationSpec
from gpu_align._symmetry._tensor_spec import Block, TensorSpec

Layouts = Callable[[fx.Node], tuple[Axis, ...] | None]
"""Returns how the units of groups are laid out along the axes of a value; None without a tensor."""


def with_gauges(
    spec: PermutationSpec,
    traced: Traced,
    names: Names,
    state: Mapping[str, Tensor],
) -> tuple[PermutationSpec, Layouts]:
    """Return a spec with the signs and scales of its groups, and the layouts of all values.

    Of the powers of a group that are tied to each other, those on most tensors are kept. A group
    gets none if the units inside it have all that it could do.

    Args:
        spec: the permutations.
        traced: the axes of all values in the graph.
        names: leaf -> the name of its group.
        state: state-dict name -> tensor.
    """
    free = {leaf: name for leaf, name in names.items() if leaf.is_free}
    walk = PowerWalk(free)
    stored = {name: walk.stored(axes, state[name]) for name, axes in traced.tensors.items()}
    walk.run(traced, stored)
    occurrences: dict[AxisClass, list[_Occurrence]] = {leaf: [] for leaf in free}
    for name in traced.used:
        for power in stored[name].powers:
            occurrences[power.leaf].append(_Occurrence(name, power))
    gauges = {names[leaf]: _choose(lies_on) for leaf, lies_on in occurrences.items()}
    fixed = {leaf for leaf in names if leaf not in free}
    turns = {power: turn for gauge in gauges.values() for power, turn in gauge.turns.items()}
    with_all = replace(
        spec,
        groups={
            name: group
            if group.fixed
            else replace(group, signed=gauges[name].signed, scaled=gauges[name].scaled)
            for name, group in spec.groups.items()
        },
        tensors={
            name: _with_turns(tensor, stored[name], turns, fixed)
            for name, tensor in spec.tensors.items()
        },
    )
    implied = [name for name in with_all.groups if _is_implied(name, with_all)]
    kept = {leaf: gauges[name] for leaf, name in free.items() if name not in implied}

    def axes_of(node: fx.Node) -> tuple[Axis, ...] | None:
        powers = walk.found.get(node)
        if not isinstance(powers, TensorPowers):
            return None
        return tuple(_axis_of_value(along, names, kept, fixed) for along in powers)

    return _without(with_all, implied), axes_of


@dataclass(frozen=True)
class _Occurrence:
    """One place of a group on a stored tensor."""

    tensor: str
    power: Power


@dataclass(frozen=True)
class _Gauge:
    """Signs or scales of one group.

    Attributes:
        signed, scaled: which of them it has.
        turns: where they are seen: id of a Power -> 1 or -1.
        first: the power where the units are made; None without signs and scales.
    """

    signed: bool
    scaled: bool
    turns: Mapping[int, int]
    first: Power | None = None

    def turn(self, power: Power) -> int:
        """Return the power that a value has of this group's signs, or scales if it has no signs."""
        if self.first is None:
            return 0
        if self.signed:
            return int(not power.sign.zero and power.sign.relative_to(self.first.sign) is not None)
        return 0 if power.scale.zero else power.scale.relative_to(self.first.scale) or 0


def _choose(occurrences: Sequence[_Occurrence]) -> _Gauge:
    """Choose among the powers of one group that are tied to each other.

    Signs and scales go together if they are seen at the same places. The first place of all is
    where the units are made.
    """
    kinds: dict[tuple[int, ...], set[str]] = {}
    for kind in ("sign", "scale"):
        for tied in _equal_powers(occurrences, kind):
            kinds.setdefault(tied, set()).add(kind)
    if not kinds:
        return _Gauge(False, False, {})

    def extent(tied: tuple[int, ...]) -> tuple[int, int]:
        return len({occurrences[number].tensor for number in tied}), len(kinds[tied])

    best = max(kinds, key=extent)
    powers = [occurrences[number].power for number in best]
    first = powers[0].scale
    return _Gauge(
        signed="sign" in kinds[best],
        scaled="scale" in kinds[best],
        turns={id(power): power.scale.relative_to(first) or 1 for power in powers},
        first=powers[0],
    )


def _equal_powers(occurrences: Sequence[_Occurrence], kind: str) -> Iterable[tuple[int, ...]]:
    """Return the numbers of the places where powers are equal or opposite, if they are not 0."""
    tied: dict[int, list[int]] = {}
    for number, occurrence in enumerate(occurrences):
        power: Unknown = getattr(occurrence.power, kind)
        if not power.zero:
            tied.setdefault(id(power.find()[0]), []).append(number)
    return [tuple(numbers) for numbers in tied.values()]


def _with_turns(
    tensor: TensorSpec, powers: TensorPowers, turns: Mapping[int, int], fixed: Set[AxisClass]
) -> TensorSpec:
    """Write the powers of a stored tensor into its axes."""
    axes = []
    for axis, along in zip(tensor.axes, powers, strict=True):
        found = [turns.get(id(power), 0) for power in along.powers]
        axes.append(_written(axis, along, found, fixed) if any(found) else axis)
    return replace(tensor, axes=tuple(axes))


def _axis_of_value(
    along: AxisPowers, names: Names, gauges: Mapping[AxisClass, _Gauge], fixed: Set[AxisClass]
) -> Axis:
    """Return the layout of one axis of a value, with the powers that its units have there."""
    axis = layout(along.axis, names)
    found = [gauges[p.leaf].turn(p) if p.leaf in gauges else 0 for p in along.powers]
    return _written(axis, along, found, fixed) if any(found) else axis


def _written(axis: Axis, along: AxisPowers, powers: Sequence[int], fixed: Set[AxisClass]) -> Axis:
    """Return an axis with powers, given one for each place of a group on the class.

    A place is repeated where a concatenation is part of a product, so the class is laid out once
    more with the number of the place for a name, or with an empty one for that of a fixed group.
    """
    numbers = map(str, range(len(powers)))
    names: dict[AxisClass, str] = {}
    own = dict.fromkeys(along.leaves, numbers) | dict.fromkeys(fixed, itertools.repeat(""))
    marked = layout(_mark(along.axis, own, names), names)
    marks = marked.factors()

    def powered(factor: Factor) -> Factor:
        mark = next(marks)
        if not (isinstance(factor, Units) and isinstance(mark, Units) and mark.group):
            return factor
        return replace(factor, power=powers[int(mark.group)])

    return axis.replaced(powered)


def _mark(
    axis: AxisClass, own: Mapping[AxisClass, Iterator[str]], names: dict[AxisClass, str]
) -> AxisClass:
    """Copy a class, each place of a group a leaf of its own with the next of the group's names."""
    root = axis.find()
    if root.structure is None:
        copy = AxisClass(root.size, root.pinned)
        if root in own:
            names[copy] = next(own[root])
        return copy
    parts = [_mark(part, own, names) for part in root.parts]
    return product(parts) if root.structure is Structure.PRODUCT else concat(parts)


def _is_implied(name: str, spec: PermutationSpec) -> bool:
    """Whether the units inside a group have all that its own signs and scales can do."""
    group = spec.groups[name]
    inside = [
        child
        for child in spec.groups.values()
        if child.parent == name and child.signed >= group.signed and child.scaled >= group.scaled
    ]
    if not inside or not (group.signed or group.scaled):
        return False
    blocks = [block for tensor in spec.tensors.values() for block in tensor.blocks]
    return any(
        all(_power_of(name, block) == _power_of(child.name, block) for block in blocks)
        for child in inside
    )


def _power_of(name: str, block: Block) -> int:
    return sum(block.units[number].power for number in block.numbers_of(name))


def _without(spec: PermutationSpec, names: Sequence[str]) -> PermutationSpec:
    """Return a spec in which these groups have neither signs nor scales."""

    def cleared(factor: Factor) -> Factor:
        if isinstance(factor, Units) and factor.group in names:
            return replace(factor, power=0)
        return factor

    tensors = {
        name: replace(tensor, axes=tuple(axis.replaced(cleared) for axis in tensor.axes))
        for name, tensor in spec.tensors.items()
    }
    groups = {
        name: replace(group, signed=False, scaled=False) if name in names else group
        for name, group in spec.groups.items()
    }
    return replace(spec, groups=groups, tensors=tensors)
