"""How far proofs come: bounds on the default search's answers in so many seconds each.

    GPU_ALIGN_PAIRS=folder python -m bench.bounds [SECONDS] [NAME ...]

Without names all pairs are proved, `coursework` too, and two digit classifiers that are trained
here, of the demo's kind but with 32 units a layer. All seconds are those of the processor, on one
thread: other work on the machine takes none of them.
"""

import sys
import time
from collections.abc import Callable
from typing import TypeVar
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.networks import mlp
from bench.pairs import ARCHITECTURES, PAIRS, load_pair, spec_of
from bench.record import record
from gpu_align import (
    AlignmentProblem,
    Portfolio,
    chain_spec,
    check_proof,
    lower_bound,
    prove,
    run_search,
)
from gpu_align._cli._digits import Digits, load_digits

T = TypeVar("T")
DIGITS = "digits_32x2"
NAMES = ("coursework", *ARCHITECTURES, DIGITS)
_EPOCHS = 15


def main() -> None:
    torch.set_num_threads(1)
    given = sys.argv[1:]
    seconds = float(given.pop(0)) if given and given[0].replace(".", "").isdigit() else 60.0
    rows = []
    for name in given or NAMES:
        rows.append(row_of(name, seconds))
        record("bounds", rows)  # a long run leaves what it has
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=190).print(table)


def row_of(name: str, seconds: float) -> dict:
    """Search one pair, prove what was found, check the proof, and return what came of it."""
    problem = problem_of(name)
    found = run_search(Portfolio.for_problem(problem), problem)
    permutation = problem.permutation(found.best)
    plain = _timed(lambda: float(lower_bound(problem)))
    with mock.patch.object(time, "perf_counter", time.process_time):
        proof, spent = _timed(lambda: prove(problem, permutation, seconds=seconds))
    checked, checking = _timed(lambda: check_proof(problem, proof))
    return {
        "pair": name,
        "distance": proof.distance,
        "lower bound alone": plain[0],
        "its seconds": plain[1],
        "proved bound": proof.lower_bound,
        "status": str(proof.status),
        "pairs left": f"{proof.candidates} of {proof.pairs}",
        "method": proof.method,
        "sweeps": len(proof.history),
        "seconds": spent,
        "checked": checked,
        "seconds of the check": checking,
    }


def problem_of(name: str) -> AlignmentProblem:
    """Return the problem of a pair, or of two networks that are trained for it."""
    if name == DIGITS:
        digits = load_digits()
        target, source = (trained(digits, seed) for seed in (0, 1))
        return AlignmentProblem(source, target, chain_spec(target))
    pair = load_pair(name)
    if pair is None:
        sys.exit(f"set {PAIRS} to the folder with the checkpoints of {name}")
    if name == "coursework":
        target = pair[1]
        return AlignmentProblem(*pair, chain_spec(target))
    return AlignmentProblem(*pair, spec_of(name))


def trained(digits: Digits, seed: int) -> dict[str, Tensor]:
    """Train 64-32-32-10 as the demo trains its networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), *mlp([64, 32, 32, 10]))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.3)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(digits.train_labels)).split(64):
                outputs = model(digits.train_images[batch])
                loss = nn.functional.cross_entropy(outputs, digits.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return dict(model.state_dict())


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    return function(), time.process_time() - started


if __name__ == "__main__":
    main()
