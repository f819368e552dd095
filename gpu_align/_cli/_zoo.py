"""`gpu-align zoo`: align, inspect and make collections of networks."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._options import (
    OUTPUTS,
    SEARCH,
    SYMMETRIES,
    Device,
    InputShape,
    Json,
    Log,
    Model,
    Output,
    Quiet,
    Seed,
)

ENGINE = "Engine"
LAYOUTS = ("shards", "same")
KINDS = ("siren", "classifier")


def align(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder or a glob of checkpoints, trials of Ray Tune, folders of Hugging Face, "
            "a safetensors file with a stack of models, a folder of these, or a tar of any.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="The folder of the output.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="A checkpoint, several for several architectures, or what is made of a sample: "
            "medoid or barycentre, which is the default.",
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUTS,
            help="shards: stacks of models with an index; same: as in SOURCE.",
        ),
    ] = "shards",
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", rich_help_panel=OUTPUTS, help="Write a page with figures."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a model could not be aligned.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    log: Log = None,
    model: Model = None,
    input_shape: InputShape = None,
    output: Output = None,
    spec: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.json",
            rich_help_panel=SYMMETRIES,
            help="Symmetries written by `inspect --save-spec`; repeat it for several "
            "architectures.",
        ),
    ] = None,
    runs: Annotated[
        bool,
        typer.Option(
            "--runs",
            help="The checkpoints in each folder are of one training run, and get the same "
            "permutation; those in a trial of Ray Tune always do.",
        ),
    ] = False,
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The one of a training run on which its permutation is found: last, first or "
            "its name.",
        ),
    ] = "last",
    stacked: Annotated[
        bool | None,
        typer.Option(
            "--stacked/--single",
            help="Safetensors files are stacks of models, or single ones; told by their shapes.",
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option(metavar="N", min=1, help="Models that a target is made of.")
    ] = 256,
    search: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SEARCH,
            help="How to look; see `gpu-align align`. portfolio is closer and takes a hundred "
            "times as long.",
        ),
    ] = "descent",
    metric: Annotated[
        str,
        typer.Option(metavar="NAME", rich_help_panel=SEARCH, help="What the distance is made of."),
    ] = "l2",
    seed: Seed = 0,
    device: Device = "auto",
    engine: Annotated[
        str,
        typer.Option(metavar="local|ray", rich_help_panel=ENGINE, help="Who does the work."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=ENGINE,
            help="Of the Ray cluster, such as auto or HOST:6379; by default one on this machine.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=ENGINE,
            help="Processes at work; by default one for each GPU, else for each processor.",
        ),
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, rich_help_panel=ENGINE, help="Models that are done at a stroke."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=ENGINE,
            help="Go on with what the same command has begun in OUT.",
        ),
    ] = False,
) -> None:
    """Align a collection of networks of any size, and say for each how close it came.

    Work is done shard by shard; what is done is kept, whatever ends the command, and --resume
    leaves it as it is. A network that cannot be aligned is a row of OUT/index.parquet with its
    reason, and a warning.
    """
    from gpu_align._cli._zoo_align import Aligning

    aligning = Aligning(
        source=source,
        out=out,
        target=target or ["barycentre"],
        layout=layout,
        report=report,
        model=model,
        input_shape=input_shape,
        output=output,
        spec=spec or [],
        runs=runs,
        checkpoint=checkpoint,
        stacked=stacked,
        sample=sample,
        search=search,
        metric=metric,
        seed=seed,
        device=device,
        engine=engine,
        address=address,
        workers=workers,
        shard=shard,
        resume=resume,
    )
    found = aligning.run(quiet=quiet)
    aligning.tell(found, as_json=as_json, quiet=quiet)
    if found.failed and (strict or not found.aligned):
        raise typer.Exit(1)


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="As for `zoo align`, or what that has written.")
    ],
    runs: Annotated[
        bool, typer.Option("--runs", help="The checkpoints in each folder are of one run.")
    ] = False,
    stacked: Annotated[
        bool | None,
        typer.Option("--stacked/--single", help="Safetensors files are stacks, or single models."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a collection consists of: families, counts, sizes, damaged files.

    Of an aligned collection, whether it is whole.
    """
    from gpu_align._cli._terminal import display
    from gpu_align._cli._zoo_align import told
    from gpu_align._cli._zoo_contents import tell_contents
    from gpu_align._zoo import inspect_zoo

    with display(quiet=as_json) as screen:
        found = inspect_zoo(source, stacked=stacked, runs=runs, progress=told(screen))
    tell_contents(source, found, as_json=as_json)


def make(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the zoo.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="siren: sine networks of images; classifier: MLPs on the images."
        ),
    ] = "siren",
    networks: Annotated[int, typer.Option(metavar="N", min=1, help="How many networks.")] = 100,
    hidden: Annotated[
        str, typer.Option(metavar="N,N", help="Units of the hidden layers.")
    ] = "16,16",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of training.")] = 200,
    data: Annotated[
        str,
        typer.Option(metavar="SOURCE", help="digits, or FILE.npz with images x and labels y."),
    ] = "digits",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a collection of small networks, to try things on.

    An interrupted command is finished by the same command.
    """
    from gpu_align._cli._zoo_make import make_networks

    make_networks(out, kind, networks, hidden, steps, data, seed, quiet=quiet)


COMMANDS = (align, inspect, make)
