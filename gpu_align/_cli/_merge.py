"""`gpu-align merge`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._options import (
    CHECKPOINT_HELP,
    DATA,
    DATA_HELP,
    MERGING,
    METRICS,
    OF_WEIGHTS,
    ON_DATA,
    OUTPUTS,
    PLAIN,
    SEARCH,
    AlignerFile,
    Device,
    Examples,
    InputShape,
    Json,
    Key,
    Log,
    Loss,
    Model,
    Output,
    Quiet,
    Seed,
    SpecFile,
    Weights,
)
from gpu_align._cli._terminal import display, stdout_to_stderr


def merge(
    networks: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [C ...]",
            help=f"{CHECKPOINT_HELP} The units of OUT are in the order of A's.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            *("--out", "-o"),
            metavar="OUT",
            rich_help_panel=OUTPUTS,
            help="Write the merged network, like A but for the values.",
        ),
    ],
    json_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", rich_help_panel=OUTPUTS, help="Write what was tried as JSON."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", rich_help_panel=OUTPUTS, help="Write a page with figures."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    log: Log = None,
    key: Key = None,
    model: Model = None,
    input_shape: InputShape = None,
    output: Output = None,
    spec: SpecFile = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", rich_help_panel=DATA, help=DATA_HELP)
    ] = None,
    loss: Loss = "auto",
    examples: Examples = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MERGING,
            help=f"How to merge: {', '.join(PLAIN)} or, on data, {', '.join(ON_DATA)}. auto tries "
            "several on the data and takes the best; without data it is average.",
        ),
    ] = "auto",
    weights: Weights = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SEARCH,
            help=f"How to look for the order of the units: {', '.join(OF_WEIGHTS)}; by default "
            "annealing, or descent for wide or many networks.",
        ),
    ] = None,
    aligner: AlignerFile = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SEARCH,
            help=f"What the distance is made of: {', '.join(METRICS)}.",
        ),
    ] = "l2",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=MERGING,
            help="Continue the merge that the same command began and that was interrupted.",
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Merge networks of one architecture into one.

    Their units are brought into the order of A's and their parameters averaged; on data, what the
    mean has lost is set right. With --data, several ways are tried, and the one with the lowest
    loss on held-back data is written. Without, a lower distance need not be a better network.

    Ctrl-C ends it, and nothing is written but what is done: it is kept in a file beside OUT
    (OUT.search), also now and then while it runs; the same command with --resume goes on from
    there, and writes what it would have written. The file is removed once OUT is written.
    """
    from gpu_align._align import Settings
    from gpu_align._cli._merging import Merging
    from gpu_align._cli._on_data import check_method, read_weights
    from gpu_align._cli._searches import make_search
    from gpu_align._device import choose_engine
    from gpu_align._problem import as_metric
    from gpu_align._search import Portfolio

    check_method(method, (*PLAIN, *ON_DATA))
    merging = Merging(
        paths=networks,
        out=out,
        json_file=json_file,
        report=report,
        resume=resume,
        key=key,
        model=model,
        input_shape=input_shape,
        output=output,
        spec=spec,
        data=data,
        loss=loss,
        examples=examples,
        weights=read_weights(weights),
    )
    chosen = None
    if search or aligner:
        chosen = make_search(search or "learned", None, None, aligner=aligner) or Portfolio()
    settings = Settings(chosen, as_metric(metric), choose_engine(device), seed)
    with display(quiet=quiet) as screen, stdout_to_stderr():
        done = merging.run(method, settings, screen)
    merging.tell(done, as_json=as_json, quiet=quiet)
