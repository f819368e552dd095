"""`gpu-align learn adapt`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._learning import (
    NETWORKS,
    Effort,
    Experiment,
    Hidden,
    Out,
    Pictures,
    Quick,
    Resume,
    Seeds,
    ZooFolder,
    widths,
)
from gpu_align._cli._options import Device, Json, Log, Quiet, Seed

QUICK_CLASSIFIERS, QUICK_EFFORT = 30, 0.1
SHIFTS = ("rotate", "blur", "noise")


def adapt(
    data: Pictures = "digits",
    classifiers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=10,
            rich_help_panel=NETWORKS,
            help="Training classifiers; a sixth as many to choose by, a third to test.",
        ),
    ] = 300,
    hidden: Hidden = "32,32",
    shift: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"What is done to images: {', '.join(SHIFTS)}."),
    ] = "rotate",
    amount: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            help="How much: degrees (by default 40), pixels (1), a share of the range (0.3).",
        ),
    ] = None,
    zoo: ZooFolder = None,
    out: Out = Path("learn-adapt"),
    seeds: Seeds = 3,
    effort: Effort = 1.0,
    resume: Resume = False,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    log: Log = None,
) -> None:
    """Change classifiers so that they do well on shifted images, from their weights alone.

    A model is trained with classifiers and shifted images; then it changes other classifiers, and
    these are run on shifted images that nothing was trained on.
    """
    from gpu_align.learn import Adaptation
    from gpu_align.learn import adapt as study

    if quick:
        classifiers, effort, seeds = min(classifiers, QUICK_CLASSIFIERS), effort * QUICK_EFFORT, 1
    adaptation = Adaptation(
        *(classifiers, classifiers // 6, classifiers // 3),
        hidden=widths(hidden),
        shift=shift,
        amount=amount,
        effort=effort,
    )
    experiment = Experiment(
        title=f"Classifiers of {data} changed for other images ({shift})",
        out=out,
        zoo=zoo,
        seeds=seeds,
        resume=resume,
        device=device,
        as_json=as_json,
        quiet=quiet,
    )
    experiment.run(lambda zoo, work: study(data, zoo, adaptation, work, seed=seed))
