"""The default search on the trained pairs, beside coordinate descent and the best known values.

GPU_ALIGN_PAIRS=folder python -m bench.reference [NAME ...]
"""

import resource
import sys

from rich.console import Console
from rich.table import Table

from bench.pairs import ARCHITECTURES, PAIRS, load_pair, spec_of
from bench.record import record
from gpu_align import CoordinateDescent, align

BEST_KNOWN = {
    "mnist_cnn_bn": 182.071,
    "mnist_resnet_w16": 382.715,
    "mnist_mlp_128x3": 404.928,
    "mnist_mlp_512x3": 1382.849,
}
"""Before this software: annealing and perturbed descent of a NumPy prototype."""


def main() -> None:
    names = sys.argv[1:] or list(ARCHITECTURES)
    rows = []
    for name in names:
        pair = load_pair(name)
        if pair is None:
            sys.exit(
                f"set {PAIRS} to the folder with {name}_0.safetensors and {name}_1.safetensors"
            )
        source, target = pair
        spec = spec_of(name)
        descent = align(source, target, spec=spec, search=CoordinateDescent())
        default = align(source, target, spec=spec)
        rows.append(
            {
                "pair": name,
                "before": default.distance_before,
                "descent": descent.distance,
                "default": default.distance,
                "best known": BEST_KNOWN[name],
                "lower bound": default.lower_bound,
                "largest gap": max(group.gap for group in default.groups),
                "search": default.search,
                "seconds": default.seconds,
                "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.4g}" if k == "largest gap" else _text(v) for k, v in row.items()))
    Console(width=160).print(table)
    record("reference", rows)


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
