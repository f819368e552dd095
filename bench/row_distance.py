"""The row-distance kernels and the annealing step against torch and the machine's own limits.

    python -m bench.row_distance [--record] [--quick]

All groups of a network, a launch each, beside a gather and matrix products in torch on the same
weights, in float32 and with TF32 allowed, and beside the rates of a large matrix product and a
large copy measured in the same run. A float32 product by six products of bfloat16 can at most have
a sixth of bfloat16's rate: that is the roof of float32. Each case is first checked against float64.
The caches hold what the last repetition left there. Without a GPU only the plain twin is checked.
After each case --record writes what there is; --quick leaves cases out.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from bench.cases import CASES, Case, matrices, rows_of, signs_of, torch_similarity
from bench.record import record
from bench.timing import quantiles
from gpu_align.kernels._twins import annealing_step_reference, row_distance_reference
from gpu_align.kernels.rows import RowProblem, RowTerm

DEVICE = torch.device("cuda")
ROUNDS, BASELINE_ROUNDS = 15, 3
ROUND, MOST = 2.0, 20
"""Milliseconds of a round, and runs of it at most: a single short one would wait for its launch."""

PRODUCTS = 6
"""Products of bfloat16 planes that make one of float32."""

ALONE = ("MLP 3x512", "ResNet50")
"""Networks that are also measured with one hypothesis, as weight matching has it."""

QUICK = ("MLP 3x512", "MLP 3x512, batch 1", "ResNet50, batch 1", "square 2048")
ANNEALED = ((16, 8192), (32, 4096), (64, 2048))


def cases(quick: bool) -> list[Case]:
    """Return what is measured: `CASES`, and some of them with one hypothesis."""
    alone = [
        replace(case, name=f"{case.name}, batch 1", batch=1) for case in CASES if case.name in ALONE
    ]
    return [case for case in (*CASES, *alone) if not quick or case.name in QUICK]


def milliseconds(run: Callable[[], object], rounds: int = ROUNDS) -> dict[str, float]:
    """Return `quantiles` of one run, from rounds of as many as take `ROUND`; two warm it up."""
    run()
    each = max(1, round(ROUND / max(_elapsed(run, 1), ROUND / MOST)))
    return quantiles([_elapsed(run, each) for _ in range(rounds)])


def _elapsed(run: Callable[[], object], each: int) -> float:
    """Return the milliseconds of one of several runs that are queued together."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(each):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / each


def rates() -> dict[str, float]:
    """Measure the roofline: matrix products in FLOP/s by dtype, and copies in bytes/s."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(8192, 8192, device=DEVICE).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        time = milliseconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 5)["median"]
        found[str(dtype)] = 2 * 8192**3 / time * 1e3
    memory = torch.randn(2**28, device=DEVICE)
    copy = torch.empty_like(memory)
    found["copy"] = 2 * memory.nbytes / milliseconds(lambda: copy.copy_(memory))["median"] * 1e3
    return found


def check_twin() -> float:
    """Check the plain twin against inner products in float64; return its error."""
    torch.manual_seed(0)
    target, source = torch.randn(9, 5, 3), torch.randn(2, 9, 5, 3)
    perms, model = {"h": torch.stack([torch.randperm(5) for _ in range(4)])}, torch.arange(4) % 2
    terms = [RowTerm(target, source, ("g", "h"))]
    found = row_distance_reference(terms, perms, model)
    exact = torch.zeros(4, 9, 9, dtype=torch.float64)
    for w, i, j in itertools.product(range(4), range(9), range(9)):
        moved = source[model[w], j][perms["h"][w]].double()
        exact[w, i, j] = (target[i].double() * moved).sum()
    error = float((found - exact).abs().max())
    assert error < 1e-4, f"the twin is off by {error}"
    return error


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Allow torch to round the factors of float32 products to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def errors_of(
    terms: Sequence[RowTerm], problem: RowProblem, found: torch.Tensor
) -> tuple[float, float, float]:
    """Return the relative errors of the first hypothesis against float64.

    Args:
        terms: the weights.
        problem: the same packed, and hypotheses.
        found: what the kernel made of it.

    Returns:
        Of the kernel, of torch, of torch with TF32.
    """
    one = {group: perm[:1] for group, perm in problem.perms.items()}
    small = RowProblem(problem.rows, one, problem.model[:1])
    exact = torch.zeros_like(found[:1], dtype=torch.float64)
    for term in terms:
        target, source = matrices(term)
        perm, depth = one[term.others[0]], term.target.shape[-1]
        rows = rows_of(perm, small.model, depth)[0]
        exact += (target.double() * signs_of(perm, depth)) @ source[rows].double()
    plain = torch_similarity(terms, small)
    with tf32():
        rounded = torch_similarity(terms, small)
    ours, torchs, tf32s = (
        float((x - exact).norm() / exact.norm()) for x in (found[:1], plain, rounded)
    )
    return ours, torchs, tf32s


def measure(case: Case, limits: dict[str, float]) -> dict[str, object]:
    """Check and time one network."""
    from gpu_align.kernels.row_distance import RowDistance

    torch.manual_seed(0)
    drawn = case.problems(DEVICE)
    plans = [RowDistance(problem) for _, problem in drawn]
    errors = [errors_of(*group, plan.launch()) for group, plan in zip(drawn, plans, strict=True)]
    ours, torchs, tf32s = (max(column) for column in zip(*errors, strict=True))
    assert ours <= 2 * torchs + 1e-7, f"{case.name}: error {ours}, torch's {torchs}"

    def prepare_and_launch() -> None:
        for (_, problem), plan in zip(drawn, plans, strict=True):
            RowDistance(problem, out=plan.out).launch()

    def in_torch() -> object:
        return [torch_similarity(*group) for group in drawn]

    kernel = milliseconds(lambda: [plan.launch() for plan in plans])
    prepared = milliseconds(prepare_and_launch)
    baseline = milliseconds(in_torch, BASELINE_ROUNDS)
    seconds = kernel["median"] / 1e3
    roof = limits[str(torch.bfloat16)] / PRODUCTS
    row = {
        "case": case.name,
        "batch": case.batch,
        "kernel_ms": kernel,
        "with_preparation_ms": prepared,
        "torch_ms": baseline,
        "times_torch": baseline["median"] / kernel["median"],
        "tflops": case.flops / seconds / 1e12,
        "roof_fraction": case.flops / seconds / roof,
        "copy_fraction": case.bytes(torch.float32.itemsize) / seconds / limits["copy"],
        "error": ours,
        "torch_error": torchs,
    }
    with tf32():
        row["torch_tf32_ms"] = milliseconds(in_torch, BASELINE_ROUNDS)
    row["torch_tf32_error"] = tf32s
    return row


def measure_annealing(size: int, batch: int) -> dict[str, object]:
    """Time one annealing step (10 iterations) beside the same in torch."""
    from gpu_align.kernels.sinkhorn import AnnealingStep

    torch.manual_seed(0)
    similarity = torch.randn(batch, size, size, device=DEVICE)
    soft = torch.rand_like(similarity)
    exact, plain = soft[:1].double(), soft[:1].clone()
    step = AnnealingStep([similarity], [soft])
    step.launch(0.2, 0.5, 10)
    annealing_step_reference(similarity[:1].double(), exact, 0.2, 0.5, 10)
    annealing_step_reference(similarity[:1], plain, 0.2, 0.5, 10)
    ours, torchs = (float((x - exact).norm() / exact.norm()) for x in (soft[:1], plain))
    assert ours <= 2 * torchs + 1e-7, f"annealing: error {ours}, torch's {torchs}"
    kernel = milliseconds(lambda: step.launch(0.2, 0.5, 10))
    baseline = milliseconds(lambda: annealing_step_reference(similarity, soft, 0.2, 0.5, 10))
    return {
        "case": f"annealing step, n = {size}",
        "batch": batch,
        "kernel_ms": kernel,
        "torch_ms": baseline,
        "times_torch": baseline["median"] / kernel["median"],
        "error": ours,
        "torch_error": torchs,
    }


def line(row: dict) -> str:
    """Format a row."""
    if "failed" in row:
        return row["failed"]
    text = f"{row['case']:24} {row['kernel_ms']['median']:9.3f} ms"
    text += f", torch {row['torch_ms']['median']:9.3f}"
    if "torch_tf32_ms" in row:
        text += f", with TF32 {row['torch_tf32_ms']['median']:9.3f}"
    if "roof_fraction" in row:
        text += f"; {row['roof_fraction']:4.0%} of the roof, {row['copy_fraction']:4.0%} of a copy"
    text += f"; error {row['error']:.1e}, torch {row['torch_error']:.1e}"
    return text + (f", TF32 {row['torch_tf32_error']:.1e}" if "torch_tf32_error" in row else "")


def main() -> None:
    print(f"the plain twin agrees with float64 to {check_twin():.1e}")
    if not torch.cuda.is_available():
        print("no CUDA device here: device figures are not yet measured")
        return
    quick = "--quick" in sys.argv
    limits = rates()
    rows: list[dict] = [{"case": "roofline", **limits}]
    print(f"rates: {limits}")
    jobs = [lambda c=c: measure(c, limits) for c in cases(quick)]
    shapes = ANNEALED[-2:-1] if quick else ANNEALED
    jobs += [lambda n=n, b=b: measure_annealing(n, b) for n, b in shapes]
    for job in jobs:
        try:
            rows.append(job())
        except AssertionError as error:
            rows.append({"failed": str(error)})
        print(line(rows[-1]), flush=True)
        torch.cuda.empty_cache()
        if "--record" in sys.argv:
            record("row_distance", rows)
    failed = sum("failed" in row for row in rows)
    if failed:
        sys.exit(f"{failed} of {len(rows)} cases failed")


if __name__ == "__main__":
    main()
