"""The assignment kernels thread by thread: no race, no fault, SciPy's answer, in every schedule.

It takes minutes: `make test-slow` runs it, and what is marked `whole` runs by `make simulate`
only. `-s` shows what notices the missing barriers.
"""

import ctypes
import math
import re
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from auction_host import COMPILER, HostDevice, shared_folder
from auction_simulator import ADDR2LINE, Layout, Policy, SimulatedDevice, Simulator, build
from test_auction import KINDS, check, make_cost, statuses

from gpu_align._status import Status
from gpu_align.kernels.auction import AuctionResult, auction

pytestmark = [
    pytest.mark.skipif(not (COMPILER and ADDR2LINE), reason="needs g++ and addr2line"),
    pytest.mark.slow,
]

EXACT = ("col_ind", "row_dual", "col_dual", "status_codes", "stats")
"""What one thread on the host computes too, bit for bit."""

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def simulator_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Build a unit of `simulator/` once for all workers of a session."""

    def make(unit: str) -> Path:
        with shared_folder(tmp_path_factory) as folder:
            return build(folder, unit)

    return make


# The simulator itself.

RIGHT = ("barrier", "barrier_of_lanes", "barrier_of_half", "message_with_fences")
RIGHT += ("message_by_acquire", "exchanges", "atomics")
FAULTS = {
    "no_barrier": "race in shared memory: .* of two warps",
    "shuffle_as_barrier": "race in shared memory: .* of two lanes of a warp",
    "barrier_of_the_wrong_half": "race in shared memory: .* of two lanes of a warp",
    "barrier_of_one_block": "race in values: write .* and write .* of two blocks",
    "message_without_release": "race in values: .* of two blocks",
    "message_without_acquire": "race in values: .* of two blocks",
    "barriers_in_branches": "divergent: __syncthreads .* meets __syncthreads",
    "barrier_missed": "deadlock: __syncthreads .* waits for a thread that has ended",
    "lane_missing": "deadlock: __shfl_xor_sync .* waits for a thread that has ended",
    "lane_at_another_exchange": "divergent: __a.._sync .* meets __a.._sync",
    "lane_waits_elsewhere": "deadlock: __ballot_sync .* waits .* waits at __syncthreads",
    "lane_not_in_its_mask": "a lane is not in its own mask: __ballot_sync",
    "lane_outside_the_mask": "a lane that takes no part is read: __shfl_sync",
    "looks_in_vain": "deadlock: a thread looks in vain",
    "never_ends": "endless: more than 100000 accesses",
    "never_written": "uninitialised: values",
    "reads_over_the_end": "out of bounds: read outside of every region",
    "writes_before_the_start": "out of bounds: write outside of every region",
    "over_the_end_of_shared_memory": "out of bounds: write outside of every region",
    "misaligned": "misaligned: values",
    "bytes": "not simulated: an access of fewer than 4 bytes",
}


def run_small(library: Path, kernel: str, policy: Policy) -> tuple[np.ndarray, list[str]]:
    """Launch a kernel of faults.cpp; returns its memory and the reports."""
    simulator = Simulator(library)
    simulator.set_options(policy, limit=100_000)
    # Room around the values: a write that the simulator lets through must harm nobody.
    memory, counter = np.zeros(1 << 12, np.int32), np.zeros(1, np.int32)
    start = 16 + -memory.ctypes.data // 4 % 4
    values = memory[start : start + 32 * 32]
    launch = simulator.library[kernel]
    launch.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    launch(values.ctypes.data, len(values), counter.ctypes.data)
    return values.reshape(32, 32), simulator.reports()


@pytest.mark.parametrize("kernel", RIGHT)
def test_nothing_is_reported_of_what_is_right(simulator_of: Make, kernel: str) -> None:
    for policy in Policy:
        assert run_small(simulator_of("faults"), kernel, policy)[1] == []


@pytest.mark.parametrize(("kernel", "expected"), FAULTS.items(), ids=FAULTS)
def test_every_fault_is_reported(simulator_of: Make, kernel: str, expected: str) -> None:
    for policy in Policy:
        reports = run_small(simulator_of("faults"), kernel, policy)[1]
        assert any(re.match(expected, report) for report in reports), reports
        assert all(re.search(r"faults\.cpp:\d", r) or r.startswith("endless") for r in reports)


def test_exchanges_compute_what_cuda_says(simulator_of: Make) -> None:
    found = run_small(simulator_of("faults"), "exchanges", Policy.RANDOM)[0]
    lane = np.arange(32)
    x = (7 * lane + 3) % 32 - 16
    first, unsigned = lane // 8 * 8, x.astype(np.uint32)
    bits = [int(value) & 0xFFFFFFFF for value in x]
    expected = [
        x,
        x[lane // 2],
        x[first + 3],
        np.where(lane >= 3, x[lane - 3], x),
        np.where(lane % 8 >= 3, x[lane - 3], x),
        np.where(lane < 29, x[(lane + 3) % 32], x),
        np.where(lane % 8 < 5, x[(lane + 3) % 32], x),
        x[lane ^ 5],
        x[lane ^ 4],
        np.full(32, (x > 0) @ (1 << lane)),
        np.full(32, 1),
        np.full(32, x.sum()),
        np.full(32, x.min()),
        np.full(32, x.max()),
        np.full(32, unsigned.min()),
        np.full(32, unsigned.max()),
        np.full(32, (x > 0).sum() + 100),
        np.where(lane < 16, x[:16].sum(), x[16:].sum()),
        [b.bit_count() + 100 * (32 - b.bit_length()) + 10000 * (b & -b).bit_length() for b in bits],
    ]
    for row, values in enumerate(expected):
        assert np.array_equal(found[row], np.asarray(values).astype(np.uint32).view(np.int32)), row


def test_atomics_compute_what_cuda_says(simulator_of: Make) -> None:
    for policy in Policy:
        found = run_small(simulator_of("faults"), "atomics", policy)[0].ravel()
        assert found[:6].tolist() == [496, -26, 26, -(2**16), 2**16 - 1, 64]
        assert found[8:10].view(np.uint64).item() == 1
        assert found[12:13].view(np.float32).item() == 8.5


# The assignment kernels.

LAYOUTS = {
    "warp": Layout("auction_warp", 2, 64),
    "warp of 64": Layout("auction_warp_64", 2, 64),
    "shared": Layout("auction_shared", 2, 64),
    "block": Layout("auction_block", 2, 96),
    "grid": Layout("auction_grid", 2, 64, team_blocks=2),
}
MORE = {
    "one warp": Layout("auction_warp", 1, 32),
    "many warps": Layout("auction_warp", 1, 256),
    "shared, one warp": Layout("auction_shared", 1, 32),
    "shared, many warps": Layout("auction_shared", 1, 256),
    "block, one warp": Layout("auction_block", 1, 32),
    "block, many warps": Layout("auction_block", 1, 256),
    "grid of single blocks": Layout("auction_grid", 3, 32),
    "grid of three": Layout("auction_grid", 1, 64, team_blocks=3),
    "grid of many warps": Layout("auction_grid", 1, 128, team_blocks=4),
}
ROWS = {"auction_warp": (1, 2, 5, 24, 31, 32), "auction_warp_64": (33, 47, 64)}
BLOCK_ROWS = (65, 70)


@pytest.fixture
def device(simulator_of: Make, monkeypatch: pytest.MonkeyPatch) -> SimulatedDevice:
    simulated = SimulatedDevice(simulator_of("auction"))
    simulated.install(monkeypatch)
    return simulated


def solve(device: SimulatedDevice, layout: Layout, cost: torch.Tensor, **options) -> AuctionResult:
    """Solve a batch in four schedules; nothing is reported, and all give the same bits."""
    device.use(layout)
    results = []
    for policy in Policy:
        device.simulator.set_options(policy, seed=policy + 1)
        results.append(auction(cost, **options))
    assert not device.found, "\n".join(device.found)
    for other in results[1:]:
        assert_same(results[0], other, vars(other))
    return results[0]


def assert_same(first: AuctionResult, other: AuctionResult, names) -> None:
    for name in names:
        a, b = getattr(first, name), getattr(other, name)
        assert torch.equal(a.view(torch.int64), b.view(torch.int64)), name


def cold_cases():
    """Layout, rows and kinds of costs: a few, and all of them marked `whole`."""
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        for n in ROWS.get(layout.kernel, BLOCK_ROWS)[-2:]:
            kinds = [KINDS[(number + n + k) % len(KINDS)] for k in (0, 3, 7)]
            yield pytest.param(layout, n, kinds, id=f"{name}-{n}")
    for name, layout in (LAYOUTS | MORE).items():
        for n, part in product(ROWS.get(layout.kernel, BLOCK_ROWS), range(3)):
            id_of = f"{name}-{n}-{part}"
            yield pytest.param(layout, n, KINDS[part::3], id=id_of, marks=pytest.mark.whole)
    for name in ("shared", "block", "grid"):
        kinds = ("planted", "few_integers")
        yield pytest.param(LAYOUTS[name], 150, kinds, id=f"{name}-150", marks=pytest.mark.whole)


@pytest.mark.parametrize(("layout", "n", "kinds"), list(cold_cases()))
def test_cold_starts(device, auction_library, monkeypatch, layout, n, kinds) -> None:
    cost = torch.stack([make_cost(kind, n) for kind in kinds])
    if n % 2 == 0:
        cost = cost.float()
    found = solve(device, layout, cost)
    for p in range(len(kinds)):
        check(cost[p], found, p)
    HostDevice(auction_library).install(monkeypatch)
    assert_same(found, auction(cost), EXACT)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_sizes_and_failures(device, layout) -> None:
    n = ROWS.get(layout.kernel, BLOCK_ROWS)[-1]
    sizes = torch.tensor([n, 0, 1, n - 3, 5, n + 1])
    cost = torch.full((len(sizes), n, n), math.nan, dtype=torch.float64)
    for p, size in enumerate(sizes.tolist()[:5]):
        cost[p, :size, :size] = make_cost("aligned", size, p)
    cost[4, 2, 2] = math.inf
    found = solve(device, layout, cost, sizes=sizes, maximize=True)
    for p in (0, 2, 3):
        size = int(sizes[p])
        check(cost[p, :size, :size], found, p, maximize=True)
        assert found.col_ind[p, size:].tolist() == list(range(size, n))
    assert statuses(found) == [Status.SOLVED] * 4 + [Status.NOT_FINITE, Status.WRONG_SIZE]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_warm_starts(device, layout) -> None:
    """From a near solution, a cold one, and one of junk, in one batch."""
    n = ROWS.get(layout.kernel, BLOCK_ROWS)[-1]
    cost = torch.stack([make_cost(kind, n) for kind in ("aligned", "dead_units", "few_integers")])
    old = solve(device, layout, cost + 0.02 * torch.randn_like(cost))
    dual, col = old.col_dual.clone(), old.col_ind.clone()
    dual[1, 0] = math.nan  # starts cold
    dual[2, 1::2] = torch.tensor([math.nan, math.inf, -1e300]).repeat(n)[: n // 2]
    col[2] = torch.randint(-5, n + 5, (n,))
    found = solve(device, layout, cost, warm_start=(dual, col))
    for p in range(len(cost)):
        check(cost[p], found, p)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_limit_of_rounds(device, layout) -> None:
    n = ROWS.get(layout.kernel, BLOCK_ROWS)[-1]
    cost = torch.stack([make_cost(kind, n) for kind in ("sorted_products", "planted")])
    found = solve(device, layout, cost, max_rounds=1)
    assert statuses(found) == [Status.ROUND_LIMIT, Status.SOLVED]
    check(cost[1], found, 1)


# What the simulator can see: every barrier and fence is left out once.


# Layouts and rows. One team for several problems, so that what ends a problem counts too, and with
# fewer threads than rows, so that every warp and block has a share of each loop; a grid also with
# blocks of two warps, because what thread 0 waits for the rest of its warp has waited for.
TEAMS = {
    "warp": [(Layout("auction_warp", 1, 32), 31)],
    "warp of 64": [(Layout("auction_warp_64", 1, 32), 47)],
    "shared": [(Layout("auction_shared", 1, 64), 70)],
    "block": [(Layout("auction_block", 1, 64), 70)],
    "grid": [
        (Layout("auction_grid", 1, 32, team_blocks=2), 70),
        (Layout("auction_grid", 1, 64, team_blocks=2), 66),
    ],
}


@pytest.mark.whole
@pytest.mark.parametrize("name", TEAMS)
def test_a_missing_barrier_is_noticed(device, name) -> None:
    """Those that nobody misses are few; another barrier stands in for them, or they may go."""
    simulator, noticed = device.simulator, defaultdict(str)
    for layout, n in TEAMS[name]:
        device.use(layout)
        device.sites.clear()
        calls = make_calls(device, n)
        for site in sorted(device.sites):
            # The two halves of a grid's barrier count as one: where a single thread wrote before
            # it, its own block need not meet.
            barrier = simulator.caller(site)
            noticed[barrier] = noticed[barrier] or what_is_noticed(device, site, calls)
    for barrier, what in noticed.items():
        print(f"{name} without {barrier}: {what or 'NOTHING'}", flush=True)
    assert len(noticed) >= (5 if name.startswith("warp") else 20)
    unneeded = [barrier for barrier, what in noticed.items() if not what]
    assert 3 * len(unneeded) <= len(noticed), unneeded


def make_calls(device: SimulatedDevice, n: int):
    """Costs, options and the result of a cold start and of a warm one, with every barrier."""
    device.simulator.set_options()
    cost = torch.stack([make_cost(kind, n) for kind in ("few_integers", "dead_units", "planted")])
    cold = auction(cost)
    warm = {"warm_start": (cold.col_dual, cold.col_ind)}
    moved = cost + 0.05 * torch.randn_like(cost)
    return (cost, {}, cold), (moved, warm, auction(moved, **warm))


def what_is_noticed(device: SimulatedDevice, site: int, calls) -> str:
    """What is first noticed when a barrier is left out; nothing if no schedule shows it."""
    for policy, (cost, options, expected) in product(Policy, calls):
        device.found.clear()
        device.simulator.set_options(policy, limit=20_000_000, left_out=site)
        found = auction(cost, **options)
        if device.found:
            return min(device.found)
        for name, value in vars(found).items():
            if not torch.equal(value.view(torch.int64), getattr(expected, name).view(torch.int64)):
                return f"another {name}"
    return ""
