"""`gpu-align inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gpu_align._atomic import atomic_write
from gpu_align._checkpoint import load_checkpoint
from gpu_align._cli._model import choose_spec, load_model
from gpu_align._cli._options import CHECKPOINT_HELP, InputShape, Json, Model, Seed, SpecFile
from gpu_align._cli._outputs import check_file
from gpu_align._cli._summary import print_written
from gpu_align._cli._terminal import (
    columns,
    console,
    display,
    facts,
    folded,
    print_json,
    print_line,
)
from gpu_align._errors import InputError
from gpu_align._symmetry import PermutationSpec

_SHOWN_MEMBERS = 4
_SHOWN_TENSORS = 3
_NO_RULE = " has no rule"


def inspect(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT", help=f"{CHECKPOINT_HELP} Or a .pt2 program, as --model."
        ),
    ] = None,
    model: Model = None,
    input_shape: InputShape = None,
    spec: SpecFile = None,
    save_spec: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the symmetries, for --spec.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show which units can be reordered, which axes cannot, and why.

    Looks at a checkpoint, at a model alone, or checks that both fit together.
    """
    if checkpoint is not None and checkpoint.suffix == ".pt2":
        if model is not None:
            raise InputError(f"two models: {checkpoint} and --model {model}; leave one out")
        checkpoint, model = None, str(checkpoint)
    if save_spec is not None:
        inputs = [path for path in (checkpoint, spec) if path is not None]
        check_file(save_spec, [".json"], reads=inputs)
    with display(quiet=False) as screen:
        screen.stage("finding symmetries")
        state = None if checkpoint is None else load_checkpoint(checkpoint).tensors
        found = choose_spec(spec, load_model(model, input_shape, seed), state)
        if state is not None:
            found.validate(state, "checkpoint")
    written = {} if save_spec is None else {"spec": str(save_spec)}
    if save_spec is not None:
        with atomic_write(save_spec) as temporary:
            temporary.write_text(found.to_json(), encoding="utf-8")
    if as_json:
        print_json({**_document(found), "written": written})
        return
    _print_spec(found)
    if written:
        print_written(written, "--save-spec")


def _document(spec: PermutationSpec) -> dict[str, Any]:
    groups = [
        {"name": name, "units": group.size, "members": [list(m) for m in spec.members(name)]}
        for name, group in spec.groups.items()
    ]
    pins = [{"reason": reason, "axes": axes} for reason, axes in _pins_by_reason(spec).items()]
    return {
        "schema": "gpu-align/inspect/1",
        "origin": spec.origin,
        "log10_symmetries": spec.log10_symmetries,
        "groups": groups,
        "pins": pins,
        "ties": dict(spec.ties),
        "ops_without_rule": _ops_without_rule(spec),
    }


def _print_spec(spec: PermutationSpec) -> None:
    units = sum(group.size for group in spec.groups.values())
    symmetries = f"10^{spec.log10_symmetries:.1f} permutations leave the function unchanged"
    screen = console()
    rows = {"symmetries": symmetries, "groups": f"{len(spec.groups)} of {units} units in all"}
    screen.print(facts({**rows, "origin": spec.origin} if spec.origin else rows))
    if spec.groups:
        table = columns("group", "units", "lies on", numbers=("units",))
        for name, group in spec.groups.items():
            members = [_member(spec, tensor, axis) for tensor, axis in spec.members(name)]
            table.add_row(name, str(group.size), folded(members, _SHOWN_MEMBERS))
        screen.print(table)
    pins = _pins_by_reason(spec)
    if pins:
        table = columns("fixed because of", "axes", "for instance", numbers=("axes",))
        for reason, axes in pins.items():
            names = [f"{tensor}[{axis}]" for tensor, axis in axes]
            table.add_row(reason, str(len(axes)), folded(names, _SHOWN_TENSORS))
        screen.print(table)
    for op in _ops_without_rule(spec):
        print_line(
            f'{op} has no rule, so what it touches is fixed; see "how to add an op rule" in '
            "CONTRIBUTING.md"
        )


def _member(spec: PermutationSpec, tensor: str, axis: int) -> str:
    """Name an axis of a tensor, with its layout where it is more than the group's units."""
    layout = spec.tensors[tensor].axes[axis]
    parts = ["×".join(str(factor.size) for factor in segment) for segment in layout.segments]
    shape = "+".join(parts)
    return f"{tensor}[{axis}]" if shape.isdecimal() else f"{tensor}[{axis}] ({shape})"


def _pins_by_reason(spec: PermutationSpec) -> Mapping[str, list[tuple[str, int]]]:
    """Return the fixed axes of each reason, the commonest first."""
    axes: dict[str, list[tuple[str, int]]] = {}
    for pin in spec.pins:
        axes.setdefault(pin.reason, []).append((pin.tensor, pin.axis))
    return dict(sorted(axes.items(), key=lambda entry: -len(entry[1])))


def _ops_without_rule(spec: PermutationSpec) -> list[str]:
    reasons = {part for pin in spec.pins for part in pin.reason.split(", ")}
    return sorted(part.removesuffix(_NO_RULE) for part in reasons if part.endswith(_NO_RULE))
