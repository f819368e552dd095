"""The row-distance kernels and the annealing step against torch and the machine's own limits.

    python -m bench.row_distance [--record]

All groups of a network in one launch, beside a gather and matrix products in torch on the same
weights, and beside the rates of a large matrix product and a large copy measured in the same run.
Each case is first checked against float64. The caches hold what the last repetition left there.
Without a GPU only the plain twin is checked. After each case --record writes what there is.
"""

import itertools
import sys
from collections.abc import Callable

import torch

from bench.cases import CASES, Case, torch_similarity
from bench.record import record
from bench.timing import quantiles
from gpu_align.kernels._rows import RowProblem, RowTerm
from gpu_align.kernels._twins import annealing_step_reference, row_distance_reference

DEVICE = torch.device("cuda")
ROUNDS = 15
DTYPES = (torch.float32, torch.bfloat16)


def milliseconds(run: Callable[[], object], rounds: int = ROUNDS) -> dict[str, float]:
    """Return `quantiles` of synchronised runs, after two warm-up runs."""
    times = []
    for number in range(rounds + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        if number >= 2:
            times.append(start.elapsed_time(stop))
    return quantiles(times)


def rates() -> dict[str, float]:
    """Measure the roofline: matrix products in FLOP/s by dtype, and copies in bytes/s."""
    found = {}
    for dtype in DTYPES:
        a, b = (torch.randn(8192, 8192, device=DEVICE).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        time = milliseconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 5)["median"]
        found[str(dtype)] = 2 * 8192**3 / time * 1e3
    memory = torch.randn(2**28, device=DEVICE)
    copy = torch.empty_like(memory)
    found["copy"] = 2 * memory.nbytes / milliseconds(lambda: copy.copy_(memory))["median"] * 1e3
    return found


def check_twin() -> float:
    """Check the plain twin against sums of squared differences in float64; return its error."""
    torch.manual_seed(0)
    target, source = torch.randn(9, 5, 3), torch.randn(2, 9, 5, 3)
    perms, model = {"h": torch.stack([torch.randperm(5) for _ in range(4)])}, torch.arange(4) % 2
    terms = [RowTerm(target, source, ("g", "h"))]
    found = row_distance_reference(terms, perms, model, cost=True)
    exact = torch.zeros(4, 9, 9, dtype=torch.float64)
    for w, i, j in itertools.product(range(4), range(9), range(9)):
        moved = source[model[w], j][perms["h"][w]].double()
        exact[w, i, j] = (target[i].double() - moved).square().sum()
    error = float((found - exact).abs().max())
    assert error < 1e-4, f"the twin is off by {error}"
    return error


def error_of(problem: RowProblem, found: torch.Tensor) -> tuple[float, float]:
    """Return the kernel's and torch's relative error of the first hypothesis against float64."""
    one = {group: perm[:1] for group, perm in problem.perms.items()}
    small = RowProblem(problem.rows, one, problem.model[:1], problem.signed)
    exact = torch.zeros_like(found[:1], dtype=torch.float64)
    for term in problem.rows.terms:
        perm = one[term.others[0]]
        inner = torch.arange(term.inner, device=perm.device)
        index = torch.where(perm < 0, ~perm, perm)
        rows = (index[..., None] * term.inner + inner).flatten() + small.model * term.length
        moved = term.source.index_select(0, rows)[:, : problem.rows.size].double()
        sign = torch.where(perm < 0, -1.0, 1.0).double().repeat_interleave(term.inner, 1)
        exact += (term.target[:, : term.length].double() * sign) @ moved
    plain = torch_similarity(small)
    norm = exact.norm()
    return float((found[:1] - exact).norm() / norm), float((plain - exact).norm() / norm)


def measure(case: Case, dtype: torch.dtype, limits: dict[str, float]) -> dict[str, object]:
    """Check and time one network in one dtype."""
    from gpu_align.kernels.row_distance import RowDistance

    torch.manual_seed(0)
    problems = case.problems(dtype, DEVICE)
    plan = RowDistance(problems)
    errors = [error_of(p, m) for p, m in zip(problems, plan.launch(), strict=True)]
    ours, torchs = (max(column) for column in zip(*errors, strict=True))
    assert ours <= 2 * torchs + 1e-7, f"{case.name}: error {ours}, torch's {torchs}"
    kernel = milliseconds(plan.launch)
    prepared = milliseconds(lambda: RowDistance(problems, out=plan.out).launch())
    baseline = milliseconds(lambda: [torch_similarity(problem) for problem in problems], 5)
    seconds = kernel["median"] / 1e3
    return {
        "case": case.name,
        "dtype": str(dtype),
        "batch": case.batch,
        "kernel_ms": kernel,
        "with_preparation_ms": prepared,
        "torch_ms": baseline,
        "times_torch": baseline["median"] / kernel["median"],
        "gemm_fraction": case.flops / seconds / limits[str(dtype)],
        "copy_fraction": case.bytes(dtype.itemsize) / seconds / limits["copy"],
        "error": ours,
        "torch_error": torchs,
    }


def measure_update(size: int, batch: int, changes: int) -> dict[str, object]:
    """Time the delta form beside the full cost, for a linear layer."""
    from gpu_align.kernels.row_distance import RowDistance
    from gpu_align.kernels.row_update import RowDistanceUpdate, RowUpdate

    case = Case("update", [(size, [(size, 1)])], batch)
    (problem,) = case.problems(torch.float32, DEVICE)
    full = RowDistance([problem])
    parent = full.launch()[0]
    before = problem.perms[str(size)]
    after = before.clone()
    after[:, :changes] = before[:, :changes].roll(1, 1)
    moved = RowProblem(problem.rows, {str(size): after}, problem.model)
    index = torch.arange(batch, device=DEVICE)
    plan = RowDistanceUpdate([RowUpdate(moved, parent, index, str(size), before)])
    ours, torchs = error_of(moved, plan.launch()[0])
    assert ours <= 2 * torchs + 1e-7, f"update: error {ours}, torch's {torchs}"
    return {
        "case": f"update of {changes} places, n = {size}",
        "batch": batch,
        "kernel_ms": milliseconds(plan.launch),
        "full_ms": milliseconds(full.launch),
        "error": ours,
        "torch_error": torchs,
    }


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


def main() -> None:
    print(f"the plain twin agrees with float64 to {check_twin():.1e}")
    if not torch.cuda.is_available():
        print("no CUDA device here: device figures are not yet measured")
        return
    limits = rates()
    rows: list[dict] = [{"case": "roofline", **limits}]
    jobs = [lambda c=c, d=d: measure(c, d, limits) for c in CASES for d in DTYPES]
    jobs += [lambda m=m: measure_update(2048, 16, m) for m in (2, 64)]
    shapes = [(32, 4096), (64, 2048), (128, 512), (512, 64), (2048, 4)]
    jobs += [lambda n=n, b=b: measure_annealing(n, b) for n, b in shapes]
    print(rows[0])
    for job in jobs:
        try:
            rows.append(job())
        except AssertionError as error:
            rows.append({"failed": str(error)})
        print({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()})
        torch.cuda.empty_cache()
        if "--record" in sys.argv:
            record("row_distance", rows)
    failed = sum("failed" in row for row in rows)
    if failed:
        sys.exit(f"{failed} of {len(rows)} cases failed")


if __name__ == "__main__":
    main()
