"""Planted permutations plus noise: how often the planted distance is reached.

    python -m bench.planted [DRAWS per network and noise]

The source is the target with noise added to every weight, its units shuffled. The noise is a
multiple of the standard deviation of each tensor. A search succeeds if it reaches at most the
distance of the planted permutation (with much noise there are better ones).
"""

import sys
import time
from collections import Counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.networks import CNN, ResNet, mlp
from bench.record import record
from gpu_align import (
    AlignmentProblem,
    CoordinateDescent,
    Permutation,
    PermutationSpec,
    Portfolio,
    discover,
    run_search,
)

NETWORKS = {
    "MLP 784-128x3-10": (lambda: mlp([784, 128, 128, 128, 10]), (2, 784)),
    "CNN width 24": (lambda: CNN(24), (2, 1, 28, 28)),
    "ResNet width 16": (lambda: ResNet(16), (2, 1, 14, 14)),
}
NOISE = (0.0, 1.0, 2.0, 3.0)


def main() -> None:
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rows = []
    table = Table("network", "noise / std", "default", "weight matching", "seconds a run")
    for name, (factory, shape) in NETWORKS.items():
        spec = discover(factory(), torch.randn(shape))
        for noise in NOISE:
            row = {"network": name, "noise": noise, "draws": draws}
            row |= _try(factory, spec, noise, draws)
            rows.append(row)
            cells = (f"{row['default']} of {draws}", f"{row['descent']} of {draws}")
            table.add_row(name, f"{noise:g}", *cells, f"{row['seconds']:.1f}")
    Console(width=110).print(table)
    total = sum(row["default"] for row in rows), sum(row["draws"] for row in rows)
    Console().print(f"default: {total[0]} of {total[1]}")
    record("planted", rows)


def _try(factory, spec: PermutationSpec, noise: float, draws: int) -> dict[str, float]:
    total = Counter[str]()
    for seed in range(draws):
        source, target, planted = plant(factory, spec, noise, seed)
        total.update(reached(AlignmentProblem(source, target, spec), planted, seed))
    return {**total, "seconds": total["seconds"] / draws}


def reached(problem: AlignmentProblem, planted: Permutation, seed: int) -> dict[str, float]:
    """Say which searches reach the planted distance, and the seconds of the default."""
    goal, found = problem.distance(planted), {}
    for label, search in (
        ("default", Portfolio.for_problem(problem)),
        ("descent", CoordinateDescent()),
    ):
        started = time.perf_counter()
        outcome = run_search(search, problem, seed=seed)
        found.setdefault("seconds", time.perf_counter() - started)
        distance = problem.distance(problem.permutation(outcome.best))
        found[label] = int(distance <= goal * (1 + 1e-9))
    return found


def plant(
    factory, spec: PermutationSpec, noise: float, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], Permutation]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = factory()
    target, noisy = {}, {}
    for name, tensor in model.state_dict().items():
        target[name] = tensor
        if spec.lookup(name).counted:
            # Norm parameters are all equal when fresh; spread them as training does.
            target[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        spread = target[name].std() if tensor.numel() > 1 and tensor.is_floating_point() else 0
        added = noise * spread * torch.randn(tensor.shape, generator=generator)
        noisy[name] = target[name] + added if spec.lookup(name).counted else tensor
    shuffle = Permutation.random(spec, generator=generator)
    return shuffle.apply(noisy), target, shuffle.inverse()


if __name__ == "__main__":
    main()
