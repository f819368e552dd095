"""How much memory is free, and how many models fit into it at once."""

import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from gpu_align._problem import Metric, families_of
from gpu_align._problem._terms import CHUNK_ELEMENTS
from gpu_align._search import (
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    LayerwiseBeam,
    Portfolio,
    Recombination,
    Search,
)
from gpu_align._symmetry import PermutationSpec

_SHARE = 0.5  # of the free memory that is planned with: the estimates are rough
_UNKNOWN = 32  # hypotheses per model of a search that is not ours
_GIB = 2**30


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can still be allocated on a device.

    On CUDA what the driver has free and what torch holds in reserve; on the CPU what the kernel
    calls available, or less where a control group allows less.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    available = _meminfo().get("MemAvailable")
    if available is None:
        # Not Linux: assume that half of the memory is in use.
        names: Mapping[str, int] = getattr(os, "sysconf_names", {})
        if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
            return 4 * _GIB
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return int(min(available, _left_in_control_group()))


def _meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes; empty where there is none."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return {}
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) == 3}


def _left_in_control_group(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what the control group (version 2) of a container has left; inf without a limit."""
    limit, used, stat = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.exists() and used.exists() and stat.exists()):
        return math.inf
    allowed = limit.read_text(encoding="ascii").strip()
    if allowed == "max":
        return math.inf
    # Cached files count as used, but make room.
    lines = (line.split() for line in stat.read_text(encoding="ascii").splitlines())
    cached = sum(int(size) for name, size in lines if name in ("active_file", "inactive_file"))
    return max(int(allowed) - int(used.read_text(encoding="ascii")) + cached, 0)


def batch_ranges(models: int, bytes_per_model: int, free: int) -> list[range]:
    """Cut `range(models)` into as few batches of nearly equal size as fit the free memory.

    A batch has at least one model, whatever is free.
    """
    fitting = max(int(_SHARE * free) // max(bytes_per_model, 1), 1)
    count = -(-models // fitting)
    ends = [models * number // count for number in range(count + 1)] if count else []
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def bytes_per_model(
    spec: PermutationSpec, metric: Metric, search: Search, dtype: torch.dtype
) -> int:
    """Estimate what one model needs while it is searched for, or certified after that.

    The search holds terms in its dtype, laid out once more for every group axis, and for each
    hypothesis at most four matrices per group at once (annealing: the matrices, their gradient
    and two steps between); beside it the copy that permutes a term. The certificate holds the
    terms and layouts in float64, and sorted copies of them for the bound. While either is built,
    three copies of the largest tensor are there in float64.
    """
    families = families_of(spec, signs=metric.odd)
    units = [f.units(member) for f in families for member in f.members for _ in member.matrices]
    matrices = sum(n * n for n in units)
    sizes, terms = [0], 0
    for tensor in spec.tensors.values():
        if tensor.counted:
            axes = sum(len(axis.groups) for axis in tensor.axes)
            sizes.append(math.prod(tensor.shape))
            terms += sizes[-1] * (1 + (axes if axes > 1 else 0))
    width = hypotheses_per_model(search)
    entries = terms + (1 + 4 * width) * matrices + width * min(max(sizes), CHUNK_ELEMENTS)
    searching = entries * dtype.itemsize + width * 4 * 8 * sum(units)
    certifying = 8 * (terms + 2 * sum(sizes) + 6 * matrices)
    return max(searching, certifying) + 3 * 8 * max(sizes)


def hypotheses_per_model(search: Search) -> int:
    """Return how many hypotheses of each model a search holds at most; a guess for others' own."""
    match search:
        case Portfolio():
            parts = (*search.searches, *search.refinements)
            return search.width + max(map(hypotheses_per_model, parts))
        case CoordinateDescent() | FrankWolfe() | Annealing():
            return search.starts
        case Recombination():
            return search.population + search.children
        case BeamDescent():
            return search.width * (1 + search.expansions)
        case LayerwiseBeam():
            return search.width * (1 + search.candidates.count)
        case _:
            return _UNKNOWN
