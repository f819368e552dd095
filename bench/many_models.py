"""Many small networks in one call of `align`, against one call after another.

python -m bench.many_models [CASE ...] [--record] [--quick]

The loop is measured on a sample of the models and scaled; batch and sample take turns. The
networks have fresh random weights: the shapes of a zoo without its training. All cases but the
largest are run where none is named; --quick runs each once. After each case --record writes what
there is.
"""

import resource
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.record import record
from bench.siren_phases import spec_without
from gpu_align import AlignmentResult, CoordinateDescent, PermutationSpec, Search, align, discover

State = dict[str, Tensor]
MANY = 10_000
"""Models up to which a case is run without being named."""


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        widths, activation: of the networks.
        models: in the batch.
        search: None for the default.
        sample: models that are aligned one after another.
        rounds: how often both are timed.
        published: seconds per pair of another implementation, for comparison; None if unknown.
    """

    widths: tuple[int, ...]
    activation: type[nn.Module]
    models: int
    search: Search | None
    sample: int
    rounds: int
    published: float | None = None

    @property
    def name(self) -> str:
        return "-".join(map(str, self.widths))


SMALL, SIREN, MNIST = (64, 32, 32, 10), (2, 32, 32, 1), (784, 128, 128, 128, 10)
CASES = {
    "small": Case(SMALL, nn.ReLU, 1000, CoordinateDescent(), 20, 5),
    "small_default": Case(SMALL, nn.ReLU, 200, None, 10, 3),
    "siren": Case(SIREN, Sine, 10_000, CoordinateDescent(), 20, 3),
    "siren_60000": Case(SIREN, Sine, 60_000, CoordinateDescent(), 10, 1),
    "mnist": Case(MNIST, nn.ReLU, 1000, CoordinateDescent(), 20, 3, published=0.21),
}


def build(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def zoo(case: Case) -> tuple[PermutationSpec, list[State], State]:
    """Return the spec, the sources and the target."""
    torch.manual_seed(0)
    model = build(case.widths, case.activation)
    # Orders and signs: phases cost sweeps of their own, which `bench.siren_phases` measures.
    spec = spec_without(discover(model, torch.randn(2, case.widths[0])), signs=True)
    # As torch draws the weights of one, but of all at once: 60,000 one by one take half a minute.
    drawn = {name: [] for name in model.state_dict()}
    for name, layer in model.named_children():
        for key, tensor in layer.state_dict().items():
            bound = layer.in_features**-0.5
            many = torch.empty(case.models, *tensor.shape).uniform_(-bound, bound)
            drawn[f"{name}.{key}"] = many.unbind()
    sources = [dict(zip(drawn, state, strict=True)) for state in zip(*drawn.values(), strict=True)]
    return spec, sources, dict(model.state_dict())


def check(batch: list[AlignmentResult], alone: list[AlignmentResult]) -> None:
    """Assert that all were aligned and certified, and that the batch is as good as the loop."""
    for result in (*batch, *alone):
        result.unwrap()
        assert result.lower_bound <= result.distance < result.distance_before
        # A float32 search takes no step below 1e-7 of the squared norms.
        assert largest_gap([result]) <= 1e-6
    for together, single in zip(batch, alone, strict=False):
        assert abs(together.lower_bound - single.lower_bound) <= 1e-9 * single.lower_bound
        assert abs(together.distance_before - single.distance_before) <= (
            1e-9 * single.distance_before
        )
    ours = statistics.mean(result.distance for result in batch[: len(alone)])
    theirs = statistics.mean(result.distance for result in alone)
    assert ours <= 1.03 * theirs, (ours, theirs)


def measure(case: Case, rounds: int) -> dict:
    """Time the batch and the sample in turn."""
    spec, sources, target = zoo(case)
    options = {"spec": spec, "search": case.search}
    align(sources[:2], target, **options)
    align(sources[0], target, **options)
    times: dict[str, list[float]] = {"batch": [], "loop": []}
    for _ in range(rounds):
        started = time.perf_counter()
        batch = align(sources, target, **options)
        between = time.perf_counter()
        alone = [align(source, target, **options) for source in sources[: case.sample]]
        ended = time.perf_counter()
        times["batch"].append(between - started)
        times["loop"].append((ended - between) * case.models / case.sample)
        check(batch, alone)
    ratios = [loop / batch for batch, loop in zip(*times.values(), strict=True)]
    found = batch[: case.sample]
    return {
        "networks": case.name,
        "models": case.models,
        "search": case.search.name if case.search else "default",
        "rounds": rounds,
        "loop sample": case.sample,
        "batch seconds": quantiles(times["batch"]),
        "loop seconds, scaled": quantiles(times["loop"]),
        "times faster": quantiles(ratios),
        "milliseconds per model": 1000 * statistics.median(times["batch"]) / case.models,
        "published seconds per pair": case.published,
        "device": batch[0].device,
        "models per batch": batch[0].batch_size,
        "search seconds, last round": batch[0].seconds,
        "mean distance of the sample, before": mean_of("distance_before", found),
        "mean distance of the sample, batch": mean_of("distance", found),
        "mean distance of the sample, loop": mean_of("distance", alone),
        "largest gap, relative": largest_gap(batch),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def largest_gap(results: list[AlignmentResult]) -> float:
    """Return the largest duality gap of a group, relative to the distance before."""
    return max(g.gap / result.distance_before for result in results for g in result.groups)


def mean_of(name: str, results: list[AlignmentResult]) -> float:
    return statistics.mean(getattr(result, name) for result in results)


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 20 and 80 % quantiles."""
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    low, median, high = torch.tensor(values, dtype=torch.float64).quantile(levels).tolist()
    return {"20 %": low, "median": median, "80 %": high}


def main() -> None:
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    rows = []
    for name in names or [name for name, case in CASES.items() if case.models <= MANY]:
        case = CASES[name]
        rows.append({"case": name, **measure(case, 1 if "--quick" in sys.argv else case.rounds)})
        table = Table("case", name)
        for key, value in rows[-1].items():
            table.add_row(key, str(value))
        Console(width=120).print(table)
        if "--record" in sys.argv:
            on_host = rows[0]["device"].startswith("cpu")
            record("many_models" if on_host else "many_models_cuda", rows)


if __name__ == "__main__":
    main()
