"""Many linear assignment problems at once on a CUDA device: the launcher of ``auction.cu``.

CuPy compiles the kernels and launches them; memory is PyTorch's, the stream is PyTorch's current
one, and nothing here waits for the device. ``kernels/README.md`` has the method and its limits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu_align._errors import InputError, UnavailableError
from gpu_align._status import Status
from gpu_align.kernels._cuda import Kernel, compiled, current_stream
from gpu_align.kernels._cuda import limits as _limits

STATS = ("auction_rounds", "forest_rounds", "forest_phases", "row_scans")
"""What is counted for each problem; ``row_scans / n`` is how often its matrix was read."""

KERNELS = ("auction_warp", "auction_shared", "auction_block", "auction_grid", "auction_warp_64")
"""One kernel per size of the team that shares a problem, in the order of ``KERNEL``."""

_DEVICE = "cuda"
_WARP_KERNELS = ((32, 0, 8), (64, 4, 4))  # rows, kernel, warps of a block: at most
_GRID_ROWS, _GRID_COLUMNS = 2048, 64
_BOX_BYTES, _VECTOR_BYTES = 144, 40
_MOST_PARTS, _TILE = 8, 128
_SHARED_THREADS, _BLOCK_THREADS, _GRID_THREADS = 512, 768, 384


WarmStart = tuple[Tensor, Tensor | None]
"""Where to start: duals of the columns, and the matchings that belong to them. See `auction`."""

STATUS_OF_CODE = (
    Status.SOLVED,
    Status.NOT_FINITE,
    Status.ROUND_LIMIT,
    Status.INEXACT,
    Status.WRONG_SIZE,
)
"""Status code -> how a problem ended; only 0 is success. In the order of ``enum Status``."""


@dataclass(frozen=True, eq=False)
class AuctionResult:
    """What a launch will have written when the device gets there; all tensors lie on it.

    Attributes:
        col_ind: [b, n], int64; a permutation in every line, the identity on padding and where a
            problem failed.
        row_dual: [b, n], float64; feasible with `col_dual`. Zero on padding, NaN on failure.
        col_dual: [b, n], float64. Start the next call from it.
        objective: [b], float64; NaN on failure.
        duality_gap: [b], float64; certified on the costs as given, NaN on failure.
        status_codes: [b], int64; see `STATUS_OF_CODE`.
        stats: [b, 4], int64; see `STATS`.
    """

    col_ind: Tensor
    row_dual: Tensor
    col_dual: Tensor
    objective: Tensor
    duality_gap: Tensor
    status_codes: Tensor
    stats: Tensor

    def named_stats(self) -> dict[str, Tensor]:
        """Return each count, [b], by its name."""
        return dict(zip(STATS, self.stats.unbind(1), strict=True))


@dataclass(frozen=True)
class Plan:
    """How a batch is laid on a device.

    Attributes:
        kernel: index into `KERNELS`.
        blocks: of the launch.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        teams: problems in flight which need scratch memory.
        team_bytes: bytes of a team in scratch memory, or of a warp in shared memory.
        team_blocks: blocks of a team (`auction_grid`).
    """

    kernel: int
    blocks: int
    threads: int
    shared_bytes: int = 0
    teams: int = 0
    team_bytes: int = 0
    team_blocks: int = 1


def compile_options(kernel: int) -> tuple[str, ...]:
    """Return the NVRTC options, but for the architecture, that build one of `KERNELS`.

    Without contraction to fused operations, as a host compiler rounds too; with the numbers of
    lines, which profilers and compute-sanitizer name.
    """
    threads = (f"-DBLOCK_THREADS={_BLOCK_THREADS}", f"-DGRID_THREADS={_GRID_THREADS}")
    return ("--std=c++17", "--fmad=false", "--generate-line-info", f"-DKERNEL={kernel}", *threads)


def entry_of(kernel: int) -> Kernel:
    """Return what is compiled for one of `KERNELS`; the blocks of a grid wait for each other."""
    name = KERNELS[kernel]
    return Kernel("auction.cu", name, compile_options(kernel), cooperative=name == "auction_grid")


def plan(batch: int, n: int, shared_limit: int, multiprocessors: int) -> Plan:
    """Choose the kernel and its launch for `batch` problems of up to `n` rows.

    Args:
        batch: at least 1.
        n: at least 1.
        shared_limit: bytes of shared memory that a block may have.
        multiprocessors: of the device.

    Returns:
        A warp per problem up to 64 rows; a block while the vectors fit shared memory, with the
        matrix beside them where it fits; else, and for few large problems, blocks that share one.
    """
    for rows, kernel, most_warps in _WARP_KERNELS:
        if n <= rows:
            each = -(-4 * (2 * rows + n * (n | 1)) // 16) * 16
            warps = max(1, min(most_warps, shared_limit // each, batch // multiprocessors))
            blocks = -(-batch // warps)
            return Plan(kernel, blocks, 32 * warps, shared_bytes=warps * each, team_bytes=each)
    padded = -(-n // 4) * 4
    matrix, vectors = 4 * n * padded, _BOX_BYTES + _VECTOR_BYTES * padded
    vectors += 4 * _TILE
    matrix += 4 * _TILE
    threads = _SHARED_THREADS if batch <= multiprocessors else 256
    shared = vectors + _offer_bytes(padded, threads // 8, 32)
    if shared + matrix <= shared_limit:
        return Plan(1, batch, threads, shared_bytes=shared + matrix)
    resident = 2 if n <= 1024 and batch > multiprocessors else 1
    threads = _BLOCK_THREADS // resident
    shared = vectors + _offer_bytes(padded, threads // 32)
    if shared <= shared_limit and (n < _GRID_ROWS or 4 * batch > multiprocessors):
        blocks = min(batch, resident * multiprocessors)
        return Plan(2, blocks, threads, shared, teams=blocks, team_bytes=matrix)
    teams = min(batch, multiprocessors)
    share = min(multiprocessors // teams, max(8, n // _GRID_COLUMNS))
    each = vectors + _offer_bytes(padded, share * _GRID_THREADS // 32) + matrix
    return Plan(3, teams * share, _GRID_THREADS, teams=teams, team_bytes=each, team_blocks=share)


def _offer_bytes(padded: int, workers: int, tile: int = _TILE) -> int:
    """Return what the parts of the listed rows need, `tile` columns read side by side."""
    parts = min(_MOST_PARTS, max(1, workers // -(-padded // tile)))
    return 8 * padded * (parts - 1)


def auction(
    cost: Tensor,
    *,
    maximize: bool = False,
    sizes: Tensor | None = None,
    warm_start: WarmStart | None = None,
    max_rounds: int = 200_000,
) -> AuctionResult:
    """Solve every problem of a batch exactly on integers of 28 bits, and certify the result.

    Launches one kernel on PyTorch's current stream; the first call for a size compiles it.

    Args:
        cost: [b, n, n], float32 or float64, on a CUDA device.
        maximize: the largest sum is wanted.
        sizes: [b], int64, 0 to n: problem p is cost[p, :sizes[p], :sizes[p]]; or None. A problem
            of size 0 costs next to nothing: neither its costs nor its old duals are read.
        warm_start: `(col_dual, col_ind)`, or None. col_dual: [b, n], float64: start from these
            duals of the columns, such as those of a similar problem. Each problem judges them:
            where over three rows of ten find no column near their cheapest one, it forgets them
            and starts cold, which then costs one look at the matrix more than a cold start. Any
            values do; a problem whose first one is NaN, as they are of a problem that failed,
            starts cold unasked. col_ind: [b, n], int64: the matching that belongs to them; or
            None, and every row starts from its cheapest column.
        max_rounds: bound on the rounds of each stage.

    Returns:
        The solution of each problem. The matching is optimal for the costs rounded to 28 bits of
        their range; `duality_gap` is what it may lack on the costs themselves.

    Raises:
        InputError: a tensor has the wrong shape, dtype or device.
        UnavailableError: the device has no room for the blocks that a large problem needs at once.
    """
    dual, pairs = warm_start or (None, None)
    sizes, dual, pairs = (
        None if tensor is None else tensor.detach().contiguous() for tensor in (sizes, dual, pairs)
    )
    return Auction(
        cost.detach().contiguous(),
        maximize=maximize,
        sizes=sizes,
        warm_start=None if dual is None else (dual, pairs),
        max_rounds=max_rounds,
    ).launch()


class Auction:
    """A prepared launch of `auction`, whose inputs may be overwritten in place between launches.

    Attributes:
        result: what the last launch found; the next one overwrites it.
    """

    def __init__(
        self,
        cost: Tensor,
        *,
        maximize: bool = False,
        sizes: Tensor | None = None,
        warm_start: WarmStart | None = None,
        max_rounds: int = 200_000,
    ) -> None:
        """See `auction`; all tensors are contiguous."""
        optional = (sizes, *(warm_start or (None, None)))
        batch, n = _check(cost, *optional)
        self.result = _empty_result(batch, n, cost.device)
        self._held, self._device = (cost, *optional), cost.device
        self._plan = plan(batch, n, *_limits(cost.device)) if batch and n else None
        given = [0 if x is None else x.data_ptr() for x in optional]
        arguments: list[int | float] = [cost.data_ptr(), int(cost.dtype == torch.float64), *given]
        arguments += [batch, n, -1.0 if maximize else 1.0, max_rounds]
        arguments += [x.data_ptr() for x in vars(self.result).values()]
        self._arguments = arguments

    def launch(self) -> AuctionResult:
        """Launch on PyTorch's current stream, without waiting, and return `result`."""
        if self._plan is None:
            return _fill_trivial(self.result)
        _launch(self._plan, self._arguments, self._device)
        return self.result


def _check(
    cost: Tensor, sizes: Tensor | None, col_dual: Tensor | None, col_ind: Tensor | None
) -> tuple[int, int]:
    """Raise InputError for what the kernels cannot read; return b and n."""
    if cost.ndim != 3 or cost.shape[1] != cost.shape[2]:
        raise InputError(f"cost: expected shape [b, n, n]; got {list(cost.shape)}.")
    if cost.dtype not in (torch.float32, torch.float64) or cost.device.type != _DEVICE:
        raise InputError(
            f"cost: expected float32 or float64 on a CUDA device; got {cost.dtype} on "
            f"{cost.device}. Convert it with .float() and .cuda()."
        )
    batch, n = cost.shape[:2]
    wanted = (
        ("sizes", sizes, (batch,), torch.int64),
        ("col_dual", col_dual, (batch, n), torch.float64),
        ("col_ind", col_ind, (batch, n), torch.int64),
    )
    for name, tensor, shape, dtype in wanted:
        if tensor is None:
            continue
        if (tuple(tensor.shape), tensor.dtype, tensor.device) != (shape, dtype, cost.device):
            raise InputError(
                f"{name}: expected {dtype} of shape {list(shape)} on {cost.device}; got "
                f"{tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}."
            )
    return batch, n


def _empty_result(batch: int, n: int, device: torch.device) -> AuctionResult:
    """Allocate the outputs, in the order in which the kernels take them."""

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return AuctionResult(
        col_ind=empty(batch, n, dtype=torch.int64),
        row_dual=empty(batch, n),
        col_dual=empty(batch, n),
        objective=empty(batch),
        duality_gap=empty(batch),
        status_codes=empty(batch, dtype=torch.int64),
        stats=empty(batch, len(STATS), dtype=torch.int64),
    )


def _fill_trivial(result: AuctionResult) -> AuctionResult:
    """Solve problems without rows."""
    for tensor in vars(result).values():
        tensor.zero_()
    return result


def _launch(chosen: Plan, arguments: list[int | float], device: torch.device) -> None:
    """Launch a planned kernel with its scratch memory."""
    scratch_bytes = chosen.teams * chosen.team_bytes
    scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=device)
    match chosen.kernel:
        case 0 | 4:
            arguments = [*arguments, chosen.team_bytes]
        case 2:
            arguments = [*arguments, scratch.data_ptr(), chosen.team_bytes // 4]
        case 3:
            arrivals = torch.zeros(chosen.teams, dtype=torch.int64, device=device)
            arguments = [*arguments, scratch.data_ptr(), chosen.team_bytes]
            arguments += [arrivals.data_ptr(), chosen.team_blocks]
    _call(chosen, arguments, device)


def _call(chosen: Plan, arguments: list[int | float], device: torch.device) -> None:
    """Hand a launch to CuPy, on PyTorch's current stream."""
    entry = entry_of(chosen.kernel)
    with current_stream(device):
        kernel = compiled(entry, device, chosen.shared_bytes)
        if entry.cooperative:
            _require_room(kernel, chosen, device)
        kernel(
            (chosen.blocks,), (chosen.threads,), tuple(arguments), shared_mem=chosen.shared_bytes
        )


def _require_room(kernel: Any, chosen: Plan, device: torch.device) -> None:
    """Raise UnavailableError unless all blocks, which wait for each other, run at once."""
    import cupy

    each = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
        kernel.kernel.ptr, chosen.threads, chosen.shared_bytes
    )
    room = each * _limits(device)[1]
    if room < chosen.blocks:
        raise UnavailableError(
            f"auction_grid: expected room for {chosen.blocks} blocks of {chosen.threads} threads "
            f"at once; {device} has room for {room}. Choose ScipyAssignment() for these problems."
        )
