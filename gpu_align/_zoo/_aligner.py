"""Aligning to one reference again and again: for pipelines, and for augmentation."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from gpu_align._align import AlignedStack, Model, Network, Settings, align_stack, state_of
from gpu_align._checkpoint import rename
from gpu_align._errors import InputError
from gpu_align._problem import Metric
from gpu_align._search import Search
from gpu_align._symmetry import (
    Kept,
    Permutation,
    PermutationSpec,
    Stack,
    StateDict,
    chain_spec,
    stack_size,
)


class CheckpointAligner:
    """Brings networks of one architecture to a reference; called as often as wanted.

    What it returns has the form of what it is given: a state dict, a list of them, or a stack
    (tensors with a leading axis of models). No answer depends on what else is in a call.

    Attributes:
        spec: the symmetries.
        reference: the tensors of the network that others are brought to.
    """

    def __init__(
        self,
        reference: Network,
        spec: PermutationSpec | None = None,
        *,
        example_inputs: object = None,
        outputs: Kept | None = None,
        search: Search | str | None = "descent",
        metric: str | Metric = "l2",
        device: str | torch.device = "auto",
        seed: int = 0,
    ) -> None:
        """Find the symmetries once.

        Args:
            reference: a module, a state dict or the path of a checkpoint.
            spec: the symmetries; by default found in the module with its example inputs, else those
                of a plain chain of layers.
            example_inputs, outputs, metric, device, seed: as for `align`.
            search: as for `align`; weight matching by default.

        Raises:
            InputError: an argument cannot be used.
        """
        state = state_of(reference)
        if spec is None and isinstance(reference, nn.Module):
            spec = Model(reference, example_inputs, outputs).find_spec()
        self.spec = chain_spec(state) if spec is None else spec
        self._settings = Settings.of(search, metric, device, seed, None, None)
        self.reference: StateDict = rename(state, self.spec.keys).state
        self.spec.validate(self.reference, "reference")

    @overload
    def __call__(self, networks: StateDict) -> dict[str, Tensor]: ...

    @overload
    def __call__(self, networks: Sequence[StateDict]) -> list[dict[str, Tensor]]: ...

    def __call__(self, networks: Any) -> Any:
        """Return networks with their units in the order of the reference.

        Raises:
            GpuAlignError: one of them cannot be aligned; its message says which, and what to do.
        """
        return self._moved(networks, self._aligned)

    def permutations(self, networks: Any) -> list[Permutation]:
        """Return what brings each network to the reference."""
        found: list[Permutation] = []

        def keep(stack: Stack) -> Mapping[str, Tensor]:
            for part in self._parts(stack):
                perms = {g: part.perms[g] for g in self.spec.groups}
                found.extend(Permutation.each(self.spec, perms, part.signs, len(part.numbers)))
            return stack.tensors

        self._moved(networks, keep)
        return found

    def random_elements(
        self, count: int, *, seed: int | None = None, generator: torch.Generator | None = None
    ) -> list[Permutation]:
        """Draw symmetries uniformly, signs included: for augmentation, `element.apply(state)`.

        Args:
            count: how many.
            seed, generator: as for `Permutation.random`.
        """
        return Permutation.random(self.spec, count, seed=seed, generator=generator)

    def _parts(self, stack: Stack) -> list[AlignedStack]:
        """Align a stack.

        Raises:
            GpuAlignError: a model of it cannot be aligned.
        """
        parts = list(align_stack(stack, self.reference, self.spec, self._settings))
        for part in parts:
            for number, error in part.failures.items():
                where = f"network {number}: " if len(stack) > 1 else ""
                raise type(error)(f"{where}{error}") if isinstance(error, InputError) else error
        return parts

    def _aligned(self, stack: Stack) -> Mapping[str, Tensor]:
        parts = self._parts(stack)
        if len(parts) == 1:
            return parts[0].states
        return {name: torch.cat([part.states[name] for part in parts]) for name in stack.tensors}

    def _moved(self, networks: Any, align: Any) -> Any:
        """Call `align` with networks as a stack, and return what it returns in their form."""
        if isinstance(networks, Mapping):
            renamed = rename(networks, self.spec.keys)
            known = self.spec.keys & renamed.state.keys()
            shapes = {name: self.spec.lookup(name).shape for name in known}
            count = stack_size(renamed.state, shapes)
            if count is None:
                [moved] = self._list([networks], align)
                return moved
            return renamed.restore(align(Stack(renamed.state, count)))
        if isinstance(networks, str | bytes) or not isinstance(networks, Sequence):
            raise InputError(
                "expected a state dict, a list of them or a stack, got "
                f"{type(networks).__name__}; read files by load_checkpoint(path).tensors"
            )
        return self._list(networks, align)

    def _list(self, networks: Sequence[StateDict], align: Any) -> list[dict[str, Tensor]]:
        if not networks:
            return []
        renamed = [rename(state_of(network), self.spec.keys) for network in networks]
        for each in renamed:
            self.spec.validate(each.state, "network")
        names = list(renamed[0].state)
        stack = {name: torch.stack([each.state[name] for each in renamed]) for name in names}
        moved = Stack(align(Stack(stack, len(renamed))), len(renamed))
        return [each.restore(moved[number]) for number, each in enumerate(renamed)]
