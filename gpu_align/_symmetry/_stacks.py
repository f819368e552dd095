"""Stacks: the state dicts of many models in one, whose tensors have a leading axis of models.

`torch.func.stack_module_state` makes them, for `torch.func.vmap`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor


def stack_size(state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return how many models a state dict is a stack of; None if it is none.

    Args:
        state: name -> tensor.
        shapes: of one model, by name.
    """
    if state.keys() != shapes.keys():
        return None
    count: int | None = None
    for name, tensor in state.items():
        if tensor.ndim == 0 or tuple(tensor.shape[1:]) != tuple(shapes[name]):
            return None
        if count not in (None, len(tensor)):
            return None
        count = len(tensor)
    return count


def stack_advice(count: int | None) -> str:
    """Say what a stack is to be made into where one model is expected."""
    return (
        f"a stack of {count} models: take one, as in tensor[0], of each name; as the source of "
        "align() in Python, a state dict with all of them is taken as it is"
    )


def unstacked(state: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return the state dicts of a stack, as views of it."""
    return [{name: tensor[number] for name, tensor in state.items()} for number in range(count)]


def stacked(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return a stack of at least one state dict."""
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@dataclass(frozen=True, eq=False)
class Stack(Sequence[Mapping[str, Tensor]]):
    """The state dicts of a stack one by one, as views that are made when they are asked for.

    Attributes:
        tensors: name -> [m, *shape].
        models: how many, m.
    """

    tensors: Mapping[str, Tensor]
    models: int

    def __len__(self) -> int:
        return self.models

    @overload
    def __getitem__(self, number: int) -> dict[str, Tensor]: ...

    @overload
    def __getitem__(self, number: slice) -> "Stack": ...

    def __getitem__(self, number: "int | slice") -> "dict[str, Tensor] | Stack":
        """Return one state dict, or some of the models."""
        if isinstance(number, slice):
            count = len(range(*number.indices(self.models)))
            return Stack({name: tensor[number] for name, tensor in self.tensors.items()}, count)
        if not -self.models <= number < self.models:
            raise IndexError(f"model {number} of {self.models}")
        return {name: tensor[number] for name, tensor in self.tensors.items()}

    def select(self, numbers: Sequence[int]) -> "Stack":
        """Return some of the models, in this order; the stack itself if they are all."""
        if list(numbers) == list(range(self.models)):
            return self
        index = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        chosen = {n: t.index_select(0, index.to(t.device)) for n, t in self.tensors.items()}
        return Stack(chosen, len(numbers))
