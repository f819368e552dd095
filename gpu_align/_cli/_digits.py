"""The demo: pairs of digit classifiers, trained here, aligned by every search.

The digits are the 8 x 8 images that come with scikit-learn. Each architecture is trained twice,
from different seeds; then one network is aligned to the other, and their average is tried; the loss
between them is measured; and both are merged on the training images.
"""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpu_align._align import AlignmentResult, align
from gpu_align._checkpoint import save_checkpoint
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._merge import BarrierResult, MergeResult, barrier, merge
from gpu_align._network import Data, Digits, load_digits
from gpu_align._problem import AlignmentProblem
from gpu_align._process import torch_threads
from gpu_align._search import (
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    KBest,
    LayerwiseBeam,
    Learned,
    Portfolio,
    Recombination,
    Search,
)
from gpu_align._status import Status
from gpu_align._symmetry import discover
from gpu_align.learn import Aligner

_EPOCHS = {False: 15, True: 3}
_BATCH = 64
_PROVED = "mlp"  # small enough to see a proof at work
_LEARNED = "mlp"  # what the bundled aligner is for
_PROOF_SECONDS = {False: 10.0, True: 1.0}
_POINTS = 13
_WIDTHS = {False: (1, 2, 5, 10, 20), True: (1, 2, 5)}


def mlp() -> nn.Module:
    """Return the perceptron of the demo: 64-64-64-10."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 64), nn.ReLU()),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def cnn() -> nn.Module:
    """Return the convolutional network of the demo; its last map is 2 x 2 when flattened."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 2 * 2, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn}
TITLES = {"mlp": "MLP 64-64-64-10 on digits", "cnn": "CNN with BatchNorm on digits"}


def searches(name: str, *, quick: bool) -> dict[str, Search | None]:
    """Return every search by its name, the portfolio last; None is the one that fits the size.

    Args:
        name: key of `ARCHITECTURES`; the bundled aligner is for the perceptron.
        quick: whether they search less.
    """
    layerwise, steps, patience = LayerwiseBeam(4, KBest(4), lookahead=True), 60, 6
    portfolio = None
    if quick:
        steps, patience = 20, 2
        portfolio = Portfolio((layerwise, Annealing(steps=steps)), (BeamDescent(patience=1),))
    learned = {"Learned": Learned(Aligner.bundled())} if name == _LEARNED else {}
    return {
        **learned,
        "LayerwiseBeam": layerwise,
        "CoordinateDescent": CoordinateDescent(),
        "BeamDescent": BeamDescent(patience=patience),
        "FrankWolfe": FrankWolfe(),
        "Annealing": Annealing(steps=steps),
        "Recombination": Recombination(generations=patience),
        "Portfolio": portfolio,
    }


@dataclass(frozen=True)
class Setting:
    """How the demo is run.

    Attributes:
        folder: everything is written to it; made if it is not there.
        seed: of everything; the same seed gives the same networks and permutations.
        quick: train and search less.
        device: see `align`.
        progress: called with a few words before each step.
    """

    folder: Path
    seed: int
    quick: bool
    device: str
    progress: Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """What was found for one architecture.

    Attributes:
        name: key of `ARCHITECTURES`.
        title: what it is, for people.
        accuracies: of source and target on the test images.
        rows: one per search: search, distance, gap_percent (to the best of them), accuracy_before
            and accuracy_after (of the average with the target, on the test images), seconds.
        result: the portfolio's, with the comparison and the beam-width study.
        function_difference: the largest relative one of the outputs over all searches.
        merged: both merged, in the way that is best on held-back training images.
        merged_accuracy: of the merged network on the test images.
        barrier: the loss between the two on the test images, before alignment and after that of
            `result`.
    """

    name: str
    title: str
    accuracies: tuple[float, float]
    rows: list[dict[str, Any]]
    result: AlignmentResult
    function_difference: float
    merged: MergeResult
    merged_accuracy: float
    barrier: BarrierResult


def run_demo(setting: Setting) -> tuple[list[Trial], list[Path]]:
    """Train, align, compare, and write everything to the folder.

    Returns:
        One trial per architecture, and the paths of what was written, the report last.

    Raises:
        UnavailableError: scikit-learn is not installed.
        InputError: the folder cannot be written to.
        GpuAlignError: a search has changed the function of a network.
        KeyboardInterrupt: Ctrl-C, also during a search.
    """
    digits = load_digits()
    _make_folder(setting.folder)
    trials, written = [], []
    for number, name in enumerate(ARCHITECTURES):
        networks = []
        for member in (0, 1):
            setting.progress(f"training {name}_{member}")
            seed = 4 * setting.seed + 2 * number + member
            networks.append(train(name, digits, seed=seed, quick=setting.quick))
        target, source = networks
        trial = _try_all(name, source, target, digits, setting)
        trials.append(trial)
        written += _write(setting.folder, trial, source, target)
    setting.progress("drawing the report")
    written.append(_write_report(setting.folder, trials))
    return trials, written


def train(name: str, digits: Digits, *, seed: int, quick: bool) -> nn.Module:
    """Train one network; deterministic for a seed, and torch's own random state is left alone."""
    # One thread is as fast for networks this small, and sums do not depend on the machine.
    with torch.random.fork_rng(devices=[]), torch_threads.held(single=True):
        torch.manual_seed(seed)
        model = ARCHITECTURES[name]()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.3)
        for _ in range(_EPOCHS[quick]):
            for batch in torch.randperm(len(digits.train_labels), device="cpu").split(_BATCH):
                loss = nn.functional.cross_entropy(
                    model(digits.train_images[batch]), digits.train_labels[batch]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Return the share of test images that a network classifies rightly."""
    with torch.no_grad():
        guesses = model(digits.test_images).argmax(1)
    return float((guesses == digits.test_labels).float().mean())


def midpoint(
    model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor], digits: Digits
) -> nn.Module:
    """Return the average of two networks, with running statistics measured anew.

    The statistics of averaged layers are not the average of their statistics (Jordan et al.,
    REPAIR, ICLR 2023).
    """
    average = {
        key: (value + second[key]) / 2 if value.is_floating_point() else value
        for key, value in first.items()
    }
    merged = copy.deepcopy(model)
    merged.load_state_dict(average)
    norms = [module for module in merged.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    if norms:
        merged.train()
        with torch.no_grad():
            for images in digits.train_images.split(_BATCH):
                merged(images)
    return merged.eval()


def _try_all(
    name: str, source: nn.Module, target: nn.Module, digits: Digits, setting: Setting
) -> Trial:
    """Align one pair by every search."""
    example = digits.test_images[:8]
    stay, moving = target.state_dict(), source.state_dict()
    spec = discover(target, example)
    before = accuracy(midpoint(target, moving, stay, digits), digits)
    rows, difference = [], 0.0
    offered = searches(name, quick=setting.quick)
    for label, search in offered.items():
        is_last = label == list(offered)[-1]
        setting.progress(f"aligning {name}_1 to {name}_0: {label}")
        result = align(
            *(source, target),
            spec=spec,
            example_inputs=example,
            search=search,
            seed=setting.seed,
            device=setting.device,
            prove=_PROOF_SECONDS[setting.quick] if name == _PROVED and is_last else None,
        )
        _check(result, label)
        difference = max(difference, result.function_difference or 0.0)
        after = accuracy(midpoint(target, result.state_dict, stay, digits), digits)
        rows.append(_row(label, result, before, after))
    setting.progress(f"widening the beam on {name}")
    width_rows = _width_study(AlignmentProblem(moving, stay, spec), setting)
    studies = {"comparison": _with_gaps(rows), "beam_width": width_rows}
    setting.progress(f"measuring the loss between {name}_0 and {name}_1")
    data = Data.of("digits", seed=setting.seed)
    between = barrier(target, source, data, align=result, points=_POINTS, device=setting.device)
    merged = _merge(name, [target, source], data, setting)
    network = copy.deepcopy(target)
    network.load_state_dict(dict(merged.state_dict))
    # The portfolio comes last in `searches`, so `result` is its result.
    return Trial(
        name=name,
        title=TITLES[name],
        accuracies=(accuracy(source, digits), accuracy(target, digits)),
        rows=studies["comparison"],
        result=replace(result, studies=studies),
        function_difference=difference,
        merged=merged,
        merged_accuracy=accuracy(network, digits),
        barrier=between,
    )


def _merge(name: str, pair: list[nn.Module], data: Data, setting: Setting) -> MergeResult:
    """Merge one pair in the order of the units of its first network."""

    def tell(words: str) -> None:
        setting.progress(f"merging {name}_0 and {name}_1: {words}")

    return merge(pair, data, seed=setting.seed, device=setting.device, progress=tell)


def _check(result: AlignmentResult, label: str) -> None:
    if result.status is Status.INTERRUPTED:
        # The library ends a search at Ctrl-C and goes on; whoever stops a demo wants it to stop.
        raise KeyboardInterrupt
    if not result.function_preserved:
        raise GpuAlignError(
            f"{label} changed the outputs by {result.function_difference}; please report it"
        )


def _row(label: str, result: AlignmentResult, before: float, after: float) -> dict[str, Any]:
    return {
        "search": label,
        "distance": result.distance,
        "accuracy_before": before,
        "accuracy_after": after,
        "seconds": result.seconds,
    }


def _with_gaps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    best = min(row["distance"] for row in rows)
    return [{**row, "gap_percent": 100 * (row["distance"] / best - 1)} for row in rows]


def _width_study(problem: AlignmentProblem, setting: Setting) -> list[dict[str, float]]:
    # Figures are slow to import, and nothing else needs them.
    from gpu_align._report import beam_width_study

    return beam_width_study(problem, _WIDTHS[setting.quick], seed=setting.seed)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder}: {error.strerror}; choose another one with -o"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"the folder {folder} is not writable; choose another one with -o")


def _write(folder: Path, trial: Trial, source: nn.Module, target: nn.Module) -> list[Path]:
    """Write checkpoints, permutation, result and the page of the barrier; return their paths."""
    name, result = trial.name, trial.result
    states = {
        f"{name}_0.safetensors": target.state_dict(),
        f"{name}_1.safetensors": source.state_dict(),
        f"{name}_1_aligned.safetensors": result.state_dict,
        f"{name}_merged.safetensors": trial.merged.state_dict,
    }
    for file, state in states.items():
        save_checkpoint(folder / file, state)
    permutation, document = folder / f"{name}_permutation.safetensors", folder / f"{name}.json"
    result.permutation.save(permutation)
    result.save_json(document)
    page = folder / f"{name}_barrier.html"
    trial.barrier.write_report(page, title=f"Loss between {name}_0 and {name}_1: {trial.title}")
    return [*(folder / file for file in states), permutation, document, page]


def _write_report(folder: Path, trials: list[Trial]) -> Path:
    from gpu_align._report import Study, write_report

    path = folder / "report.html"
    write_report(
        [trial.result for trial in trials],
        path,
        title="gpu-align demo: digit classifiers",
        names=[trial.title for trial in trials],
        studies=[Study(trial.barrier, trial.merged) for trial in trials],
    )
    return path
