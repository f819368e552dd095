"""`gpu-align learn regress`."""

from pathlib import Path

from gpu_align._cli._learning import (
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


def regress(
    waves: Waves = 1000,
    zoo: ZooFolder = None,
    out: Out = Path("learn-regress"),
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
    """Tell the frequency of a sine wave from the weights of a network that shows it.

    Perceptrons on raw and on aligned weights stand beside models that commute with the symmetries,
    and beside probes, which may run the networks.
    """
    from gpu_align.learn import SineRecipe, Sines
    from gpu_align.learn import regress as study

    if quick:
        waves, effort, seeds = min(waves, QUICK_WAVES), effort * QUICK_EFFORT, 1
    sines = Sines(
        SineRecipe(1),
        *(waves, waves // 5, 2 * waves // 5),
        amplitudes=(1.0, 1.0),
        frequencies=(0.5, 10.0),
        effort=effort,
    )
    experiment = Experiment(
        title="Frequencies of sine waves from the weights of networks",
        out=out,
        zoo=zoo,
        seeds=seeds,
        resume=resume,
        device=device,
        as_json=as_json,
        quiet=quiet,
    )
    experiment.run(lambda zoo, work: study(zoo, sines, work, seed=seed))
