"""`gpu-align learn classify`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._learning import (
    NETWORKS,
    Effort,
    Experiment,
    Hidden,
    Out,
    Quick,
    Resume,
    Seeds,
    ZooFolder,
    widths,
)
from gpu_align._cli._options import Device, Json, Log, Quiet, Seed

QUICK_IMAGES, QUICK_EFFORT = 100, 0.1

W0 = Annotated[
    float,
    typer.Option("--w0", metavar="F", rich_help_panel=NETWORKS, help="Frequency of the sines."),
]
Steps = Annotated[
    int,
    typer.Option(metavar="N", min=1, rich_help_panel=NETWORKS, help="Steps in which it is fitted."),
]


def classify(
    data: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            rich_help_panel=NETWORKS,
            help="Images of one channel with classes and a test part: digits, mnist:FOLDER "
            "(Fashion-MNIST too), FILE.npz (x, y, x_test, y_test), package.module:loader.",
        ),
    ] = "digits",
    views: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=NETWORKS, help="Networks of each training image."
        ),
    ] = 2,
    test_views: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=NETWORKS,
            help="Networks of each held-back and each test image.",
        ),
    ] = 2,
    hidden: Hidden = "16,16",
    w0: W0 = 6.0,
    steps: Steps = 400,
    psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            rich_help_panel=NETWORKS,
            help="A network stops where its peak signal-to-noise ratio is this high, in dB.",
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=NETWORKS,
            help="Training images at most, and of the others in proportion.",
        ),
    ] = None,
    zoo: ZooFolder = None,
    out: Out = Path("learn-classify"),
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
    """Tell the class of an image from the weights of a sine network that shows it.

    A network (SIREN) is fitted to every image. Perceptrons on raw and on aligned weights stand
    beside models that commute with the symmetries, and beside probes, which may run the networks.
    All networks of an image are in one part, and every choice is made by held-back images.

    At full size, on a GPU: `--data mnist:FOLDER --views 1 --test-views 1 --hidden 32,32 --w0 30
    --steps 1000 --psnr 40 --device cuda`.
    """
    from gpu_align.learn import Classification, SirenRecipe
    from gpu_align.learn import classify as study

    recipe = SirenRecipe(views, widths(hidden), w0, steps, psnr=psnr)
    if quick:
        images, effort, seeds = images or QUICK_IMAGES, effort * QUICK_EFFORT, 1
    classification = Classification(recipe, test_views, images, effort)
    experiment = Experiment(
        title=f"Classes of {data} from the weights of sine networks",
        out=out,
        zoo=zoo,
        seeds=seeds,
        resume=resume,
        device=device,
        as_json=as_json,
        quiet=quiet,
    )
    experiment.run(lambda zoo, work: study(data, zoo, classification, work, seed=seed))
