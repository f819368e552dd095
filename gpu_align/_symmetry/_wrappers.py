"""Modules around a module, which compute what it computes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

# The class is in a part of torch that takes seconds to import.
_COMPILED = "OptimizedModule"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, AveragedModel and `torch.compile`, at any depth."""
    inner = _inner(model)
    while inner is not None:
        model = inner
        inner = _inner(model)
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
        return model.module
    return model.get_submodule("_orig_mod") if type(model).__name__ == _COMPILED else None


def uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    """Let compiled parts of a module run as they were written, for no shape is run often here."""
    compiled = any(
        part._compiled_call_impl is not None or type(part).__name__ == _COMPILED
        for part in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
