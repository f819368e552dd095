"""The kernel of the k best matchings against the torch operations that find the same.

    python -m bench.k_best [--record]

Needs a CUDA device with CuPy. Both rank costs of random layers from the best matching, and a row is
met where the kernel's matchings and totals are those of torch on the CPU. Times are milliseconds of
a batch, the solver not among them. --record writes results/k_best.json.
"""

import sys

import torch
from torch import Tensor

from bench.record import record
from bench.timing import wall_clock
from gpu_align._assignment import AssignmentProblem, solve
from gpu_align._assignment._k_best import _rank_by_torch
from gpu_align.kernels.k_best import fits, rank_matchings

DEVICE = torch.device("cuda", 0)

CASES = (
    (64, 1, 100),
    (24, 100, 100),
    (64, 100, 100),
    (64, 300, 100),
    (128, 16, 100),
    (169, 4, 100),
)
"""Rows, problems and matchings; the first two are what a beam of width 100 asks for."""


def make_cost(n: int, batch: int) -> Tensor:
    """Return costs [batch, n, n] of random layers as integers of 40 bits."""
    generator = torch.Generator().manual_seed(n)
    a, b = torch.randn(2, batch, n, 2 * n, generator=generator, dtype=torch.float64)
    cost = a @ b.mT
    return (cost * (2.0**40 / cost.abs().amax((1, 2), keepdim=True))).round()


def measure(n: int, batch: int, k: int, device: torch.device = DEVICE) -> dict[str, object]:
    """Check and time one case, or say that it does not fit the device."""
    row: dict[str, object] = {"n": n, "batch": batch, "k": k}
    if not fits(n, device):
        return row | {"same": True, "failed": "does not fit the shared memory of a block"}
    cost = make_cost(n, batch)
    best = solve(AssignmentProblem(cost)).col_ind
    there = (cost.to(device), best.to(device))
    found, expected = rank_matchings(*there, k), _rank_by_torch(cost[:4], best[:4], k)
    same = all(torch.equal(a[:4].cpu(), b) for a, b in zip(found, expected, strict=True))
    times = {"kernel": wall_clock(lambda: rank_matchings(*there, k))}
    if n * n * k * batch <= 2**24:
        times["torch"] = wall_clock(lambda: _rank_by_torch(*there, k))
    return row | {"same": same} | {f"{name}_ms": time for name, time in times.items()}


def line(row: dict) -> str:
    """Format a row."""
    what = f"n = {row['n']:3}, {row['batch']:3} problems, k = {row['k']}"
    if "failed" in row:
        return f"{what}: {row['failed']}"
    torch_ms = f"{row['torch_ms']['median']:9.2f}" if "torch_ms" in row else "        -"
    verdict = "same" if row["same"] else "DIFFERENT"
    return f"{what}: {row['kernel_ms']['median']:9.2f} ms, torch {torch_ms} ms, {verdict}"


def main() -> None:
    rows: list[dict] = []
    for case in CASES:
        rows.append(measure(*case))
        print(line(rows[-1]), flush=True)
        if "--record" in sys.argv:
            record("k_best", rows)
    different = sum(not row["same"] for row in rows)
    if different:
        sys.exit(f"{different} of {len(rows)} differ")


if __name__ == "__main__":
    main()
