"""`gpu-align learn predict`."""

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

QUICK_CLASSIFIERS, QUICK_EFFORT = 60, 0.1


def predict(
    data: Pictures = "digits",
    classifiers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=10,
            rich_help_panel=NETWORKS,
            help="Training classifiers; a fifth as many to choose by, two fifths to test.",
        ),
    ] = 2000,
    hidden: Hidden = "16,16",
    zoo: ZooFolder = None,
    out: Out = Path("learn-predict"),
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
    """Tell how accurate classifiers are on new examples from their weights alone.

    They have seen more or less of the data, with more or fewer wrong labels. Models are compared by
    Kendall's tau of what they say and what is measured.
    """
    from gpu_align.learn import Prediction
    from gpu_align.learn import predict as study

    if quick:
        classifiers, effort, seeds = min(classifiers, QUICK_CLASSIFIERS), effort * QUICK_EFFORT, 1
    prediction = Prediction(
        *(classifiers, classifiers // 5, 2 * classifiers // 5), widths(hidden), effort
    )
    experiment = Experiment(
        title=f"Accuracy of classifiers of {data} from their weights",
        out=out,
        zoo=zoo,
        seeds=seeds,
        resume=resume,
        device=device,
        as_json=as_json,
        quiet=quiet,
    )
    experiment.run(lambda zoo, work: study(data, zoo, prediction, work, seed=seed))
