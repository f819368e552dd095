"""Train the aligner that comes with gpu-align, for the perceptrons of `gpu-align demo`.

    python -m bench.bundled_aligner [--zoo FILE] [--out FILE] [--networks N] [--epochs N]

Perceptrons 64-64-64-10 are trained on scikit-learn's digits as the demo trains its two, from seeds
that are not the demo's, and kept in a file (by default zoo/demo_mlps.safetensors). The aligner goes
to gpu_align/learn/digits_mlp.safetensors, its log beside it. A training that was interrupted is
resumed by the same command.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpu_align import TaskLoss, discover
from gpu_align._cli._digits import mlp, train
from gpu_align._device import versions
from gpu_align._network import Data, load_digits
from gpu_align.learn import (
    AlignerLosses,
    Epoch,
    TrainingFile,
    TrainingPlan,
    train_aligner,
)

FIRST = 10**6
"""The first seed: those of the demo are small."""

OUT = Path(__file__).parents[1] / "gpu_align" / "learn" / "digits_mlp.safetensors"
LOSSES = AlignerLosses(iterations=10)


def networks(path: Path, count: int) -> dict[str, Tensor]:
    """Return a stack of perceptrons, trained unless they are in the file."""
    if path.exists():
        kept = load_file(path)
        if len(next(iter(kept.values()))) >= count:
            return {name: tensor[:count] for name, tensor in kept.items()}
    digits, states = load_digits(), []
    for number in range(count):
        states.append(train("mlp", digits, seed=FIRST + number, quick=False).state_dict())
    stack = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stack, path)
    return stack


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("zoo/demo_mlps.safetensors"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--networks", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, started = Console(), time.process_time()
    states = networks(options.zoo, options.networks)
    console.print(f"{options.networks} networks in {time.process_time() - started:.0f} CPU s")
    data = Data.of("digits").fitted((1, 8, 8))
    file = TrainingFile(options.zoo.with_suffix(".training"), resume=True)

    def told(epoch: Epoch) -> None:
        console.print(f"epoch {epoch.number}: loss {epoch.loss:.4f}, held {epoch.held:.4f}")

    aligner, training = train_aligner(
        states,
        discover(mlp(), torch.zeros(2, 1, 8, 8)),
        task=TaskLoss(mlp(), data, batch_size=64),
        plan=TrainingPlan(options.epochs, batch=16, rate=5e-3, decay=0.1, clip=1.0),
        losses=LOSSES,
        file=file,
        progress=told,
        about={"networks from": "train('mlp', digits, seed=n) of gpu_align/_cli/_digits.py"}
        | {"seeds": [FIRST, FIRST + options.networks - 1]},
    )
    aligner.save(options.out)
    file.path.unlink()
    log = {"command": "python -m bench.bundled_aligner", **aligner.record}
    log |= {"CPU seconds": round(training.seconds, 1), "versions": versions()}
    options.out.with_suffix(".json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    console.print(f"{aligner} after {training.seconds:.0f} CPU s: {options.out}")


if __name__ == "__main__":
    main()
