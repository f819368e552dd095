"""A module that is run under state dicts, and left as it was."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gpu_align._errors import ModelError
from gpu_align._symmetry._in_double import InDouble, double
from gpu_align._symmetry._memory import memory_of
from gpu_align._symmetry._outputs import Kept, choose_outputs, output_tensors
from gpu_align._symmetry._running import Arguments, copied, evaluation_mode, run, same_noise
from gpu_align._symmetry._spec import StateDict
from gpu_align._symmetry._untouched import untouched
from gpu_align._symmetry._wrappers import uncompiled


class Reference:
    """A model, to be run under several state dicts in evaluation mode and without gradients.

    Args:
        model: it is left as it was.
        arguments: positional and keyword arguments, where none are given later.
        device: where it is run; by default its tensors stay where they are.
        kept: the outputs that are looked at; all by default.
        in_double: whether it is run in float64; if not, in the dtypes of the model's tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: Arguments = ((), {}),
        device: torch.device | None = None,
        kept: Kept | None = None,
        *,
        in_double: bool = True,
    ) -> None:
        self.model, self.kept, self.in_double = model, kept, in_double
        self.own = {
            name: self._in_dtype(tensor.detach()).to(device or tensor.device)
            for name, tensor in (
                *model.named_parameters(remove_duplicate=False),
                *model.named_buffers(remove_duplicate=False),
            )
        }
        self.ties = tied_names(model)
        self.places = _places(model)
        self.arguments = arguments
        self.written: set[str] | None = None
        self.shortened: set[str] = set()

    def outputs(self, state: StateDict, arguments: Arguments | None = None) -> list[Tensor]:
        """Run the model under a state dict and return its tensor outputs.

        Raises:
            ModelError: the forward fails, or returns no tensors.
        """
        result = self.result(state, arguments)
        outputs = output_tensors(result)
        if not outputs:
            raise ModelError(
                f"the model returns no tensors that can be compared, but {type(result).__name__}; "
                "return tensors, or register the type with torch.utils._pytree"
            )
        return [outputs[name].detach() for name in choose_outputs(list(outputs), self.kept)]

    def result(
        self, state: StateDict, arguments: Arguments | None = None, *, grad: bool = False
    ) -> object:
        """Run the model under a state dict and return what it does.

        Args:
            state: its tensors.
            arguments: default those given before.
            grad: whether gradients can be taken through it.

        Raises:
            ModelError: the forward fails.
        """
        given = self.placed(state)
        run_on = {k: t.clone() if self._may_write(k) else t for k, t in given.items()}
        try:
            with (
                untouched(self.model, weights=False),
                evaluation_mode(self.model),
                uncompiled(self.model),
                same_noise({tensor.device for tensor in self.own.values()}),
                InDouble(self.shortened) if self.in_double else nullcontext(),
            ):
                called = arguments or self.arguments
                if grad:
                    with torch.enable_grad():
                        result = self._call(run_on, called)
                else:
                    result, _ = run(lambda: self._call(run_on, called))
        except ModelError:
            raise
        except Exception as error:
            where = " in float64" if self.in_double else ""
            raise ModelError(
                f"the model's forward fails{where}: {type(error).__name__}: {error}"
            ) from error
        if self.written is None:
            buffers = {name for name, _ in self.model.named_buffers(remove_duplicate=False)}
            self.written = buffers | {k for k, t in given.items() if not torch.equal(t, run_on[k])}
        return result

    def placed(self, state: StateDict) -> dict[str, Tensor]:
        """Return all tensors of the model, each under the first name of its place.

        They come from a state dict, else from the model, in its dtypes and on its device.
        """
        held = {name: self._as_own(name, tensor) for name, tensor in state.items()}
        for names in self.ties:
            # A checkpoint may hold a shared tensor once, under any of its names.
            shared = next((held[name] for name in names if name in held), None)
            held |= {name: shared for name in names if shared is not None and name not in held}
        # A place named twice would be given back what it was given first.
        return {k: t for k, t in (self.own | held).items() if self.places.get(k, k) == k}

    def short_ops(self) -> str:
        """Say which ops were run in float32."""
        ops = ", ".join(sorted(self.shortened))
        return f"{ops} in float32, for want of a float64 kernel"

    def _in_dtype(self, value: Any) -> Any:
        return double(value) if self.in_double else value

    def _as_own(self, name: str, tensor: Tensor) -> Tensor:
        own = self.own.get(name)
        if self.in_double:
            return double(tensor if own is None else tensor.to(own.device))
        return tensor if own is None else tensor.to(own)

    def _call(self, state: dict[str, Tensor], arguments: Arguments) -> object:
        args, kwargs = copied(tree_map(self._in_dtype, arguments))
        return torch.func.functional_call(self.model, state, args, kwargs, tie_weights=False)

    def _may_write(self, name: str) -> bool:
        """Whether forward may write into a tensor: it did, or it has not been run yet."""
        return self.written is None or name in self.written


def tied_names(model: nn.Module) -> list[list[str]]:
    """Return the state-dict names of each tensor that a module holds under several names."""
    names: dict[object, list[str]] = {}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            names.setdefault(memory_of(tensor), []).append(name)
    return [tied for tied in names.values() if len(tied) > 1]


def _places(model: nn.Module) -> dict[str, str]:
    """Return for each name of a parameter or buffer the first name of its place.

    A submodule with two names gives each of its places two.
    """
    first: dict[tuple[int, str], str] = {}
    places = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for attribute, _ in held:
            name = f"{prefix}.{attribute}" if prefix else attribute
            places[name] = first.setdefault((id(module), attribute), name)
    return places
