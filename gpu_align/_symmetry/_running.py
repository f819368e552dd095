"""How a module is run: its arguments, in evaluation mode, with the same noise each time."""

import copy
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gpu_align._errors import ModelError

_SEED = 0

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward."""


def as_arguments(example_inputs: object) -> Arguments:
    """Return example inputs as positional and keyword arguments.

    A tensor is one argument, a tuple are positional ones, a dict keyword ones, and a pair of a
    tuple and a dict are both.

    Raises:
        ModelError: they are none of these.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, tuple | list):
        if [type(part) for part in example_inputs] == [tuple, dict]:
            return example_inputs[0], example_inputs[1]
        return tuple(example_inputs), {}
    raise ModelError(
        "expected example inputs as a tensor, a tuple of positional arguments or a dict of keyword "
        f"arguments, got {type(example_inputs).__name__}"
    )


def copied(arguments: T) -> T:
    """Return arguments that a forward may write into."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, arguments)


def duplicate(model: M) -> M:
    """Return a copy of a module; `MODULES` is held meanwhile."""
    with warnings.catch_warnings():
        # What torch says of its own code as it copies the module of a program.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        return copy.deepcopy(model)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode and give each its own mode back.

    An exported program has no modes: it stays as it was exported.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def run(forward: Callable[[], T]) -> tuple[T, bool]:
    """Run a forward, without gradients unless it takes some itself (forces of an energy).

    Returns:
        What it returns, and whether it takes gradients.

    Raises:
        What the forward raises.
    """
    watch = _Gradients()
    try:
        with torch.no_grad(), watch:
            return forward(), watch.taken
    except RuntimeError:
        if not watch.taken:
            raise
    with torch.enable_grad():
        return forward(), True


class _Gradients(TorchFunctionMode):
    """Sees whether gradients are asked for."""

    taken = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.taken = True
        return func(*args, **(kwargs or {}))


@contextmanager
def same_noise(devices: Collection[torch.device]) -> Iterator[None]:
    """Let what the body draws be the same each time, and leave the generators as they were.

    Distributions do not look at the values that they are given, which tracing cannot do.

    Args:
        devices: on which it draws, besides the CPU.
    """
    cuda = [device for device in devices if device.type == "cuda"]
    validated = Distribution._validate_args
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(_SEED)
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(_SEED)
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(validated)
