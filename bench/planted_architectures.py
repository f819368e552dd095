"""Planted permutations on attention, recurrence, concatenation, depthwise layers, signs and scales.

    python -m bench.planted_architectures [DRAWS] [NAME ...]

As bench.planted, with noise of half a standard deviation. Units are shuffled by a draw from all
symmetries that were discovered, signs included. On the network with scales each unit is also
multiplied by a random positive number, and both networks are brought into canonical form first.
"""

import sys
from collections import Counter

import torch
from rich.console import Console
from rich.table import Table

from bench.architectures import ARCHITECTURES
from bench.planted import plant, reached
from bench.record import record
from gpu_align import AlignmentProblem, canonicalize, discover
from gpu_align._symmetry import rescale

NOISE = 0.5
SCALED = "ReLU MLP, scales"


def main() -> None:
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    names = sys.argv[2:] or list(ARCHITECTURES)
    rows = []
    table = Table("network", "log10 symmetries", "default", "weight matching", "seconds a run")
    for name in names:
        rows.append(_try(name, draws))
        row = rows[-1]
        table.add_row(
            name,
            f"{row['log10 symmetries']:.1f}",
            f"{row['default']} of {draws}",
            f"{row['descent']} of {draws}",
            f"{row['seconds']:.1f}",
        )
    Console(width=110).print(table)
    record("planted_architectures", rows)


def _try(name: str, draws: int) -> dict[str, float | str]:
    factory, inputs = ARCHITECTURES[name]
    spec = discover(factory(), inputs())
    total = Counter[str]()
    for seed in range(draws):
        source, target, planted = plant(factory, spec, NOISE, seed)
        if name == SCALED:
            generator = torch.Generator().manual_seed(seed)
            scales = {
                group: torch.randn(spec.units(group), generator=generator).exp()
                for group in spec.groups
            }
            source = canonicalize(rescale(spec, source, scales), spec=spec)
            target = canonicalize(target, spec=spec)
        total.update(reached(AlignmentProblem(source, target, spec), planted, seed))
    return {
        "network": name,
        "noise": NOISE,
        "draws": draws,
        "log10 symmetries": spec.log10_symmetries,
        **total,
        "seconds": total["seconds"] / draws,
    }


if __name__ == "__main__":
    main()
