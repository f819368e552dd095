"""An outline of a spec for the eye: its groups, the modules they lie on, and words for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpu_align._symmetry._axis import Axis, Factor
from gpu_align._symmetry._parts import Pin
from gpu_align._symmetry._spec import PermutationSpec

_NO_RULE = " has no rule"
_UNIT_AXES = (0, 1)  # of a weight; those behind them are places of a kernel


@dataclass(frozen=True)
class Module:
    """A module with tensors, or a tensor outside of any module.

    Attributes:
        name: how it is called in the state dict.
        is_vector: whether none of its tensors has two axes, as in a norm.
        fixed: why units along one of the first two axes of its tensors stay where they are.
    """

    name: str
    is_vector: bool
    fixed: tuple[str, ...]


@dataclass(frozen=True)
class Span:
    """A group and the modules that it lies on.

    Attributes:
        name, size, parent, signed, scaled, fixed: of the `Group`.
        modules: numbers of the modules, in order.
    """

    name: str
    size: int
    parent: str | None
    signed: bool
    scaled: bool
    modules: tuple[int, ...]
    fixed: bool = False

    @property
    def gauge(self) -> str:
        """What the units may be multiplied by; empty for nothing."""
        return " + ".join(["sign"] * self.signed + ["scale"] * self.scaled)


@dataclass(frozen=True)
class Outline:
    """The modules in the order of the state dict and the groups, each child behind its parent."""

    modules: tuple[Module, ...]
    groups: tuple[Span, ...]

    def __post_init__(self) -> None:
        for span in self.groups:
            if not all(0 <= module < len(self.modules) for module in span.modules):
                raise ValueError(
                    f"group {span.name!r} lies on the modules {list(span.modules)}, expected "
                    f"numbers below {len(self.modules)}"
                )
            if span.parent is not None and span.parent not in self._sizes:
                raise ValueError(
                    f"group {span.name!r} has an unknown parent {span.parent!r}, expected one of "
                    f"{sorted(self._sizes)}"
                )

    def units(self, span: Span) -> int:
        """Return the number of units of a group, over all units of its parent."""
        return span.size * (1 if span.parent is None else self._sizes[span.parent])

    @property
    def movable(self) -> tuple[Span, ...]:
        """The groups whose units may be reordered."""
        return tuple(span for span in self.groups if not span.fixed)

    @property
    def signed_units(self) -> int:
        """Number of units that may be negated, each on its own."""
        return sum(self.units(span) for span in self.groups if span.signed)

    @property
    def scaled_units(self) -> int:
        """Number of units that may be multiplied by a positive number, each on its own."""
        return sum(self.units(span) for span in self.groups if span.scaled)

    def units_in_words(self, span: Span) -> str:
        """Return the number of units: `64`, `12, fixed`, or `64 in each of 12`."""
        if span.fixed:
            return f"{span.size}, fixed"
        if span.parent is None:
            return str(span.size)
        return f"{span.size} in each of {self._sizes[span.parent]}"

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {span.name: span.size for span in self.groups}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Outline":
        """Read `dataclasses.asdict` of an outline after its way through JSON.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        modules = (Module(**{**entry, "fixed": tuple(entry["fixed"])}) for entry in data["modules"])
        spans = (Span(**{**entry, "modules": tuple(entry["modules"])}) for entry in data["groups"])
        return cls(tuple(modules), tuple(spans))


def outline(spec: PermutationSpec) -> Outline:
    """Return which modules every group lies on, and where axes of units stay fixed."""
    tensors: dict[str, list[str]] = {}
    for name in spec.tensors:
        tensors.setdefault(_module(name), []).append(name)
    fixed: dict[str, dict[str, None]] = {module: {} for module in tensors}
    for pin in spec.pins:
        if pin.axis in _UNIT_AXES and pin.tensor in spec.tensors:
            fixed[_module(pin.tensor)][pin.reason] = None
    lies_on: dict[str, list[int]] = {name: [] for name in spec.groups}
    for number, names in enumerate(tensors.values()):
        for group in dict.fromkeys(g for name in names for g in spec.tensors[name].groups):
            lies_on[group].append(number)
    return Outline(
        modules=tuple(
            Module(module, all(len(spec.tensors[n].axes) < 2 for n in names), tuple(fixed[module]))
            for module, names in tensors.items()
        ),
        groups=tuple(_spans(spec, lies_on)),
    )


def _spans(spec: PermutationSpec, lies_on: Mapping[str, Iterable[int]]) -> Iterable[Span]:
    children: dict[str, list[str]] = {}
    for group in spec.groups.values():
        if group.parent is not None:
            children.setdefault(group.parent, []).append(group.name)
    for root in (group for group in spec.groups.values() if group.parent is None):
        for name in (root.name, *children.get(root.name, ())):
            group = spec.groups[name]
            yield Span(
                *(name, group.size, group.parent, group.signed, group.scaled),
                modules=tuple(lies_on[name]),
                fixed=group.fixed,
            )


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def axis_names(spec: PermutationSpec, group: str) -> list[str]:
    """Name the axes that a group lies on, with their layout where it is more than its units.

    Matrices come before vectors, for they tell which layers it joins.
    """
    names = []
    for tensor, number in sorted(
        spec.perm_to_axes(group), key=lambda m: len(spec.tensors[m[0]].axes) < 2
    ):
        names.append(axis_name(spec, tensor, number))
    return names


def axis_name(spec: PermutationSpec, tensor: str, number: int) -> str:
    """Name an axis, with its layout where it is more than one row of units or places."""
    shape = _shape(spec.tensors[tensor].axes[number])
    return f"{tensor}[{number}]" + ("" if shape.isdecimal() else f" ({shape})")


def _shape(axis: Axis) -> str:
    """Return the sizes of an axis as a formula: `4×8`, `16+16`, `4×(2+6)`."""
    return "+".join(
        "×".join(str(p.size) if isinstance(p, Factor) else f"({_shape(p)})" for p in segment)
        for segment in axis.segments
    )


def pins_by_reason(pins: Iterable[Pin]) -> dict[str, list[tuple[str, int]]]:
    """Return the fixed axes of each reason, the commonest first."""
    axes: dict[str, list[tuple[str, int]]] = {}
    for pin in pins:
        axes.setdefault(pin.reason, []).append((pin.tensor, pin.axis))
    return dict(sorted(axes.items(), key=lambda entry: -len(entry[1])))


def ops_without_rule(spec: PermutationSpec) -> list[str]:
    """Return the ops that pin what they touch because they have no rule."""
    pins = (*spec.pins, *spec.partial_pins)
    reasons = {part for pin in pins for part in pin.reason.split(", ")}
    return sorted(part.removesuffix(_NO_RULE) for part in reasons if part.endswith(_NO_RULE))
