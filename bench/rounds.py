"""Federated averaging: 20 clients are aligned to the mean of the round before, round after round.

python -m bench.rounds [--record] [--quick]

A client is the mean with noise, its units shuffled; the mean of the aligned clients is the next
mean. The symmetries are found once, as a server does, or anew in every round from the module, where
tracing may leave something behind. The bench fails where a client is not brought back, or where the
memory or the objects that are kept grow from round to round. --quick takes 15 rounds, too few to
judge the memory by.
"""

import gc
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.networks import mlp
from bench.record import record
from bench.timing import quantiles
from gpu_align import CoordinateDescent, Permutation, PermutationSpec, align, discover

WIDTHS = [784, 200, 200, 10]
"""The MLP of federated averaging (McMahan et al. 2017, section 3)."""
CLIENTS, ROUNDS, QUICK = 20, 50, 15
SETTLED = 10
"""Rounds after which what is made once has been made."""
NOISE = 0.5
"""Of a client, in standard deviations of each tensor."""
MB_A_ROUND = 0.5
"""Most growth that is no leak: allocators keep some memory back."""
OBJECTS_A_TRACE = 25
"""Small objects that torch.export itself keeps of every trace: 18 to 20 in torch 2.13."""

State = dict[str, Tensor]


def clients(
    mean: State, spec: PermutationSpec, number: int, count: int
) -> tuple[list[State], list[float]]:
    """Draw the clients of a round, and the distances of their noise."""
    generator = torch.Generator().manual_seed(number)
    drawn, distances = [], []
    for _ in range(count):
        noisy = {
            name: tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in mean.items()
        }
        drawn.append(Permutation.random(spec, generator=generator).apply(noisy))
        apart = ((noisy[name].double() - mean[name].double()).square().sum() for name in mean)
        distances.append(float(sum(apart)))
    return drawn, distances


def averaged(states: list[State]) -> State:
    return {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}


def measure(
    rounds: int,
    *,
    traced: bool,
    widths: list[int] = WIDTHS,
    settled: int = SETTLED,
    count: int = CLIENTS,
) -> dict:
    """Take some rounds; return what they cost and what they leave behind."""
    torch.manual_seed(0)
    server, inputs = mlp(widths), torch.randn(2, widths[0])
    spec = discover(server, inputs)
    mean = {name: tensor.clone() for name, tensor in server.state_dict().items()}
    seconds, megabytes, objects = [], [], []
    for number in range(rounds):
        sources, noise = clients(mean, spec, number, count)
        started = time.process_time()
        results = _aligned(server, mean, sources, None if traced else spec, inputs)
        mean = averaged([dict(result.unwrap().state_dict) for result in results])
        seconds.append(time.process_time() - started)
        for result, distance in zip(results, noise, strict=True):
            assert result.lower_bound <= result.distance <= distance * (1 + 1e-6)
            assert result.function_preserved is not False
        del results, sources
        gc.collect()
        megabytes.append(_megabytes())
        objects.append(len(gc.get_objects()))
    return {
        "traced": rounds if traced else 0,
        "networks": "-".join(map(str, widths)),
        "clients": count,
        "rounds": rounds,
        "search": CoordinateDescent.name,
        "CPU milliseconds a round": quantiles([1e3 * s for s in seconds[settled:]]),
        "MB at the end": megabytes[-1],
        "MB more a round": _slope(megabytes[settled:]),
        "objects more a round": _slope(objects[settled:]),
    }


def _aligned(server: nn.Module, mean: State, sources: list[State], spec, inputs: Tensor) -> list:
    search = CoordinateDescent()
    if spec is not None:
        return align(sources, mean, spec=spec, search=search)
    server.load_state_dict(mean)
    return align(sources, server, example_inputs=inputs, search=search)


def _megabytes() -> float:
    """Return the memory that the process holds; the most that it has held where none says."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _slope(values: list[float]) -> float:
    """Return by how much values grow from one to the next, as a line through them does."""
    return statistics.linear_regression(range(len(values)), values).slope


def main() -> None:
    rounds = QUICK if "--quick" in sys.argv else ROUNDS
    rows = [measure(rounds, traced=traced) for traced in (False, True)]
    table = Table(*rows[0])
    for row in rows:
        cpu = row["CPU milliseconds a round"]["median"]
        shown = row | {"CPU milliseconds a round": cpu}
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown.values()))
    Console(width=140).print(table)
    if "--record" in sys.argv:
        record("rounds", rows)
    check_growth(rows, rounds)


def check_growth(rows: list[dict], rounds: int) -> None:
    """Assert that nothing is left behind but what torch keeps of a trace."""
    for row in rows:
        assert row["objects more a round"] <= (OBJECTS_A_TRACE if row["traced"] else 1), row
        assert row["MB more a round"] <= MB_A_ROUND or rounds < ROUNDS, row


if __name__ == "__main__":
    main()
