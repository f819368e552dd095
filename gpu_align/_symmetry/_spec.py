"""PermutationSpec: which axes of which tensors carry which group of interchangeable units."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gpu_align._errors import SpecError, bullet_list
from gpu_align._symmetry._axis import Axis

StateDict = Mapping[str, Tensor]

_FORMAT = "gpu-align/spec"
_VERSION = 1


@dataclass(frozen=True)
class Group:
    """`size` units that may be reordered together wherever they appear."""

    name: str
    size: int


@dataclass(frozen=True)
class TensorSpec:
    """The axes of one tensor; `counted` says that it is a parameter, not a buffer.

    Buffers (running statistics) are permuted with their units but do not count in a distance.
    """

    axes: tuple[Axis, ...]
    counted: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that a tensor must have."""
        return tuple(axis.size for axis in self.axes)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups on any axis, without repetition."""
        return tuple(dict.fromkeys(name for axis in self.axes for name in axis.groups))


@dataclass(frozen=True)
class Pin:
    """An axis of a tensor that stays fixed, and why."""

    tensor: str
    axis: int
    reason: str


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of an architecture.

    Attributes:
        groups: name -> Group, in topological order (inputs first).
        tensors: state-dict name -> TensorSpec; tied names appear once.
        ties: further name of a shared tensor -> the name that is in `tensors`.
        pins: the fixed axes of parameters, with the op or the role that fixes each.
        origin: a sentence on where the spec comes from, shown to the user.

    Source: the pair axes-to-perm / perm-to-axes of Git Re-Basin (Ainsworth et al., ICLR 2023,
    section 3), with axes that may be products or concatenations of groups.
    """

    groups: Mapping[str, Group]
    tensors: Mapping[str, TensorSpec]
    ties: Mapping[str, str] = field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            for axis in tensor.axes:
                for factor in axis.factors():
                    if factor.group is None:
                        continue
                    if factor.group not in self.groups:
                        raise SpecError(f"tensor {name!r} names unknown group {factor.group!r}")
                    if factor.size != self.groups[factor.group].size:
                        raise SpecError(
                            f"tensor {name!r} gives group {factor.group!r} {factor.size} units, "
                            f"the group has {self.groups[factor.group].size}"
                        )
        for alias, kept in self.ties.items():
            if kept not in self.tensors:
                raise SpecError(f"{alias!r} is tied to {kept!r}, which is not among the tensors")

    @property
    def log10_symmetries(self) -> float:
        """log10 of the number of permutations, `sum_g log10(n_g!)`, exact to float64."""
        return sum(math.lgamma(group.size + 1) for group in self.groups.values()) / math.log(10)

    @property
    def keys(self) -> frozenset[str]:
        """All state-dict names, tied ones included."""
        return frozenset(self.tensors) | frozenset(self.ties)

    def members(self, group: str) -> tuple[tuple[str, int], ...]:
        """Return the (tensor name, axis) pairs on which `group` lies."""
        return tuple(
            (name, number)
            for name, tensor in self.tensors.items()
            for number, axis in enumerate(tensor.axes)
            if group in axis.groups
        )

    def lookup(self, name: str) -> TensorSpec:
        """Return the TensorSpec of a state-dict name, following ties."""
        return self.tensors[self.ties.get(name, name)]

    def validate(self, state_dict: StateDict, role: str = "state dict") -> None:
        """Check names and shapes of a state dict and report every problem at once.

        A tied name may be left out, as `safetensors.torch.save_model` does.

        Args:
            state_dict: name -> tensor.
            role: what to call it in the message ("source", "target").

        Raises:
            SpecError: names are missing or unknown, or shapes differ.
        """
        problems = [
            f"missing: {name!r} of shape {list(self.lookup(name).shape)}"
            for name in self.tensors
            if not any(other in state_dict for other in self._names_of(name))
        ]
        problems += [f"unexpected: {name!r}" for name in state_dict if name not in self.keys]
        problems += [
            f"{name!r} has shape {list(tensor.shape)}, expected {list(self.lookup(name).shape)}"
            for name, tensor in state_dict.items()
            if name in self.keys and tuple(tensor.shape) != self.lookup(name).shape
        ]
        if problems:
            advice = "check that both checkpoints are of this architecture"
            if {name.removeprefix("module.") for name in state_dict} <= self.keys - set(state_dict):
                advice = (
                    "the names begin with DataParallel's prefix: save model.module.state_dict()"
                )
            raise SpecError(
                f"the {role} does not fit the model or spec; {advice}:\n{bullet_list(problems)}"
            )

    def tensor_of(self, name: str, state_dict: StateDict) -> Tensor:
        """Return the tensor kept under `name` or under a name tied to it."""
        return next(state_dict[other] for other in self._names_of(name) if other in state_dict)

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
    ) -> float:
        """Check that random permutations of `model` leave its outputs unchanged in float64.

        Each draw is tried on the weights as they are and on weights with noise, because fresh
        biases and running statistics are constant and would hide a mistake.

        Args:
            model: the module that the spec describes; it is left as it was.
            example_inputs: a tensor, or a tuple of positional arguments.
            draws: number of random permutations.
            seed: seed of the draws and of the noise.
            tolerance: largest accepted relative difference of the outputs.

        Returns:
            The largest relative difference seen.

        Raises:
            SpecError: the difference is above `tolerance`.
            ModelError: the model's forward fails.
        """
        from gpu_align._symmetry._verify import verify_spec

        return verify_spec(self, model, example_inputs, draws, seed, tolerance)

    def to_json(self) -> str:
        """Return the spec as a JSON document, read back by `from_json`."""
        return json.dumps(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "origin": self.origin,
                "groups": {name: group.size for name, group in self.groups.items()},
                "tensors": {
                    name: [axis.to_json() for axis in tensor.axes]
                    for name, tensor in self.tensors.items()
                },
                "buffers": [name for name, tensor in self.tensors.items() if not tensor.counted],
                "ties": dict(self.ties),
                "pins": [[pin.tensor, pin.axis, pin.reason] for pin in self.pins],
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> "PermutationSpec":
        """Read a spec written by `to_json` or by hand.

        Raises:
            SpecError: the text is not JSON or not a spec.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"expected a spec as JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise SpecError(f'expected a JSON object with "format": "{_FORMAT}"')
        if data.get("version") != _VERSION:
            raise SpecError(
                f"the spec has version {data.get('version')!r}, this release reads {_VERSION}"
            )
        sizes = _expect(data, "groups", dict)
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise SpecError(f"group {name!r} needs a positive number of units, got {size!r}")
        buffers = {
            _name(entry, "buffers") for entry in _expect(data, "buffers", list, optional=True)
        }
        tensors = {}
        for name, axes in _expect(data, "tensors", dict).items():
            if not isinstance(axes, list):
                raise SpecError(f"tensor {name!r}: expected a list of axes, got {axes!r}")
            parsed = tuple(Axis.from_json(axis, sizes) for axis in axes)
            tensors[name] = TensorSpec(parsed, counted=name not in buffers)
        return cls(
            groups={name: Group(name, size) for name, size in sizes.items()},
            tensors=tensors,
            ties={
                k: _name(v, "ties") for k, v in _expect(data, "ties", dict, optional=True).items()
            },
            pins=tuple(_pin(entry) for entry in _expect(data, "pins", list, optional=True)),
            origin=str(data.get("origin", "")),
        )


def _name(entry: object, key: str) -> str:
    if not isinstance(entry, str):
        raise SpecError(f"expected names of tensors in the spec's {key!r}, got {entry!r}")
    return entry


def _pin(entry: object) -> Pin:
    match entry:
        case [str(tensor), int(axis), str(reason)]:
            return Pin(tensor, axis, reason)
    raise SpecError(f"expected a pin as [tensor, axis, reason], got {entry!r}")


def _expect(data: dict[str, Any], key: str, kind: Callable[[], Any], optional: bool = False) -> Any:
    if optional and key not in data:
        return kind()
    value = data.get(key)
    if not isinstance(value, kind):  # type: ignore[arg-type]
        raise SpecError(f"the spec's {key!r} must be a JSON {kind.__name__}, got {value!r}")
    return value


def memory_of(tensor: Tensor) -> object:
    """Return a key that two tensors share exactly if they are the same memory (tied)."""
    if tensor.numel() == 0:
        return id(tensor)
    place = (storage_of(tensor), tensor.storage_offset())
    return tensor.device, tensor.dtype, place, tensor.shape, tensor.stride()


def storage_of(tensor: Tensor) -> int:
    """Return a number that two tensors share exactly if they share storage."""
    return tensor.untyped_storage()._cdata
