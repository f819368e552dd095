"""What `inspect` says of a spec."""

from collections.abc import Sequence
from typing import Any

from gpu_align._cli._summary import INSIDE
from gpu_align._cli._terminal import columns, console, facts, print_line
from gpu_align._errors import folded
from gpu_align._symmetry import (
    Outline,
    PermutationSpec,
    Pin,
    axis_name,
    axis_names,
    ops_without_rule,
    outline,
    pins_by_reason,
)

_SHOWN_MEMBERS = 4
_SHOWN_MEMBERS_OF_MANY = 2
_MANY_GROUPS = 20
_SHOWN_TENSORS = 3


def document(spec: PermutationSpec) -> dict[str, Any]:
    """Return what `--json` prints."""
    found = outline(spec)
    groups = [
        {
            "name": span.name,
            "units": spec.units(span.name),
            "size": span.size,
            "parent": span.parent,
            "signed": span.signed,
            "scaled": span.scaled,
            "fixed": span.fixed,
            **_phase(spec, span.name),
            "members": [list(member) for member in spec.perm_to_axes(span.name)],
        }
        for span in found.groups
    ]
    pins, partial_pins = (
        [{"reason": reason, "axes": axes} for reason, axes in pins_by_reason(some).items()]
        for some in (spec.pins, spec.partial_pins)
    )
    return {
        "schema": "gpu-align/inspect/1",
        "origin": spec.origin,
        "log10_symmetries": spec.log10_symmetries,
        "signed_units": found.signed_units,
        "scaled_units": found.scaled_units,
        "norm_scales": len(spec.norm_scales),
        "groups": groups,
        "pins": pins,
        "outputs": dict(spec.outputs),
        "partial_pins": partial_pins,
        "ties": dict(spec.ties),
        "ops_without_rule": ops_without_rule(spec),
    }


def _phase(spec: PermutationSpec, group: str) -> dict[str, Any]:
    """Return what the document says of a group's phase; nothing without one."""
    phase = spec.phases.get(group)
    return {} if phase is None else {"phase": {"bias": phase.bias, "shift": phase.shift}}


def print_spec(spec: PermutationSpec) -> None:
    """Print the facts, the groups, and what stays fixed."""
    found = outline(spec)
    screen = console()
    screen.print(facts(_facts(spec, found)))
    if found.groups:
        _print_groups(spec, found)
    _print_pins(spec, "fixed because of", spec.pins)
    _print_pins(spec, "partly fixed because of", spec.partial_pins)
    for line in outputs_that_pin(spec):
        print_line(line)
    for op in ops_without_rule(spec):
        print_line(
            f'{op} has no rule, so what it touches is fixed; see "how to add an op rule" in '
            "CONTRIBUTING.md"
        )


def outputs_that_pin(spec: PermutationSpec) -> list[str]:
    """Say of each output that is a by-product how many units it pins.

    The others are those with logits in their names; without such, the first.
    """
    wanted = [name for name in spec.outputs if "logits" in name] or list(spec.outputs)[:1]
    options = " ".join(f"--output {name}" for name in wanted)
    return [
        f"graph output {name} pins {units} units; {options} would free them"
        for name, units in spec.outputs.items()
        if units and name not in wanted
    ]


def _print_pins(spec: PermutationSpec, title: str, pins: Sequence[Pin]) -> None:
    if not pins:
        return
    table = columns(title, "axes", "for instance", numbers=("axes",))
    for reason, axes in pins_by_reason(pins).items():
        names = [axis_name(spec, tensor, axis) for tensor, axis in axes]
        table.add_row(reason, str(len(axes)), folded(names, _SHOWN_TENSORS))
    console().print(table)


def _facts(spec: PermutationSpec, found: Outline) -> dict[str, str]:
    """Return name -> value, without what there is none of."""
    units = sum(found.units(span) for span in found.movable)
    inside = sum(span.parent is not None for span in found.groups)
    groups = f"{len(found.movable)} of {units} units in all"
    rows = {
        "symmetries": f"10^{spec.log10_symmetries:.1f} permutations leave the function unchanged",
        "groups": f"{groups}, {inside} of them inside others" if inside else groups,
    }
    if found.signed_units:
        rows["signs"] = f"2^{found.signed_units} sign flips of single units leave it unchanged too"
    if found.scaled_units:
        rows["scales"] = f"{found.scaled_units} units may be multiplied by any positive number"
    if spec.phases:
        shiftable = sum(map(spec.units, spec.phases))
        rows["phases"] = f"the biases of {shiftable} units may be shifted by half periods"
    if spec.norm_scales:
        rows["norm scales"] = (
            f"the rows of {_layers(len(spec.norm_scales))} may be multiplied by positive numbers, "
            "for a batch norm divides them out"
        )
    if spec.origin:
        rows["origin"] = spec.origin
    return rows


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _print_groups(spec: PermutationSpec, found: Outline) -> None:
    """Print the groups, each child indented below its parent."""
    has_gauge = any(span.gauge for span in found.groups)
    titles = ["group", "units", *(["gauge"] if has_gauge else []), "lies on"]
    table = columns(*titles, numbers=("units",))
    shown = _SHOWN_MEMBERS_OF_MANY if len(found.groups) > _MANY_GROUPS else _SHOWN_MEMBERS
    for span in found.groups:
        name = span.name if span.parent is None else f"{INSIDE}{span.name}"
        members = folded(axis_names(spec, span.name), shown)
        more = " + phase" if span.name in spec.phases else ""
        gauge = [span.gauge + more] if has_gauge else []
        table.add_row(name, found.units_in_words(span), *gauge, members)
    console().print(table)
    if any(span.parent for span in found.groups):
        print_line("indented: units inside each unit of the group above, which go where it goes")
    if has_gauge:
        print_line("gauge: units may also be negated (sign) or multiplied by a number > 0 (scale)")
    for name, phase in spec.phases.items():
        print_line(
            f"phase of {name}: {phase.bias} may be shifted by multiples of {phase.shift:.6g}, half "
            "a period; what reads the unit is negated for each"
        )
