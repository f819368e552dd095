"""Stacks: the state dicts of many models in one, whose tensors have a leading axis of models.

`torch.func.stack_module_state` makes them, for `torch.func.vmap`.
"""

from collections.abc import Mapping, Sequence

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
