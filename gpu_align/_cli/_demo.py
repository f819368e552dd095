"""`gpu-align demo`."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpu_align._cli._options import Device, Json, Seed
from gpu_align._cli._terminal import columns, console, display, number, print_json, print_line

if TYPE_CHECKING:
    from gpu_align._cli._digits import Trial


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything it makes.")
    ] = Path("demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Train and search less: worse numbers in less time.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train pairs of digit classifiers, align them by every search, compare, and merge them.

    Needs scikit-learn for its 8 x 8 digits; nothing is downloaded.
    """
    from gpu_align._cli._digits import Setting, run_demo

    with display(quiet=False) as screen:
        trials, written = run_demo(Setting(out, seed, quick, device, screen.stage))
    commands = next_commands(out)
    if as_json:
        names = {"written": [str(path) for path in written], "next": commands}
        models = [_document(trial) for trial in trials]
        print_json({"schema": "gpu-align/demo/1", "models": models, **names})
        return
    for trial in trials:
        _print_trial(trial)
    for path in written:
        print_line(f"wrote {path}")
    print_line()
    print_line("Next, for instance:")
    for command in commands:
        print_line(f"  {command}")


def next_commands(folder: Path) -> list[str]:
    """Return commands that work on what the demo has written."""
    mlp, cnn = (
        f"{_quoted(folder, f'{name}_1.safetensors')} {_quoted(folder, f'{name}_0.safetensors')}"
        for name in ("mlp", "cnn")
    )
    model = "--model gpu_align._cli._digits:cnn --input-shape 2,1,8,8"
    both = f"{_quoted(folder, 'cnn_0.safetensors')} {_quoted(folder, 'cnn_1.safetensors')}"
    new = _quoted(folder, "cnn_new.safetensors")
    return [
        f"gpu-align align {mlp} -o {_quoted(folder, 'mlp_new.safetensors')}",
        f"gpu-align align {mlp} --search learned",
        f"gpu-align align {cnn} {model} --search annealing --report {_quoted(folder, 'cnn.html')}",
        f"gpu-align merge {both} -o {new} --data digits {model}",
    ]


def _quoted(folder: Path, name: str) -> str:
    return shlex.quote(str(folder / name))


def _document(trial: "Trial") -> dict[str, Any]:
    return {
        "name": trial.name,
        "accuracy_source": trial.accuracies[0],
        "accuracy_target": trial.accuracies[1],
        "function_difference": trial.function_difference,
        "distance_before": trial.result.distance_before,
        "lower_bound": trial.result.lower_bound,
        "proof": trial.result.proof and trial.result.proof.to_json(),
        "groups": [asdict(group) for group in trial.result.groups],
        **trial.result.studies,
        "barrier_before": trial.barrier.barrier_before,
        "barrier": trial.barrier.barrier,
        "merge": {**trial.merged.to_json(), "test_accuracy": trial.merged_accuracy},
    }


def _print_trial(trial: "Trial") -> None:
    source, target = (f"{100 * share:.1f} %" for share in trial.accuracies)
    before = trial.rows[0]["accuracy_before"]
    print_line()
    print_line(f"{trial.title}: {trial.name}_1 aligned to {trial.name}_0")
    print_line(
        f"test accuracy of the two: {source} and {target}; of their average unaligned: "
        f"{100 * before:.1f} %"
    )
    numbers = ("distance", "above best", "accuracy of the average", "seconds")
    table = columns("search", *numbers, numbers=numbers)
    table.add_row(
        "none", number(trial.result.distance_before), "", f"{100 * before:.1f} %", "", style="dim"
    )
    for row in trial.rows:
        gap, after = f"{row['gap_percent']:.2f} %", f"{100 * row['accuracy_after']:.1f} %"
        distance, seconds = number(row["distance"]), f"{row['seconds']:.1f}"
        table.add_row(row["search"], distance, gap, after, seconds)
    console().print(table)
    print_line(
        f"function preserved by every search: outputs differ by at most "
        f"{trial.function_difference:.0e} relative (float64)"
    )
    if proof := trial.result.proof:
        print_line(f"proof of the last one in {proof.seconds:.0f} s: {proof.in_words()}")
    print_line(
        f"barrier on the test images: {trial.barrier.barrier_before:.3g}, aligned "
        f"{trial.barrier.barrier:.3g}"
    )
    _print_merge(trial)


def _print_merge(trial: "Trial") -> None:
    from gpu_align._cli._merging import merge_table

    merged = trial.merged
    print_line()
    print_line(f"{trial.name}_0 (network 0) and {trial.name}_1 (network 1) merged on digits:")
    console().print(merge_table(merged))
    print_line(
        f"measured on {merged.chosen.examples} held-back training images; test accuracy of the "
        f"merged network: {100 * trial.merged_accuracy:.1f} %"
    )
    for sentence in merged.notes:
        print_line(sentence)
    print_line()
