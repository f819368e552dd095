"""Operations that one sweep of weight matching queues on a device, counted without one.

    python -m bench.profile_step --count [--record]

The search runs on torch's `meta` device, whose tensors have no values and cost nothing. Counted are
torch's operations there but for views and allocations, copies from the host, and the launches of
our own kernels, which are not run. Where the host looks at values it is told that every group may
still move, so a sweep does all it can. Counted on a GPU by the profiler a sweep has a few more:
some of torch's operations are several launches.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from bench.large import NETWORKS, Network
from bench.record import record
from gpu_align import AlignmentProblem, CoordinateDescent
from gpu_align._assignment import _auction
from gpu_align._device._backend import Engine
from gpu_align._device._random import RandomStream
from gpu_align._search import Run
from gpu_align._search._executor import DeviceExecutor
from gpu_align.kernels import auction

COUNTED = ("MLP 3x512", "ResNet50")
SWEEPS = 3
MOST = 12
ENGINE = Engine(torch.device("meta"), kernels=True, waits=False)
HOPPER = (227 * 1024, 132)
"""Shared memory of a block and multiprocessors, as the launcher asks for them."""

FREE = ("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "lift_fresh")
"""Operations that launch nothing, besides views."""


@dataclass
class Count(TorchDispatchMode):
    """Counts what is queued on `meta`, and answers the host's looks at values.

    Attributes:
        operations: of torch, by name.
        launches: of our kernels, by name.
        reads: how often the host has looked.
    """

    operations: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    reads: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket._qualified_op_name.removeprefix("aten::")
        there = any(_is_there(value) for value in tree_flatten((args, kwargs))[0])
        if there and name == "_local_scalar_dense":
            self.reads += 1
            return args[0].dtype is torch.bool
        if (
            there
            and name == "_to_copy"
            and torch.device(kwargs.get("device", "meta")).type == "cpu"
        ):
            self.reads += 1
            return _told(args[0], kwargs.get("dtype") or args[0].dtype)
        found = func(*args, **kwargs)
        made = any(_is_there(value) for value in tree_flatten(found)[0])
        if (there or made) and name not in FREE and not _is_view(func):
            self.operations[name] += 1
        return found

    def total(self) -> int:
        """Return how many operations were queued."""
        return self.operations.total() + self.launches.total()


def _is_there(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device == ENGINE.device


def _told(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what the host reads: every flag set, every code 0."""
    make = torch.ones if tensor.dtype is torch.bool else torch.zeros
    return make(tensor.shape, dtype=dtype)


def _is_view(func: Any) -> bool:
    aliases = [made.alias_info for made in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


@contextlib.contextmanager
def without_kernels(count: Count) -> Iterator[None]:
    """Count the launches of our kernels instead of making them; needs Triton."""
    from gpu_align.kernels import _launch

    def run(self: Any, *args: object, **kwargs: object) -> None:
        count.launches[self.fn.__name__] += 1

    def call(chosen: auction.Plan, *rest: object) -> None:
        count.launches[auction.KERNELS[chosen.kernel]] += 1

    upload = _launch.Table.__init__

    def table(self: Any, *args: Any) -> None:
        count.operations["copy of a launch's table"] += 1
        upload(self, *args)

    def look(self: Any, hypotheses: object, stale: torch.Tensor) -> torch.Tensor:
        count.operations["cat"] += 1
        count.reads += 1
        return torch.ones(len(stale), dtype=torch.bool)

    with contextlib.ExitStack() as stack:
        for place, name, stand_in in (
            (type(_launch.locate), "run", run),  # of Triton's functions, or of its interpreter's
            (_launch.Table, "__init__", table),
            (DeviceExecutor, "look", look),
            (auction, "_call", call),
            (auction, "_limits", lambda device: HOPPER),
            (auction, "_DEVICE", "meta"),
            (_auction, "_DEVICE", "meta"),
            (_auction, "find_cupy", lambda: True),
        ):
            stack.enter_context(patch.object(place, name, stand_in))
        yield


def count_sweeps(network: Network, sweeps: int = SWEEPS) -> dict[str, object]:
    """Count each of the first sweeps of CoordinateDescent, one hypothesis.

    The first one lays out the weights too; the row has the last one's operations.
    """
    spec = network.spec()
    with torch.device("meta"):
        state = dict(network.make().state_dict())
    each = []
    with Count() as count, without_kernels(count):
        # Whether weights without values are finite nobody can say.
        with patch("gpu_align._problem._problem.check_weights"):
            problem = AlignmentProblem(state, state, spec, engine=ENGINE)
        run, search = Run(problem, RandomStream(0)), CoordinateDescent()
        current = search.init(run, None)
        for _ in range(sweeps):
            count.operations, count.launches, count.reads = Counter(), Counter(), 0
            current = search.step(run, current)
            each.append(count.total())
    return {
        "network": network.name,
        "groups": len(problem.order),
        "operations": each[-1],
        "each_sweep": each,
        "reads": count.reads,
        "launches": dict(count.launches.most_common()),
        "most_operations": dict(count.operations.most_common(MOST)),
    }


def main() -> None:
    rows = []
    for network in NETWORKS:
        if network.name in COUNTED:
            rows.append(count_sweeps(network))
            print(line(rows[-1]), flush=True)
    if "--record" in sys.argv:
        record("sweep_operations", rows)


def line(row: dict) -> str:
    """Format a row."""
    launches, most = (
        ", ".join(f"{name} {count}" for name, count in row[key].items())
        for key in ("launches", "most_operations")
    )
    text = f"{row['network']}, {row['groups']} groups: {row['operations']} operations a sweep"
    text += f" (first {row['each_sweep'][0]}), {row['reads']} reads"
    return f"{text}\n  our kernels: {launches}\n  most of torch: {most}"
