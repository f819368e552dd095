"""PermutationSpec: which axes of which tensors carry which group of interchangeable units."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gpu_align._checkpoint import is_count
from gpu_align._errors import SpecError, bullet_list
from gpu_align._process import MODULES
from gpu_align._symmetry._axis import Axis, Factor, Fixed, Units
from gpu_align._symmetry._html import Shown, counted
from gpu_align._symmetry._outputs import Kept
from gpu_align._symmetry._parts import Group, NormScale, Phase, Pin
from gpu_align._symmetry._stacks import stack_advice, stack_size
from gpu_align._symmetry._tensor_spec import Block, TensorSpec

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, repr=False)
class PermutationSpec(Shown):
    """The permutation symmetries of an architecture.

    Attributes:
        groups: name -> Group, in topological order (inputs first).
        tensors: state-dict name -> TensorSpec; tied names appear once.
        ties: further name of a shared tensor -> the name that is in `tensors`.
        pins: the fixed axes of parameters, with the op or the role that fixes each.
        norm_scales: layers whose rows a batch norm frees of their scale.
        outputs: name of each output of the model that must stay as it is -> how many units that
            something reads it alone holds in place; empty where there are not several.
        origin: a sentence on where the spec comes from, shown to the user.
        partial_pins: the axes of parameters of which some units or places stay fixed and others do
            not, with what fixes those. Known after discovery only: it is not written to files.

    Source: the pair axes-to-perm / perm-to-axes of Git Re-Basin (Ainsworth et al., ICLR 2023,
    section 3), with axes that may be products or concatenations of groups.
    """

    groups: Mapping[str, Group]
    tensors: Mapping[str, TensorSpec]
    ties: Mapping[str, str] = field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    origin: str = ""
    norm_scales: tuple[NormScale, ...] = ()
    outputs: Mapping[str, int] = field(default_factory=dict)
    partial_pins: tuple[Pin, ...] = field(default=(), compare=False)

    def _facts(self) -> dict[str, str]:
        units = sum(map(self.units, self.groups))
        return {
            "groups": f"{counted(len(self.groups), 'group')} of {counted(units, 'unit')}",
            "tensors": counted(len(self.tensors), "tensor"),
            "symmetries": f"10^{self.log10_symmetries:.1f} permutations",
        }

    def _rows(self) -> dict[str, str]:
        return self._facts() | {"origin": self.origin}

    def __post_init__(self) -> None:
        for group in self.groups.values():
            self._check_parent(group)
        for name, tensor in self.tensors.items():
            for axis in tensor.axes:
                for factor in axis.factors():
                    self._check_factor(name, factor)
            for block in tensor.blocks:
                self._check_block(name, block)
        for alias, kept in self.ties.items():
            if kept not in self.tensors:
                raise SpecError(
                    f"{alias!r} is tied to {kept!r}, which is not among the tensors; "
                    "tie it to a name in 'tensors'"
                )
        for scale in self.norm_scales:
            self._check_norm_scale(scale)
        for group in self.groups.values():
            self._check_phase(group)

    def _check_parent(self, group: Group) -> None:
        if not {"^", "±"}.isdisjoint(group.name):
            raise SpecError(
                f"group {group.name!r}: a name cannot contain '^' or '±', which mark powers and "
                "signs"
            )
        if group.fixed and (group.parent is not None or group.signed or group.scaled):
            raise SpecError(
                f"group {group.name!r} is fixed, so it cannot have a parent, signs or scales"
            )
        if group.parent is None:
            return
        if group.parent not in self.groups:
            raise SpecError(
                f"group {group.name!r} names the unknown parent {group.parent!r}; expected one of "
                f"the groups {sorted(self.groups)}"
            )
        if self.groups[group.parent].parent is not None:
            raise SpecError(
                f"group {group.name!r} has the parent {group.parent!r}, which has a parent itself; "
                "one level is supported"
            )

    def _check_factor(self, name: str, factor: Factor) -> None:
        if isinstance(factor, Fixed):
            return
        if factor.group not in self.groups:
            raise SpecError(
                f"tensor {name!r} names unknown group {factor.group!r}; expected one of the groups "
                f"{sorted(self.groups)}"
            )
        group = self.groups[factor.group]
        if factor.size != group.size:
            raise SpecError(
                f"tensor {name!r} gives group {factor.group!r} {factor.size} units, "
                f"the group has {group.size}"
            )
        if factor.power and not (group.signed or group.scaled):
            raise SpecError(
                f"tensor {name!r} has a power of group {factor.group!r}, which is neither signed "
                "nor scaled"
            )

    def _check_block(self, name: str, block: Block) -> None:
        """Check that the units of a group with a parent are told which unit of it they are in."""
        present = [factor.group for factor in block.units.values()]
        for group in present:
            parent = self.groups[group].parent
            if parent is not None and present.count(parent) != 1:
                raise SpecError(
                    f"tensor {name!r} has the group {group!r} without its parent {parent!r} "
                    "exactly once beside it"
                )

    def _check_norm_scale(self, scale: NormScale) -> None:
        unknown = [name for name in scale.names if name not in self.tensors]
        if unknown:
            raise SpecError(
                f"the norm scale of {scale.weight!r} names {unknown[0]!r}, which is not among the "
                "tensors; correct the name or leave the norm scale out"
            )
        rows = self.tensors[scale.weight].shape[:1]
        for name in scale.names[1:]:
            if self.tensors[name].shape != rows:
                raise SpecError(
                    f"a norm scale names {name!r} of shape {list(self.tensors[name].shape)}, "
                    f"expected one entry for each row of {scale.weight!r}: {list(rows)}"
                )

    def _check_phase(self, group: Group) -> None:
        phase = group.phase
        if phase is None:
            return
        made = Axis(((Units(group.size, group.name, 1),),))
        found = self.tensors.get(phase.bias)
        if not group.signed or found is None or found.axes != (made,):
            raise SpecError(
                f"the phase of group {group.name!r} names {phase.bias!r}, expected a tensor whose "
                f"one axis is that signed group itself, with the power 1: '{group.name}^1'"
            )
        if not 0 < phase.shift < math.inf:
            raise SpecError(
                f"the phase of group {group.name!r} has the shift {phase.shift!r}, expected half a "
                "period: a finite number above 0"
            )

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases of the groups that have one, by their names."""
        return {n: group.phase for n, group in self.groups.items() if group.phase is not None}

    def units(self, group: str) -> int:
        """Return the number of units of a group, over all units of its parent."""
        parent = self.groups[group].parent
        return self.groups[group].size * (1 if parent is None else self.groups[parent].size)

    @property
    def log10_symmetries(self) -> float:
        """log10 of the number of permutations, exact to float64.

        `log10(n!)` for a group, once for each unit of its parent. Signs and scales are not counted.
        """
        total = sum(
            self.units(name) // group.size * math.lgamma(group.size + 1)
            for name, group in self.groups.items()
            if not group.fixed
        )
        return total / math.log(10)

    @property
    def keys(self) -> frozenset[str]:
        """All state-dict names, tied ones included."""
        return frozenset(self.tensors) | frozenset(self.ties)

    def perm_to_axes(self, group: str) -> tuple[tuple[str, int], ...]:
        """Return the (tensor name, axis) pairs on which `group` lies."""
        return tuple(
            (name, number)
            for name, tensor in self.tensors.items()
            for number, axis in enumerate(tensor.axes)
            if group in axis.groups
        )

    def members(self, group: str) -> tuple[tuple[str, int], ...]:
        """Return the same as `perm_to_axes`, by its former name."""
        warnings.warn(
            "PermutationSpec.members is called PermutationSpec.perm_to_axes now",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.perm_to_axes(group)

    def lookup(self, name: str) -> TensorSpec:
        """Return the TensorSpec of a state-dict name, following ties."""
        return self.tensors[self.ties.get(name, name)]

    def validate(self, state_dict: StateDict, role: str = "state dict") -> None:
        """Check names and shapes of a state dict and report every problem at once.

        A tied name may be left out, as `safetensors.torch.save_model` does, and so may the count of
        a batch norm, as `load_state_dict(strict=True)` allows for files of old releases.

        Args:
            state_dict: name -> tensor.
            role: what to call it in the message ("source", "target").

        Raises:
            SpecError: names are missing or unknown, or shapes differ.
        """
        if state_dict.keys() == self.tensors.keys() and all(
            tensor.shape == self.tensors[name].shape for name, tensor in state_dict.items()
        ):
            return
        problems = [
            f"missing: {name!r} of shape {list(self.lookup(name).shape)}"
            for name in self.tensors
            if not any(other in state_dict for other in self._names_of(name)) and not is_count(name)
        ]
        problems += [f"unexpected: {name!r}" for name in state_dict if name not in self.keys]
        problems += [
            f"{name!r} has shape {list(tensor.shape)}, expected {list(self.lookup(name).shape)}"
            for name, tensor in state_dict.items()
            if name in self.keys and tuple(tensor.shape) != self.lookup(name).shape
        ]
        if problems:
            advice = "check that both checkpoints are of this architecture"
            shapes = {name: self.lookup(name).shape for name in state_dict if name in self.keys}
            count = stack_size(state_dict, shapes)
            if count is not None:
                advice = f"it is {stack_advice(count)}"
            if {name.removeprefix("module.") for name in state_dict} <= self.keys - set(state_dict):
                advice = (
                    "the names begin with DataParallel's prefix: save model.module.state_dict()"
                )
            raise SpecError(
                f"the {role} does not fit the model or spec; {advice}:\n{bullet_list(problems)}"
            )

    def tensor_of(self, name: str, state_dict: StateDict) -> Tensor:
        """Return the tensor kept under `name` or under a name tied to it; 0 for a missing count."""
        for other in self._names_of(name):
            if other in state_dict:
                return state_dict[other]
        assert is_count(name), name
        return torch.zeros(self.tensors[name].shape, dtype=torch.int64, device="cpu")

    def _names_of(self, name: str) -> list[str]:
        return [name, *(alias for alias, kept in self.ties.items() if kept == name)]

    def verify(
        self,
        model: nn.Module,
        example_inputs: object,
        *,
        draws: int = 3,
        seed: int = 0,
        tolerance: float = 1e-9,
        outputs: Kept | None = None,
    ) -> float:
        """Check that random symmetries of `model` leave its outputs unchanged in float64.

        A draw is a permutation with signs and phases, and scales between 1/2 and 2.

        Each draw is tried on the weights as they are and on weights with noise, because fresh
        biases and running statistics are constant and would hide a mistake. One is tried on inputs
        of other sizes too: a batch of 1 and of 3, other axes doubled and halved, on the CPU,
        wherever the model takes these.

        Args:
            model: the module that the spec describes; it is left as it was.
            example_inputs: a tensor, or a tuple of positional arguments.
            draws: number of random symmetries.
            seed: seed of the draws and of the noise.
            tolerance: largest accepted relative difference of the outputs; at least 3.5e-4 if the
                model has an op without a kernel for float64, which is then run in float32.
            outputs: those that must stay, see `discover`; default all.

        Returns:
            The largest relative difference seen.

        Raises:
            SpecError: the difference is above `tolerance`.
            ModelError: the model's forward fails.
        """
        from gpu_align._symmetry._verify import verify_spec

        with MODULES:
            return verify_spec(self, model, example_inputs, draws, seed, tolerance, outputs)[0]

    def to_json(self) -> str:
        """Return the spec as a JSON document, read back by `from_json`."""
        from gpu_align._symmetry._spec_json import spec_to_json

        return spec_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> "PermutationSpec":
        """Read a spec written by `to_json` or by hand.

        Raises:
            SpecError: the text is not JSON or not a spec.
        """
        from gpu_align._symmetry._spec_json import spec_from_json

        return spec_from_json(text)
