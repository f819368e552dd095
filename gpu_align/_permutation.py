"""Permutation: one index vector per group, and what can be done with it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpu_align._atomic import atomic_write
from gpu_align._errors import CheckpointError, SpecError
from gpu_align._symmetry._spec import PermutationSpec, StateDict, TensorSpec, memory_of

_SPEC_KEY = "gpu_align_spec"


@dataclass(frozen=True)
class Permutation:
    """A reordering of the units of every group of a spec.

    `perms[g][i] = j` puts unit j of the source at place i of the target: SciPy's `col_ind` with
    the target on the rows. The permuted network computes the same function as the source.

    Attributes:
        spec: the spec whose groups are permuted.
        perms: group name -> int64 [n_g] on the CPU, each a permutation of range(n_g).

    Raises:
        SpecError: groups are missing or a vector is not a permutation.
    """

    spec: PermutationSpec
    perms: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if set(self.perms) != set(self.spec.groups):
            raise SpecError(
                f"expected index vectors for the groups {sorted(self.spec.groups)}, "
                f"got {sorted(self.perms)}"
            )
        for name, group in self.spec.groups.items():
            perm = self.perms[name]
            if not isinstance(perm, Tensor):
                raise SpecError(f"group {name!r}: expected a tensor, got {type(perm).__name__}")
            if perm.dtype != torch.int64 or not torch.equal(
                perm.sort().values, torch.arange(group.size)
            ):
                raise SpecError(
                    f"group {name!r}: expected an int64 permutation of range({group.size}), got "
                    f"{perm.dtype} of shape {list(perm.shape)}"
                )

    @classmethod
    def identity(cls, spec: PermutationSpec) -> "Permutation":
        """Return the permutation that moves nothing."""
        return cls(spec, {name: torch.arange(g.size) for name, g in spec.groups.items()})

    @classmethod
    def random(
        cls, spec: PermutationSpec, *, generator: torch.Generator | None = None
    ) -> "Permutation":
        """Return a permutation drawn uniformly from all symmetries of the spec."""
        return cls(
            spec,
            {
                name: torch.randperm(group.size, generator=generator)
                for name, group in spec.groups.items()
            },
        )

    def inverse(self) -> "Permutation":
        """Return the permutation that undoes this one."""
        return Permutation(self.spec, {name: perm.argsort() for name, perm in self.perms.items()})

    def compose(self, other: "Permutation") -> "Permutation":
        """Return "first `other`, then self": `self.apply(other.apply(x))` in one step.

        Raises:
            SpecError: the two are permutations of different groups.
        """
        if self.spec.groups != other.spec.groups:
            raise SpecError("the two permutations have different groups and cannot be composed")
        return Permutation(
            self.spec, {name: other.perms[name][perm] for name, perm in self.perms.items()}
        )

    def moved(self) -> dict[str, int]:
        """Return for each group how many units change place."""
        return {
            name: int((perm != torch.arange(len(perm))).sum()) for name, perm in self.perms.items()
        }

    def apply(self, state_dict: StateDict) -> dict[str, Tensor]:
        """Return the state dict with its units reordered.

        Tensors without a group are passed on as they are; names that share one tensor share the
        result.

        Args:
            state_dict: name -> tensor, any dtype, on any device.

        Returns:
            The same names in the same order, dtypes and devices kept.

        Raises:
            SpecError: names or shapes do not fit the spec.
        """
        self.spec.validate(state_dict)
        permuted: dict[object, Tensor] = {}
        result = {}
        for name, tensor in state_dict.items():
            # Names may share memory and still be permuted apart, where the spec does not tie them.
            identity = memory_of(tensor), self.spec.lookup(name).axes
            if identity not in permuted:
                permuted[identity] = self._permute(tensor, self.spec.lookup(name))
            result[name] = permuted[identity]
        return result

    def _permute(self, tensor: Tensor, tensor_spec: TensorSpec) -> Tensor:
        for number, axis in enumerate(tensor_spec.axes):
            if axis.groups:
                tensor = tensor.index_select(number, axis.index(self.perms).to(tensor.device))
        return tensor

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index vectors and the spec to a safetensors file.

        Raises:
            CheckpointError: the file cannot be written.
        """
        tensors = {name: perm.contiguous() for name, perm in self.perms.items()}
        with atomic_write(path, CheckpointError) as temporary:
            save_file(tensors, temporary, metadata={_SPEC_KEY: self.spec.to_json()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Permutation":
        """Read a permutation written by `save`.

        Raises:
            CheckpointError: the file cannot be read or holds no permutation.
        """
        try:
            with safe_open(path, "pt") as file:
                spec = (file.metadata() or {}).get(_SPEC_KEY)
                perms = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read {os.fspath(path)!r} as a permutation file: {error}; expected a file "
                "written by `gpu-align align --permutation` or Permutation.save"
            ) from error
        if spec is None:
            raise CheckpointError(
                f"{os.fspath(path)!r} is a safetensors file without a permutation; expected one "
                "written by `gpu-align align --permutation` or Permutation.save"
            )
        return cls(PermutationSpec.from_json(spec), perms)
