"""`gpu-align inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpu_align._cli._options import (
    CHECKPOINT_HELP,
    InputShape,
    Json,
    Key,
    Model,
    Output,
    Seed,
    SpecFile,
)
from gpu_align._cli._terminal import display, print_json, print_written, stdout_to_stderr
from gpu_align._errors import InputError

if TYPE_CHECKING:
    from gpu_align._symmetry import PermutationSpec


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
    output: Output = None,
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
    from gpu_align._checkpoint import load_checkpoint, rename
    from gpu_align._cli._model import choose_spec, load_model
    from gpu_align._cli._outputs import check_file
    from gpu_align._cli._symmetries import document, print_spec

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
        beside = [checkpoint] if checkpoint is not None and spec is None else []
        traced = load_model(model, input_shape, seed, output, beside=beside, state=state)
        found = choose_spec(spec, traced, state)
        if state is not None:
            found.validate(rename(state, found.keys).state, "checkpoint")
        screen.stage("writing")
        written = _write(found, save_spec, report, named)
    if as_json:
        print_json({**document(found), "written": written})
        return
    print_spec(found)
    if written:
        print_written(written, "--save-spec or --report")


def _write(
    spec: "PermutationSpec", save_spec: Path | None, report: Path | None, named: str
) -> dict[str, str]:
    """Write the files that are wanted; return kind -> path."""
    from gpu_align._checkpoint import atomic_write

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
