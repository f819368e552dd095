"""A device that is none: tensors that say they lie elsewhere, and compute on the host.

Inside `PretendDevice()` tensors made on or sent to the `meta` device hold their values. As on CUDA
they can be read, which is counted, and an operation that mixes them with tensors of the host (but
for scalars) is an error. So whole searches can be run that would find out on a GPU only that an
index was left behind on the host.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from gpu_align._assignment import AssignmentProblem, AuctionAssignment, AuctionResult
from gpu_align._device._backend import Engine

DEVICE = torch.device("meta")
ENGINE = Engine(DEVICE, waits=False)
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
COPIES = ("aten::_to_copy", "aten::copy_")


class Elsewhere(Tensor):
    """A tensor that says it lies on the device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, None)


class PretendDevice(TorchDispatchMode):
    """Makes `meta` a device with values.

    Attributes:
        reads: how often the host has looked at a value there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self)


def held(value: Any) -> Any:
    """Return what a value holds on the host."""
    return value.held if isinstance(value, Elsewhere) else value


def elsewhere(value: Any) -> Any:
    """Return a tensor as one of the device."""
    return Elsewhere(value) if isinstance(value, Tensor) else value


def _run(func: Any, args: Any, kwargs: Any, mode: PretendDevice | None) -> Any:
    name = func._overloadpacket._qualified_op_name
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    here = [t for t in tensors if not isinstance(t, Elsewhere) and t.dim()]
    assert not (there and here) or name in COPIES, f"{name} mixes the device with the host"
    asked = kwargs.get("device")
    goes = bool(there) if asked is None else torch.device(asked) == DEVICE
    if mode is not None and there and (name in READS or not goes):
        mode.reads += 1
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(held, args), **tree_map(held, kwargs))
    if "out" in kwargs:
        return kwargs["out"]
    first = func._schema.arguments[0].alias_info if func._schema.arguments else None
    if first is not None and first.is_write:  # in place
        return args[0]
    return tree_map(elsewhere, found) if goes else found


def solve_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `AuctionAssignment` solve there; needs the fixture `auction_on_host`."""
    enqueue: Callable[..., AuctionResult] = AuctionAssignment.enqueue

    def there(
        self: AuctionAssignment,
        problem: AssignmentProblem,
        warm_start: tuple[Tensor, Tensor] | None = None,
    ) -> AuctionResult:
        inputs = [problem.cost, problem.sizes, *(warm_start or ())]
        assert all(x is None or isinstance(x, Elsewhere) for x in inputs)
        inner = replace(problem, cost=held(problem.cost), sizes=held(problem.sizes))
        with torch.utils._python_dispatch._disable_current_modes():
            queued = enqueue(self, inner, tree_map(held, warm_start))
        return replace(queued, **{k: elsewhere(t) for k, t in vars(queued).items()})

    monkeypatch.setattr(AuctionAssignment, "enqueue", there)
