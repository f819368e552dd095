"""`gpu-align learn embed`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._learning import (
    NETWORKS,
    Effort,
    Experiment,
    Out,
    Quick,
    Resume,
    Seeds,
    Waves,
    ZooFolder,
)
from gpu_align._cli._options import Device, Json, Log, Quiet, Seed

QUICK_WAVES, QUICK_EFFORT = 60, 0.05


def embed(
    waves: Waves = 1000,
    views: Annotated[
        int,
        typer.Option(metavar="N", min=2, rich_help_panel=NETWORKS, help="Networks of each wave."),
    ] = 2,
    zoo: ZooFolder = None,
    out: Out = Path("learn-embed"),
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
    """Embed sine waves a sin(b x) by the weights of networks that show them.

    No model is told a or b: it is to find the other network of a wave. How well a and b can be
    told from the embedding by a linear map is measured on other waves; the report has pictures.
    """
    from gpu_align.learn import SineRecipe, Sines
    from gpu_align.learn import embed as study

    if quick:
        waves, effort, seeds = min(waves, QUICK_WAVES), effort * QUICK_EFFORT, 1
    sines = Sines(SineRecipe(views), waves, waves // 5, 2 * waves // 5, effort=effort)
    experiment = Experiment(
        title="Sine waves embedded by the weights of networks",
        out=out,
        zoo=zoo,
        seeds=seeds,
        resume=resume,
        device=device,
        as_json=as_json,
        quiet=quiet,
    )
    experiment.run(lambda zoo, work: study(zoo, sines, work, seed=seed))
