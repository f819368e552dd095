"""Phases: units in front of a sine whose bias may be shifted by half periods.

A sine whose argument has a bias of its own may have its units negated by that bias alone. So the
powers are walked through once more with the signs cut at these sines: what is tied to the free
signs behind one of them is what is negated with a shift. That must be what reads the units.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from gpu_align._symmetry._axis import Axis, Units
from gpu_align._symmetry._gauge._walk import Names, PowerWalk
from gpu_align._symmetry._memory import overlapping
from gpu_align._symmetry._op import Op
from gpu_align._symmetry._parts import Group, Phase
from gpu_align._symmetry._power import TensorPowers, Unknown
from gpu_align._symmetry._propagation import Traced
from gpu_align._symmetry._spec import PermutationSpec

_BIASED = ("linear", "conv1d", "conv2d", "conv3d")
_COPIES = ("clone", "contiguous", "detach", "alias", "dropout", "positive")
_FACTORS = ("mul", "multiply", "div", "divide", "true_divide")
_SUMS = ("add", "sub", "subtract")


def with_phases(
    spec: PermutationSpec, traced: Traced, names: Names, state: Mapping[str, Tensor]
) -> PermutationSpec:
    """Return a spec with the phases of its signed groups.

    Args:
        spec: the permutations, signs and scales.
        traced: a model in evaluation mode.
        names: leaf -> the name of its group.
        state: state-dict name -> tensor.
    """
    alone = _used_once(traced, state)
    sines = [node for node in traced.graph.nodes if Op(node).name == "sin"]
    shifts = {node: list(_shifts(node.args[0], 1.0, alone)) for node in sines}
    cut = [node for node, found in shifts.items() if found]
    if not cut:
        return spec
    free = {leaf: name for leaf, name in names.items() if leaf.is_free}
    walk = PowerWalk(free, cut)
    stored = {name: walk.stored(axes, state[name]) for name, axes in traced.tensors.items()}
    walk.run(traced, stored)
    groups = dict(spec.groups)
    for group in spec.groups.values():
        behind = {node: _sign_of(walk.found[node], group, free) for node in cut}
        for node, sign in behind.items():
            phase = next((p for p in shifts[node] if _lies_on(p, group, spec)), None)
            others = [other for n, other in behind.items() if n is not node]
            if sign is None or phase is None or any(_is_tied(sign, other) for other in others):
                continue
            if _reads(_Places(spec, stored, free, group.name), sign):
                groups[group.name] = replace(group, phase=phase)
    return replace(spec, groups=groups)


def _used_once(traced: Traced, state: Mapping[str, Tensor]) -> dict[fx.Node, str]:
    """Return the stored tensors that one op alone uses, and that share no memory."""
    uses = Counter({name: 0 for name in traced.stored.values()})
    for node, name in traced.stored.items():
        uses[name] += len(node.users)
    shared = overlapping(state)
    return {
        node: name
        for node, name in traced.stored.items()
        if uses[name] == 1 and name not in shared and torch.is_floating_point(state[name])
    }


def _shifts(value: object, factor: float, alone: Mapping[fx.Node, str]) -> Iterator[Phase]:
    """Yield the stored tensors that are added to the argument of a sine, each with half a period.

    Args:
        value: a node whose value nothing else uses.
        factor: by what it is multiplied on the way to the sine.
        alone: the tensors that only one op uses.
    """
    if not isinstance(value, fx.Node) or len(value.users) != 1:
        return
    if value in alone:
        yield Phase(alone[value], abs(math.pi / factor))
        return
    op = Op(value)
    to = op.arguments()
    if op.name in _BIASED:
        yield from _shifts(to.get("bias"), factor, alone)
    elif op.name in _COPIES or op.name in ("neg", "negative"):
        yield from _shifts(value.args[0], factor, alone)
    elif op.name in _SUMS and to.get("alpha", 1) == 1:
        yield from _shifts(to["self"], factor, alone)
        yield from _shifts(to["other"], factor, alone)
    elif op.name in _FACTORS and to.get("rounding_mode") is None:
        number = to["other"]
        if isinstance(number, int | float) and number and math.isfinite(number):
            scaled = factor * number if op.name.startswith("mul") else factor / number
            yield from _shifts(to["self"], scaled, alone)


def _lies_on(phase: Phase, group: Group, spec: PermutationSpec) -> bool:
    """Whether a tensor has exactly the units of a group, each made with its sign."""
    made = Axis(((Units(group.size, group.name, 1),),))
    bias = spec.tensors[phase.bias]
    return group.signed and bias.counted and bias.axes == (made,)


def _sign_of(powers: object, group: Group, names: Names) -> Unknown | None:
    """Return the free sign of a group's units in a value; None if they have none there."""
    if not isinstance(powers, TensorPowers):
        return None
    signs = [power.sign for power in powers.powers if names[power.leaf] == group.name]
    return signs[0] if len(signs) == 1 and not signs[0].zero else None


def _is_tied(sign: Unknown, other: Unknown | None) -> bool:
    return other is not None and sign.relative_to(other) is not None


@dataclass(frozen=True)
class _Places:
    """Where a group lies on the tensors of a spec, and the powers that it has there."""

    spec: PermutationSpec
    stored: Mapping[str, TensorPowers]
    names: Names
    group: str

    def powers(self) -> Iterator[tuple[set[int], Sequence[Unknown]]]:
        """Yield for each axis the powers in the spec, and the signs in the walk."""
        for name, tensor in self.spec.tensors.items():
            for axis, along in zip(tensor.axes, self.stored[name], strict=True):
                units = (f for f in axis.factors() if isinstance(f, Units))
                signs = [p.sign for p in along.powers if self.names[p.leaf] == self.group]
                yield {f.power for f in units if f.group == self.group}, signs


def _reads(places: _Places, sign: Unknown) -> bool:
    """Whether a sign is that of the places that read the units, power -1, and of no others."""
    for powers, signs in places.powers():
        tied = {_is_tied(sign, other) for other in signs}
        if tied not in (set(), {-1 in powers}) or {-1} < powers:
            return False
    return all(
        sum(block.units[n].power < 0 for n in block.numbers_of(places.group)) < 2
        for tensor in places.spec.tensors.values()
        for block in tensor.blocks
    )
