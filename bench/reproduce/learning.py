"""The experiments of learning on weights, as `gpu-align learn` runs them, recorded.

    python -m bench.reproduce.learning TASK [--folder DIR] [--record] [--quick]

TASK is classify, embed, regress, adapt or predict. The networks, the trainings, result.json and
report.html lie in DIR/TASK, by default learning/TASK; what is there is not made again. Digits only,
on one thread: under ten minutes of the processor each.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from typer.testing import CliRunner

from bench.record import record
from gpu_align._cli._main import app

TASKS = ("classify", "embed", "regress", "adapt", "predict")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--folder", type=Path, default=Path("learning"))
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = options.folder / options.task
    words = ["learn", options.task, "--out", str(folder), "--device", "cpu", "--resume"]
    done = CliRunner().invoke(app, [*words, *(["--quick"] if options.quick else [])])
    print(done.output)
    if done.exit_code:
        raise SystemExit(done.exit_code)
    if options.record:
        document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        del document["plots"]
        record(f"reproduce_learn_{options.task}", [document])


if __name__ == "__main__":
    main()
