"""`gpu-align learn aligner`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._options import (
    CHECKPOINT_HELP,
    DATA,
    OUTPUTS,
    Device,
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
)
from gpu_align._cli._terminal import display, stdout_to_stderr

NETWORKS, TRAINING = "Networks", "Training"


def aligner(
    networks: Annotated[
        list[Path],
        typer.Argument(
            metavar="ZOO | A B C D [...]",
            help="A folder that make_zoo has written, or the networks of one architecture. "
            f"{CHECKPOINT_HELP} The last of them are held back.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            *("--out", "-o"),
            metavar="FILE.safetensors",
            rich_help_panel=OUTPUTS,
            help="Write the aligner, for `gpu-align align --aligner`. While it is trained, the "
            "training is kept beside it.",
        ),
    ],
    train: Annotated[
        int | None,
        typer.Option(
            "--train",
            metavar="N",
            min=4,
            rich_help_panel=NETWORKS,
            help="Train so many perceptrons on --data and write them to the folder ZOO, unless "
            "they are there.",
        ),
    ] = None,
    hidden: Annotated[
        str,
        typer.Option(
            metavar="N,N",
            rich_help_panel=NETWORKS,
            help="Units of the hidden layers of these.",
        ),
    ] = "32,32",
    key: Key = None,
    model: Model = None,
    input_shape: InputShape = None,
    output: Output = None,
    spec: SpecFile = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            rich_help_panel=DATA,
            help="Training data of the networks, for their loss halfway between two of them: as "
            "for `gpu-align merge`. Without them weights alone count.",
        ),
    ] = None,
    loss: Loss = "auto",
    epochs: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=TRAINING, help="How often every network is seen."
        ),
    ] = 80,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=TRAINING,
            help="End after so many epochs that are not better on the networks held back.",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(metavar="N", min=1, rich_help_panel=TRAINING, help="Networks in a step."),
    ] = 16,
    rate: Annotated[
        float,
        typer.Option(metavar="R", rich_help_panel=TRAINING, help="Highest learning rate."),
    ] = 6e-3,
    held: Annotated[
        float,
        typer.Option(metavar="S", rich_help_panel=TRAINING, help="Share that is held back."),
    ] = 0.1,
    channels: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=TRAINING, help="Features of a unit in a message."
        ),
    ] = 32,
    rounds: Annotated[
        int,
        typer.Option(metavar="N", min=1, rich_help_panel=TRAINING, help="Rounds of messages."),
    ] = 3,
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=TRAINING,
            help="Most fixed places of a tensor, such as inputs: more are projected to so many.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=TRAINING,
            help="Continue the training that the same command began and that was interrupted.",
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    log: Log = None,
) -> None:
    """Train an aligner: it tells at a glance which unit of a network is which of another one.

    It needs many networks of one architecture, and no labels of their units. On the CPU a training
    that was interrupted ends, resumed, as if nothing had happened.

    For instance: `gpu-align learn aligner zoo --train 400 --data digits -o a.safetensors`, then
    `gpu-align align B A --search learned --aligner a.safetensors`.
    """
    from gpu_align._cli._aligner_training import AlignerRun
    from gpu_align._device import choose_engine
    from gpu_align.learn import AlignerSettings, TrainingPlan

    run = AlignerRun(
        paths=networks,
        out=out,
        train=train,
        hidden=hidden,
        key=key,
        model=model,
        input_shape=input_shape,
        output=output,
        spec=spec,
        data=data,
        loss=loss,
        held=held,
        seed=seed,
        device=choose_engine(device).device,
        resume=resume,
    )
    plan = TrainingPlan(epochs, batch, rate, clip=1.0, patience=patience)
    settings = AlignerSettings(channels, rounds, fixed_rank=rank)
    with display(quiet=quiet) as screen, stdout_to_stderr():
        done = run.run(plan, settings, screen)
    run.tell(done, as_json=as_json, quiet=quiet)
