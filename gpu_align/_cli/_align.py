"""`gpu-align align`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gpu_align._align import AlignmentResult, align_state_dicts, function_check
from gpu_align._checkpoint import load_checkpoint
from gpu_align._cli._keeping import (
    keeping,
    make_store,
    tell_how_to_continue,
    write_and_discard,
)
from gpu_align._cli._model import choose_spec, load_model
from gpu_align._cli._options import (
    CHECKPOINT_HELP,
    OUTPUTS,
    SEARCH,
    Device,
    InputShape,
    Json,
    Key,
    Model,
    Seed,
    SpecFile,
)
from gpu_align._cli._outputs import Outputs
from gpu_align._cli._searches import NAMES, make_search
from gpu_align._cli._summary import print_summary, print_written
from gpu_align._cli._terminal import display, print_json, stdout_to_stderr, warn
from gpu_align._device import choose_engine
from gpu_align._errors import GpuAlignError
from gpu_align._problem import METRICS, AlignmentProblem, as_metric
from gpu_align._search import Budget
from gpu_align._status import Status


def align(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help=f"{CHECKPOINT_HELP} Its units are reordered.")
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="Checkpoint of the same architecture; it stays."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="OUT",
            rich_help_panel=OUTPUTS,
            help="Write the reordered SOURCE, like the input but for the order of the units.",
        ),
    ] = None,
    permutation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            rich_help_panel=OUTPUTS,
            help="Write the permutation, for `gpu-align apply`.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            rich_help_panel=OUTPUTS,
            help="Write the result, for `gpu-align report`.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", rich_help_panel=OUTPUTS, help="Write a page with figures."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Annotated[
        bool,
        typer.Option(
            *("--quiet", "-q"), rich_help_panel=OUTPUTS, help="Print warnings and errors only."
        ),
    ] = False,
    key: Key = None,
    target_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The same for TARGET, if it is not the same key."),
    ] = None,
    model: Model = None,
    input_shape: InputShape = None,
    spec: SpecFile = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=SEARCH, help=f"How to look: {', '.join(NAMES)}."
        ),
    ] = "portfolio",
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SEARCH,
            help=f"What the distance is made of: {', '.join(METRICS)}.",
        ),
    ] = "l2",
    width: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SEARCH,
            help="Hypotheses kept by layerwise, beam and recombination.",
        ),
    ] = None,
    starts: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SEARCH,
            help="Hypotheses that descent, frank-wolfe and annealing begin from.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=SEARCH,
            help="Time for the search; a portfolio uses all of it, other searches may end before.",
        ),
    ] = None,
    sweeps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SEARCH,
            help="Most steps of the search. Unlike seconds, the same result each time.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=SEARCH,
            help="Continue the search that the same command began and that was interrupted. "
            "--seconds and --sweeps may change; they count from the beginning.",
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find the order of SOURCE's units that brings it closest to TARGET.

    The reordered network computes the same function as SOURCE.

    Ctrl-C ends the search; the best order found by then is written all the same, and the exit code
    is 1. The search itself is kept in a file beside the first output (OUT.search), also now and
    then while it runs; the same command with --resume continues it, and ends as if it had never
    been interrupted. The file is removed once the outputs are written.
    """
    outputs = Outputs(out=out, permutation=permutation, json_file=json_file, report=report)
    chosen_search = make_search(search, width, starts)
    chosen_metric = as_metric(metric)
    budget = Budget(sweeps=sweeps, seconds=seconds)
    engine = choose_engine(device)
    store = make_store(outputs, resume)
    with display(quiet=quiet) as screen, stdout_to_stderr():
        screen.stage("reading checkpoints")
        source_file = load_checkpoint(source, key=key)
        target_file = load_checkpoint(target, key=key if target_key is None else target_key)
        outputs.check(source_file, target_file, spec)
        screen.stage("finding symmetries")
        named = load_model(model, input_shape, seed)
        symmetries = choose_spec(spec, named, target_file.tensors)
        source_file = source_file.named_like(symmetries.keys)
        target_state = target_file.named_like(symmetries.keys).tensors
        screen.stage("preparing the search")
        with keeping(store):
            [outcome] = align_state_dicts(
                [source_file.tensors],
                target_state,
                symmetries,
                search=chosen_search,
                metric=chosen_metric,
                engine=engine,
                seed=seed,
                budget=budget,
                progress=screen.search,
                checks=[None if named is None else function_check(named.module, named.inputs)],
                store=store,
            )
            result = outcome.unwrap()
            _refuse_wrong(result)
            if report is not None and result.status is not Status.INTERRUPTED:
                screen.stage("widening the beam for the report")
                problem = AlignmentProblem(
                    source_file.tensors, target_state, symmetries, metric=metric
                )
                result = with_beam_widths(result, problem)
            screen.stage("writing")
            title = f"{source.name} to {target.name}"
            written, failure = write_and_discard(outputs, result, source_file, title, store)
    warnings = list(source_file.warnings) if "out" in written else []
    if named is None and spec is None:
        warnings.append(UNCHECKED)
    for warning in warnings:
        warn(warning)
    if as_json:
        names = {"source": str(source), "target": str(target), "written": written}
        print_json({**result.to_json(), **names, "warnings": warnings})
    elif not quiet:
        print_summary(result, source, target)
        if written or outputs.state is None:
            print_written(written, "-o, --permutation or --json-file")
    if failure is not None or result.status is Status.INTERRUPTED:
        tell_how_to_continue(store, None if "out" in written else out)
    if failure is not None:
        raise failure
    if result.status is Status.INTERRUPTED:
        raise typer.Exit(1)


UNCHECKED = (
    "the function was not checked, because no model was given: the names were read as a plain "
    "chain of layers. If the model has skip connections or grouped layers, the result computes "
    "another function; pass --model and --input-shape to be sure"
)


def with_beam_widths(result: AlignmentResult, problem: AlignmentProblem) -> AlignmentResult:
    """Return the result with the study of beam widths that the report draws."""
    # Figures are slow to import, and nothing else needs them.
    from gpu_align._report import beam_width_study

    rows = beam_width_study(problem, seed=result.seed)
    return replace(result, studies={**result.studies, "beam_width": rows})


def _refuse_wrong(result: AlignmentResult) -> None:
    """Fail before anything is written if the outputs have changed."""
    if result.function_preserved is False:
        raise GpuAlignError(
            "the reordered network does not compute the same outputs (relative difference "
            f"{result.function_difference:.3g}), so nothing was written; please report it with the "
            "output of `gpu-align inspect --json`"
        )
