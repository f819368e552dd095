"""`gpu-align inspect`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gpu_align._checkpoint import atomic_write, load_checkpoint, rename
from gpu_align._cli._model import choose_spec, load_model
from gpu_align._cli._options import CHECKPOINT_HELP, InputShape, Json, Key, Model, Seed, SpecFile
from gpu_align._cli._outputs import check_file
from gpu_align._cli._summary import INSIDE, print_written
from gpu_align._cli._terminal import (
    columns,
    console,
    display,
    facts,
    folded,
    print_json,
    print_line,
    stdout_to_stderr,
)
from gpu_align._errors import InputError
from gpu_align._symmetry import (
    Outline,
    PermutationSpec,
    member_names,
    ops_without_rule,
    outline,
    pins_by_reason,
)

_SHOWN_MEMBERS = 4
_SHOWN_MEMBERS_OF_MANY = 2
_MANY_GROUPS = 20
_SHOWN_TENSORS = 3


def inspect(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT", help=f"{CHECKPOINT_HELP} Or a .pt2 program, as --model."
        ),
    ] = None,
    key: Key = None,
    model: Model = None,
    input_shape: InputShape = None,
    spec: SpecFile = None,
    save_spec: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the symmetries, for --spec.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page with a picture of the groups."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show which units can be reordered, which axes cannot, and why.

    Looks at a checkpoint, at a model alone, or checks that both fit together.
    """
    named = next((str(name) for name in (checkpoint, model, spec) if name is not None), "")
    if checkpoint is not None and checkpoint.suffix == ".pt2":
        if model is not None:
            raise InputError(f"two models: {checkpoint} and --model {model}; leave one out")
        checkpoint, model = None, str(checkpoint)
    held = None if checkpoint is None else load_checkpoint(checkpoint, key=key)
    inputs = [*(held.files if held else ()), *([spec] if spec else ())]
    if save_spec is not None:
        check_file(save_spec, [".json"], reads=inputs)
    if report is not None:
        check_file(report, [".html", ".htm"], reads=inputs)
    with display(quiet=False) as screen, stdout_to_stderr():
        screen.stage("finding symmetries")
        state = None if held is None else held.tensors
        found = choose_spec(spec, load_model(model, input_shape, seed), state)
        if state is not None:
            found.validate(rename(state, found.keys).state, "checkpoint")
        screen.stage("writing")
        written = _write(found, save_spec, report, named)
    if as_json:
        print_json({**_document(found), "written": written})
        return
    _print_spec(found)
    if written:
        print_written(written, "--save-spec or --report")


def _write(
    spec: PermutationSpec, save_spec: Path | None, report: Path | None, named: str
) -> dict[str, str]:
    """Write the files that are wanted; return kind -> path."""
    written = {}
    if save_spec is not None:
        with atomic_write(save_spec) as temporary:
            temporary.write_text(spec.to_json(), encoding="utf-8")
        written["spec"] = str(save_spec)
    if report is not None:
        # Figures are slow to import, and few runs want them.
        from gpu_align._report import write_symmetries

        write_symmetries(spec, report, title=f"Symmetries of {named}")
        written["report"] = str(report)
    return written


def _document(spec: PermutationSpec) -> dict[str, Any]:
    found = outline(spec)
    groups = [
        {
            "name": span.name,
            "units": spec.units(span.name),
            "size": span.size,
            "parent": span.parent,
            "signed": span.signed,
            "scaled": span.scaled,
            "members": [list(member) for member in spec.members(span.name)],
        }
        for span in found.groups
    ]
    pins = [{"reason": reason, "axes": axes} for reason, axes in pins_by_reason(spec).items()]
    return {
        "schema": "gpu-align/inspect/1",
        "origin": spec.origin,
        "log10_symmetries": spec.log10_symmetries,
        "signed_units": found.signed_units,
        "scaled_units": found.scaled_units,
        "norm_scales": len(spec.norm_scales),
        "groups": groups,
        "pins": pins,
        "ties": dict(spec.ties),
        "ops_without_rule": ops_without_rule(spec),
    }


def _print_spec(spec: PermutationSpec) -> None:
    found = outline(spec)
    screen = console()
    screen.print(facts(_facts(spec, found)))
    if found.groups:
        _print_groups(spec, found)
    pins = pins_by_reason(spec)
    if pins:
        table = columns("fixed because of", "axes", "for instance", numbers=("axes",))
        for reason, axes in pins.items():
            names = [f"{tensor}[{axis}]" for tensor, axis in axes]
            table.add_row(reason, str(len(axes)), folded(names, _SHOWN_TENSORS))
        screen.print(table)
    for op in ops_without_rule(spec):
        print_line(
            f'{op} has no rule, so what it touches is fixed; see "how to add an op rule" in '
            "CONTRIBUTING.md"
        )


def _facts(spec: PermutationSpec, found: Outline) -> dict[str, str]:
    """Return name -> value, without what there is none of."""
    units = sum(found.units(span) for span in found.groups)
    inside = sum(span.parent is not None for span in found.groups)
    groups = f"{len(found.groups)} of {units} units in all"
    rows = {
        "symmetries": f"10^{spec.log10_symmetries:.1f} permutations leave the function unchanged",
        "groups": f"{groups}, {inside} of them inside others" if inside else groups,
    }
    if found.signed_units:
        rows["signs"] = f"2^{found.signed_units} sign flips of single units leave it unchanged too"
    if found.scaled_units:
        rows["scales"] = f"{found.scaled_units} units may be multiplied by any positive number"
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
        members = folded(member_names(spec, span.name), shown)
        gauge = [span.gauge] if has_gauge else []
        table.add_row(name, found.units_in_words(span), *gauge, members)
    console().print(table)
    if any(span.parent for span in found.groups):
        print_line("indented: units inside each unit of the group above, which go where it goes")
    if has_gauge:
        print_line("gauge: units may also be negated (sign) or multiplied by a number > 0 (scale)")
