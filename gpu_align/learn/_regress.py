"""The frequency of a sine wave, told from the weights of a network that shows it."""

import os
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from gpu_align.learn._cells import Features
from gpu_align.learn._embed import sine_forms
from gpu_align.learn._readers import (
    Make,
    Probes,
    in_a_row,
    linear_reader,
    message_reader,
)
from gpu_align.learn._sines import SineRecipe, Sines, r_squared
from gpu_align.learn._split_zoos import SplitZoo, make_split_zoo
from gpu_align.learn._study import Panel, Plot, Study, rounded
from gpu_align.learn._supervised import (
    AUGMENTED,
    Measured,
    Setting,
    Task,
    Way,
    Work,
    measured,
    perceptrons,
)
from gpu_align.learn._training import TrainingPlan

_R2, _ERROR = "R²", "mean squared error"


def regress(
    zoo: str | os.PathLike[str],
    sines: Sines | None = None,
    work: Work | None = None,
    *,
    seed: int = 0,
) -> Study:
    """Tell the frequency b of waves sin(b x) from the weights of networks, model by model.

    Args:
        zoo: folder of the networks; what is there is not made again.
        sines: the waves, by default of amplitude 1 with frequencies from 0.5 to 10.
        work: how models are trained.
        seed: of the waves and of the networks.

    Raises:
        InputError: a number does not fit.
        CheckpointError: the zoo is another one, or a file cannot be used or written.

    Source: DWSNets (Navon et al., ICML 2023), section 7.1.
    """
    sines = sines or Sines(SineRecipe(views=1), amplitudes=(1.0, 1.0), frequencies=(0.5, 10.0))
    work = work or Work()
    found = make_split_zoo(zoo, sines.sources(seed), device=work.device, progress=work.progress)
    frequencies = found.facts["frequency"].to(work.device)[:, None]
    std, mean = torch.std_mean(frequencies[found.parts.train], 0)
    task = Task(
        (frequencies - mean) / std,
        found.parts,
        torch.nn.functional.mse_loss,
        {
            _R2: lambda said, right: float(r_squared(said, right)),
            _ERROR: lambda said, right: float((std * (said - right)).square().mean()),
        },
        found.digest,
    )
    results = [measured(way, task, work) for way in _ways(found, sines, work)]
    return Study(
        "regress",
        {_R2: "", _ERROR: ""},
        tuple(result.row for result in results),
        {"error of the networks as a share, median": float(found.facts["error"].median())},
        {**asdict(sines), "seed": seed},
        plots=(_plot(results, frequencies[found.parts.test], std, mean),),
    )


def _plot(results: Sequence[Measured], right: Tensor, std: Tensor, mean: Tensor) -> Plot:
    panels = [
        Panel(
            f"{result.row.model}, {result.row.form}",
            rounded(right[:, 0]),
            rounded((std * result.outputs + mean)[:, 0]),
            labels=("frequency b of sin(b x)", "as told from the weights"),
            diagonal=True,
        )
        for result in results
        if not result.row.listed_apart
    ]
    caption = "Networks of waves that no training has seen. Good are points on the diagonal."
    return Plot("Frequencies of test networks", caption, tuple(panels))


def _ways(zoo: SplitZoo, sines: Sines, work: Work) -> list[Way]:
    forms = sine_forms(zoo, sines, work)
    inputs = in_a_row(forms.raw).shape[1]

    each, tried = forms.each, perceptrons(inputs, 1, sines.epochs(60))

    def way(model: str, form: str, features: Features, make: Make, epochs: int) -> Way:
        setting = Setting("", make, TrainingPlan(sines.epochs(epochs), rate=3e-3))
        return Way(model, form, features, (setting,), listed_apart=model == "probes")

    network = sines.recipe.model()
    return [
        Way("MLP", "raw weights", each["raw"], tried),
        Way("MLP", AUGMENTED, each["raw"], tried, symmetries=forms.signs),
        Way("MLP", "aligned to one network", each["one"], tried),
        Way("MLP", "aligned to the barycentre", each["barycentre"], tried),
        way(
            *("EquivariantLinear", "raw weights", forms.by_tensor),
            *(lambda: linear_reader(forms.orders, 1), 30),
        ),
        way(
            *("MessagePassing", "raw weights", forms.by_tensor),
            *(lambda: message_reader(forms.signs, 1), 40),
        ),
        way(
            *("probes", "values at points of its choice", forms.raw),
            *(lambda: Probes(forms.signs, network, 1, 1), 60),
        ),
    ]
