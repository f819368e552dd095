"""`gpu-align barrier`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._options import (
    CHECKPOINT_HELP,
    METRICS,
    OF_WEIGHTS,
    OUTPUTS,
    SEARCH,
    AlignerFile,
    Device,
    InputShape,
    Json,
    Key,
    Model,
    Output,
    Seed,
    SpecFile,
)
from gpu_align._cli._terminal import display, stdout_to_stderr

MEASURE = "Measurement"
DATA_HELP = (
    "What to measure on: digits, mnist:FOLDER, cifar10:FOLDER, FILE.npz (x, y, and x_test, y_test "
    "if there are), or package.module:loader or path/file.py:loader (an iterable of pairs; its "
    "code is run). Images are brought to the shape that the model takes."
)


def barrier(
    first: Annotated[
        Path, typer.Argument(metavar="A", help=f"{CHECKPOINT_HELP} It stays as it is.")
    ],
    second: Annotated[
        Path,
        typer.Argument(metavar="B", help="Checkpoint of the same architecture; aligned to A."),
    ],
    data: Annotated[str, typer.Option(metavar="SOURCE", rich_help_panel=MEASURE, help=DATA_HELP)],
    loss: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MEASURE,
            help="auto (by the targets), cross_entropy, mse, or package.module:function of outputs "
            "and targets.",
        ),
    ] = "auto",
    points: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=3,
            rich_help_panel=MEASURE,
            help="Points on the segment, its ends included.",
        ),
    ] = 25,
    plane: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            rich_help_panel=MEASURE,
            help="Measure the plane through A, B and B aligned too, on N x N points.",
        ),
    ] = None,
    statistics: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=2,
            rich_help_panel=MEASURE,
            help="Training examples on which statistics of batch norms are re-estimated.",
        ),
    ] = 2000,
    json_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", rich_help_panel=OUTPUTS, help="Write the result."),
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
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.log",
            rich_help_panel=OUTPUTS,
            help="Append what is done and said, with the time, for instance in a batch job.",
        ),
    ] = None,
    key: Key = None,
    second_key: Annotated[
        str | None,
        typer.Option("--b-key", metavar="KEY", help="The same for B, if it is not the same key."),
    ] = None,
    model: Model = None,
    input_shape: InputShape = None,
    output: Output = None,
    spec: SpecFile = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=SEARCH, help=f"How to look: {', '.join(OF_WEIGHTS)}."
        ),
    ] = "portfolio",
    aligner: AlignerFile = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SEARCH,
            help=f"What the distance is made of: {', '.join(METRICS)}.",
        ),
    ] = "l2",
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure the loss between A and B, before and after B is aligned to A.

    The barrier is the most by which the loss on the segment from A to B exceeds the line between
    its ends. Where alignment does not help, it is said what stands in its way, as far as it is
    known.
    """
    from gpu_align._align import Settings
    from gpu_align._cli._searches import make_search
    from gpu_align._cli._segment import Segment
    from gpu_align._device import choose_engine
    from gpu_align._problem import as_metric

    segment = Segment(
        networks=(first, second),
        keys=(key, key if second_key is None else second_key),
        data=data,
        loss=loss,
        points=points,
        plane=plane,
        statistics=statistics,
        spec=spec,
        model=model,
        input_shape=input_shape,
        output=output,
        json_file=json_file,
        report=report,
    )
    chosen = make_search(search, None, None, aligner=aligner)
    settings = Settings(chosen, as_metric(metric), choose_engine(device), seed)
    with display(quiet=quiet) as screen, stdout_to_stderr():
        result, written = segment.measure(settings, screen)
    segment.tell(result, written, as_json=as_json, quiet=quiet)
