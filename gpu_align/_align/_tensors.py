"""Tensors that can be aligned: with values, dense, and of torch's own class."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gpu_align._errors import InputError, bullet_list
from gpu_align._symmetry import StateDict

_OF_TORCH = Tensor.__torch_dispatch__


def plain_tensors(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict without their gradients.

    Raises:
        InputError: a name is no text, or something is no tensor that has its values in memory;
            all of these are named, with what to do.
    """
    problems, tensors = [], {}
    for name, value in entries.items():
        if not isinstance(name, str):
            problems.append(
                f"expected names of tensors, got {_short(name)} ({type(name).__name__}); make the "
                "keys text"
            )
        elif not isinstance(value, Tensor):
            problems.append(
                f"expected tensors in the state dict, got {type(value).__name__} for {name!r}"
            )
        elif flaw := _flaw(value):
            problems.append(f"{name!r} {flaw}")
        else:
            plain = not value.requires_grad and type(value) is Tensor
            tensors[name] = value if plain else value.detach()
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"these tensors cannot be used:\n{bullet_list(problems)}")
    return tensors


def separate(state: StateDict, source: StateDict) -> dict[str, Tensor]:
    """Return a state dict with a copy of each tensor that lies in the memory of the source.

    Names that share one tensor share its copy.
    """
    theirs = {_memory(tensor) for tensor in source.values() if tensor.numel()}
    copies: dict[object, Tensor] = {}
    separated = {}
    for name, tensor in state.items():
        if tensor.numel() and _memory(tensor) in theirs:
            view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if view not in copies:
                copies[view] = tensor.clone()
            tensor = copies[view]
        separated[name] = tensor
    return separated


def _memory(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _flaw(tensor: Tensor) -> str | None:
    """Return what keeps the values of a tensor from being read, and what to do; None if nothing."""
    kind = type(tensor)
    if kind is not Tensor:
        if is_lazy(tensor):
            return "has no shape yet (a lazy module): run the module once on an input"
        if kind.__torch_dispatch__ is not _OF_TORCH:
            advice = "its full_tensor()" if hasattr(tensor, "full_tensor") else "a plain tensor"
            return f"is a {kind.__name__}, whose values are not simply here: pass {advice}"
    if tensor.is_nested:
        return "is a nested tensor, which has no one shape: pass to_padded_tensor(0)"
    if tensor.layout != torch.strided:
        return f"is sparse or packed ({tensor.layout}): pass its to_dense()"
    if tensor.is_meta:
        return "is on the meta device, so it has no values: load the weights into it first"
    try:
        held = tensor.untyped_storage().nbytes()
    except NotImplementedError:
        return "stands for several tensors (inside of vmap or grad): call gpu_align outside of it"
    if held == 0 and tensor.numel():
        return "has no memory (freed, as FSDP does between two steps): gather the parameters first"
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
