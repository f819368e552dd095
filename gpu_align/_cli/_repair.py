"""`gpu-align repair`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._options import (
    CHECKPOINT_HELP,
    DATA,
    DATA_HELP,
    MENDING,
    MERGING,
    OUTPUTS,
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
    Weights,
)
from gpu_align._cli._terminal import display, stdout_to_stderr


def repair(
    network: Annotated[Path, typer.Argument(metavar="A", help=CHECKPOINT_HELP)],
    out: Annotated[
        Path,
        typer.Option(
            *("--out", "-o"),
            metavar="OUT",
            rich_help_panel=OUTPUTS,
            help="Write the repaired network, like A but for the values.",
        ),
    ],
    data: Annotated[str, typer.Option(metavar="SOURCE", rich_help_panel=DATA, help=DATA_HELP)],
    as_json: Json = False,
    quiet: Quiet = False,
    log: Log = None,
    parents: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=MERGING,
            help="A network that A was merged from, its units in the order of A's; repeat it for "
            "each.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MERGING,
            help=f"What is done: {', '.join(MENDING)}. norms measures the statistics of batch "
            "norms anew; the others need --parents. By default repair with parents, else norms.",
        ),
    ] = None,
    weights: Weights = None,
    key: Key = None,
    model: Model = None,
    input_shape: InputShape = None,
    output: Output = None,
    loss: Loss = "auto",
    examples: Examples = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Set a merged network right on data: statistics of batch norms, and what averaging has lost.

    The mean of networks has smaller deviations than they have. Without --parents the statistics of
    batch norms are measured anew; with them every unit gets the mean and deviation of theirs, or
    every layer is fitted to what they give.
    """
    from gpu_align._cli._on_data import check_method, read_weights
    from gpu_align._cli._repairing import Repairing

    if method is not None:
        check_method(method, MENDING)
    repairing = Repairing(
        path=network,
        parents=parents or (),
        out=out,
        key=key,
        model=model,
        input_shape=input_shape,
        output=output,
        data=data,
        loss=loss,
        examples=examples,
        weights=read_weights(weights),
        seed=seed,
        device=device,
    )
    with display(quiet=quiet) as screen, stdout_to_stderr():
        done = repairing.run(method, screen)
    repairing.tell(done, as_json=as_json, quiet=quiet)
