"""The tensors of several models side by side, so that one operation serves all of them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpu_align._symmetry._move import stack
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._stacks import Stack

_CACHED_ELEMENTS, _DEVICE_ELEMENTS = 2**17, 2**26
_STAGED_ELEMENTS = 2**22
"""Stacked on the host at once on the way to a device: memory that is used again and again."""


def part_elements(device: torch.device) -> int:
    """Return how many elements are best taken at a time.

    On the CPU what stays in its cache even in float64, in memory that is used again and again: a
    pass over fresh memory takes several times as long. On a device what keeps it busy.
    """
    return _CACHED_ELEMENTS if device.type == "cpu" else _DEVICE_ELEMENTS


def part_ranges(models: int, elements: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield the start and stop of parts of models with so many elements each, at most `most`."""
    step = max(most // max(elements, 1), 1)
    for start in range(0, models, step):
        yield start, min(start + step, models)


def apart(tensors: Tensor) -> list[Tensor]:
    """Return the tensors of a stack, each in memory of its own: it can be kept or written alone."""
    copies: list[Tensor] = torch.ops.aten.unbind_copy.int(tensors)
    return copies


class Weights:
    """The tensors of models of one spec, stacked by name where they are computed with.

    A stack is made, and moved to the device, when it is first asked for, and kept. That of one
    model, and of a `Stack`, is a view, unless the tensors lie on another device.

    Attributes:
        spec: names and shapes; every model fits it.
        states: one state dict per model, on any device.
        device: where the stacks lie.
        is_kept: whether a whole stack is kept even for a part of it: it is a view, had to be moved,
            or is itself a part that fits the cache.
    """

    def __init__(
        self, spec: PermutationSpec, states: Sequence[StateDict], device: torch.device
    ) -> None:
        self.spec, self.states, self.device = spec, states, device
        is_view = len(states) == 1 or isinstance(states, Stack)
        self.is_kept = is_view or device.type != "cpu"
        self._stacks: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor of every model, [m, *shape]; float64 where dtypes differ."""
        if name not in self._stacks:
            self._stacks[name] = self._stacked(name, 0, len(self))
        return self._stacks[name]

    def some(self, name: str, start: int, stop: int) -> Tensor:
        """Return one tensor of some of the models; where none `is_kept`, they alone are stacked."""
        if name in self._stacks or self.is_kept:
            return self[name][start:stop]
        return self._stacked(name, start, stop)

    def part(self, start: int, stop: int) -> "Weights":
        """Return some of the models: of what is stacked already views, the rest when asked for."""
        if (start, stop) == (0, len(self)):
            return self
        found = Weights(self.spec, self.states[start:stop], self.device)
        found.is_kept = True
        found._stacks = {name: tensors[start:stop] for name, tensors in self._stacks.items()}
        return found

    def select(self, models: Sequence[int]) -> "Weights":
        """Return some of the models, in this order."""
        some = self.states
        some = some.select(models) if isinstance(some, Stack) else [some[n] for n in models]
        return Weights(self.spec, some, self.device)

    def _stacked(self, name: str, start: int, stop: int) -> Tensor:
        if isinstance(self.states, Stack):
            part = self.states[start:stop]
            return stack_of(self.spec, name, part).to(self.device, non_blocking=True)
        tensors = tensors_of(self.spec, name, self.states[start:stop])
        if len(tensors) == 1:
            return tensors[0].to(self.device, non_blocking=True)[None]
        if self.device.type == "cpu":
            return stack(tensors).cpu()
        shape = tensors[0].shape
        dtypes = {tensor.dtype for tensor in tensors}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
        moved = torch.empty(len(tensors), *shape, dtype=dtype, device=self.device)
        for first, last in part_ranges(len(tensors), shape.numel(), _STAGED_ELEMENTS):
            moved[first:last].copy_(stack(tensors[first:last]))
        return moved


def tensors_of(spec: PermutationSpec, name: str, states: Sequence[StateDict]) -> list[Tensor]:
    """Return one tensor of each of many models, all of which fit the spec."""
    if isinstance(states, Stack):
        return list(stack_of(spec, name, states))
    return [state[name] if name in state else spec.tensor_of(name, state) for state in states]


def stack_of(spec: PermutationSpec, name: str, states: Stack) -> Tensor:
    """Return one tensor of each model of a stack that fits the spec, [m, *shape]."""
    if name in states.tensors:
        return states.tensors[name]
    if len(states) == 0:
        return torch.empty(0, *spec.tensors[name].shape, device="cpu")
    if any(kept == name for kept in spec.ties.values()):
        alias = next(a for a, kept in spec.ties.items() if kept == name and a in states.tensors)
        return states.tensors[alias]
    one = spec.tensor_of(name, states[0])  # a count that is left out
    return one.expand(len(states), *one.shape)
