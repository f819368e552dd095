"""Networks in the forms that they are given in, and the model that is traced and run for them."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from gpu_align._align._tensors import plain_tensors
from gpu_align._checkpoint import load_checkpoint
from gpu_align._errors import InputError
from gpu_align._network import Batch, Data, Limits
from gpu_align._process import MODULES
from gpu_align._symmetry import (
    Comparison,
    Kept,
    PermutationSpec,
    StateDict,
    as_arguments,
    compare_outputs,
    discover,
    spec_of_file,
    tied_names,
    unwrapped,
)

Network = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]


@dataclass(frozen=True)
class Model:
    """What symmetries are found in, and what is run with the tensors of a network.

    Attributes:
        network: a module, or a program read from a file.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments; None if there are
            none. Of a program they have as many examples as it takes.
        outputs: those that must stay as they are; None for all.
        names: name of a tensor in the module -> its name in checkpoints, where these differ.
        unused: tensors of checkpoints that the module does not have.
    """

    network: nn.Module | ExportedProgram
    inputs: object
    outputs: Kept | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    unused: StateDict = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give a program as many examples as it takes, the given ones again if need be."""
        limits = Limits.of(self.module)
        leaves = [leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor)]
        sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
        if len(sizes) == 1 and None not in sizes and limits != Limits():
            object.__setattr__(self, "inputs", limits.filled(Batch(self.inputs)).inputs)

    @cached_property
    def module(self) -> nn.Module:
        """What is run."""
        return self.network.module() if isinstance(self.network, ExportedProgram) else self.network

    def find_spec(self) -> PermutationSpec:
        """Return its symmetries.

        Raises:
            InputError: there are no inputs; ModelError, SpecError: see `discover`.
        """
        if self.inputs is None:
            raise InputError(
                "a module was given without example_inputs, which tracing needs; pass them, or a "
                "spec"
            )
        spec = discover(self.network, self.inputs, outputs=self.outputs)
        return spec_of_file(spec, self.names, self.unused) if self.names or self.unused else spec

    def compare(self, before: StateDict, after: StateDict) -> Comparison:
        """Compare its outputs under two state dicts, see `compare_outputs`."""
        states = map(self.in_module, (before, after))
        return compare_outputs(self.module, self.inputs, *states, outputs=self.outputs)

    @property
    def example_shape(self) -> torch.Size | None:
        """The shape of an example where the module takes one tensor alone."""
        if self.inputs is None:
            return None
        args, kwargs = as_arguments(self.inputs)
        is_one = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        return args[0].shape[1:] if is_one else None

    def fitted(self, data: Data) -> Data:
        """Return data with images of the shape that the module takes, if it takes one tensor.

        Raises:
            InputError: they do not fit.
        """
        shape = self.example_shape
        return data if shape is None else data.fitted(shape)

    def in_module(self, state: StateDict) -> StateDict:
        """Return the tensors of a checkpoint under the names of the module."""
        back = {name: own for own, name in self.names.items()}
        return {back.get(n, n): tensor for n, tensor in state.items() if n not in self.unused}


def checked_keys(
    networks: Iterable[object], key: str | None, target_key: str | None = None
) -> tuple[str | None, str | None]:
    """Return the keys of the state dicts in the files of the sources and of the target.

    Args:
        networks: all of them.
        key, target_key: as they were given; without one of its own the target has that of the
            sources.

    Raises:
        InputError: a key is no text, or there is no file that it could be of.
    """
    keys = (key, key if target_key is None else target_key)
    for given in keys:
        if given is not None and not isinstance(given, str):
            raise InputError(
                f'expected a key as a str, such as "ema", got {type(given).__name__}; join keys '
                "that lead to a state dict by dots"
            )
    if keys != (None, None) and not any(isinstance(n, str | os.PathLike) for n in networks):
        raise InputError(
            "a key is of the state dict in a file, and no path was given; leave it out, and pass "
            "the state dict that is meant"
        )
    return keys


def state_of(network: Network, key: str | None = None) -> StateDict:
    """Return the tensors of a network.

    Args:
        network: a module, a state dict, or the path of a checkpoint.
        key: of the state dict in a file, see `load_checkpoint`.

    Raises:
        InputError: it is no network; CheckpointError: its file cannot be read.
    """
    if isinstance(network, str | os.PathLike):
        return load_checkpoint(network, key=key).tensors
    if not isinstance(network, nn.Module | Mapping):
        raise InputError(
            "expected a module, a state dict or the path of a checkpoint, got "
            f"{type(network).__name__}"
        )
    return plain_tensors(_entries(network))


def _entries(network: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a network; of a module only what is a tensor."""
    try:
        if isinstance(network, nn.Module):
            with MODULES:
                state = dict(network.state_dict())
            return {name: value for name, value in state.items() if isinstance(value, Tensor)}
        return dict(network)
    except Exception as error:
        reason = (str(error) or "no reason given").splitlines()[0]
        raise InputError(
            f"cannot read the tensors of the {type(network).__name__}: {type(error).__name__}: "
            f"{reason}; pass a state dict that can be read"
        ) from error


def check_ties(network: Network, spec: PermutationSpec) -> None:
    """Check that what a module shares is permuted as one.

    Raises:
        InputError: the spec does not tie it.
    """
    if not isinstance(network, nn.Module):
        return
    with MODULES:
        tied = tied_names(unwrapped(network))
    for names in tied:
        if len({spec.ties.get(name, name) for name in names}) > 1:
            raise InputError(
                f"a module shares one tensor under the names {', '.join(names)}, the spec does not "
                "tie them; pass a spec discovered from this module, or untie the module"
            )
