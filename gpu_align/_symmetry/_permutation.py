"""Permutation: one index vector per group, and what can be done with it."""

import itertools
import os
from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from gpu_align._errors import CheckpointError, InputError, SpecError, folded
from gpu_align._symmetry._draw import draw
from gpu_align._symmetry._html import Shown, counted
from gpu_align._symmetry._move import one_of_each
from gpu_align._symmetry._permutation_check import check_vectors
from gpu_align._symmetry._permutation_file import read_vectors, write_vectors
from gpu_align._symmetry._reorder import reordered
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._stacks import stack_size, stacked, unstacked
from gpu_align._symmetry._weights import apart

M = TypeVar("M", bound=nn.Module)
_SHOWN = 20  # groups in the table of a notebook


@dataclass(frozen=True, repr=False)
class Permutation(Shown):
    """A reordering of the units of every group of a spec, with signs where units have them.

    `perms[g][i] = j` puts unit j of the source at place i of the target: SciPy's `col_ind` with
    the target on the rows. The permuted network computes the same function as the source.

    Attributes:
        spec: the spec whose groups are permuted.
        perms: group -> int64 [units] on the CPU, each a permutation. Units of a group with a
            parent are numbered (unit of the parent, unit inside it), and stay together.
        signs: signed group -> int64 [units] of 1 and -1, the sign that the unit gets at its new
            place; groups left out keep theirs.
        phases: group with a phase -> int64 [units], by how many half periods the bias of the unit
            is shifted at its new place, after its sign; groups left out stay.

    Raises:
        SpecError: groups are missing, a vector is not a permutation, units leave their parent.
    """

    spec: PermutationSpec
    perms: Mapping[str, Tensor]
    signs: Mapping[str, Tensor] = field(default_factory=dict)
    phases: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.perms) != set(self.spec.groups):
            raise SpecError(
                f"expected index vectors for the groups {sorted(self.spec.groups)}, "
                f"got {sorted(self.perms)}; a group that stays as it is has torch.arange(units)"
            )
        for name, perm in self.perms.items():
            if not isinstance(perm, Tensor):
                raise SpecError(
                    f"group {name!r}: expected an int64 tensor [units], got {type(perm).__name__}; "
                    "make one by torch.tensor"
                )
        vectors = (self.perms, self.signs, self.phases)
        check_vectors(self.spec, *map(one_of_each, vectors))

    @classmethod
    def each(
        cls,
        spec: PermutationSpec,
        perms: Mapping[str, Tensor],
        signs: Mapping[str, Tensor],
        count: int,
        phases: Mapping[str, Tensor] | None = None,
    ) -> "list[Permutation]":
        """Return many permutations, checked together; each vector in memory of its own.

        Args:
            spec: the spec whose groups are permuted.
            perms: group -> int64 [count, units] on the CPU, for every group.
            signs: signed group -> int64 [count, units] of 1 and -1.
            count: how many.
            phases: group with a phase -> int64 [count, units].

        Raises:
            SpecError: as for one.
        """
        found = (perms, signs, phases or {})
        check_vectors(spec, *found)
        made = []
        for own in zip(*(_rows(vectors, count) for vectors in found), strict=True):
            one = object.__new__(cls)  # what `__post_init__` checks is checked
            vars(one).update(spec=spec, perms=own[0], signs=own[1], phases=own[2])
            made.append(one)
        return made

    @classmethod
    def identity(cls, spec: PermutationSpec) -> "Permutation":
        """Return the permutation that moves nothing."""
        return cls(
            spec, {name: torch.arange(spec.units(name), device="cpu") for name in spec.groups}
        )

    @overload
    @classmethod
    def random(
        cls,
        spec: PermutationSpec,
        count: None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> "Permutation": ...

    @overload
    @classmethod
    def random(
        cls,
        spec: PermutationSpec,
        count: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> "list[Permutation]": ...

    @classmethod
    def random(
        cls,
        spec: PermutationSpec,
        count: int | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> "Permutation | list[Permutation]":
        """Return a permutation drawn uniformly, with signs; phases, of which no end is, stay at 0.

        Args:
            spec: whose symmetries.
            count: how many to draw, as a list; by default one, by itself.
            seed: of the draws.
            generator: what to draw from, in place of a seed; by default torch's own.
        """
        if seed is not None:
            if generator is not None:
                raise InputError("expected a seed or a generator, got both; leave one out")
            generator = torch.Generator().manual_seed(seed)
        if count is not None:
            return [cls(spec, *draw(spec, generator)) for _ in range(count)]
        return cls(spec, *draw(spec, generator))

    def _facts(self) -> dict[str, str]:
        units = sum(map(self.spec.units, self.spec.groups))
        facts = {
            "groups": counted(len(self.perms), "group"),
            "moved": f"{sum(self.moved().values())} of {counted(units, 'unit')} moved",
        }
        negated = sum(int((sign < 0).sum()) for sign in self.signs.values())
        shifted = self.shifted()
        facts |= {"negated": f"{negated} negated"} if negated else {}
        return facts | ({"shifted": f"{shifted} shifted by half periods"} if shifted else {})

    def _rows(self) -> dict[str, str]:
        units = {n: f"{moved} of {self.spec.units(n)} moved" for n, moved in self.moved().items()}
        shown = dict(itertools.islice(units.items(), _SHOWN))
        more = {"...": f"{len(units) - _SHOWN} more"} if len(units) > _SHOWN else {}
        return shown | more

    def __getitem__(self, group: str) -> Tensor:
        """Return the index vector of a group, int64 [units]: `perms[group]`."""
        if group not in self.perms:
            raise KeyError(f"no group {group!r}; the groups are {folded(list(self.perms), 20)}")
        return self.perms[group]

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the groups."""
        return iter(self.perms)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.perms)

    def keys(self) -> KeysView[str]:
        """Return the names of the groups, so that `dict(permutation)` is `perms`."""
        return self.perms.keys()

    def inverse(self) -> "Permutation":
        """Return the permutation that undoes this one."""
        perms = {name: perm.argsort() for name, perm in self.perms.items()}
        signs = {name: sign[perms[name]] for name, sign in self.signs.items()}
        back = {name: -self._sign(name) * shift for name, shift in self.phases.items()}
        phases = {name: shift[perms[name]] for name, shift in back.items()}
        return Permutation(self.spec, perms, signs, phases)

    def compose(self, other: "Permutation") -> "Permutation":
        """Return "first `other`, then self": `self.apply(other.apply(x))` in one step.

        Raises:
            SpecError: the two are permutations of different groups.
        """
        mine, others = self.spec.groups, other.spec.groups
        if mine != others:
            unlike = sorted(n for n in {**mine, **others} if mine.get(n) != others.get(n))
            raise SpecError(
                f"expected two permutations of the same groups, got other ones for {unlike}; "
                "compose permutations of one spec"
            )
        perms = {name: other.perms[name][perm] for name, perm in self.perms.items()}
        signs = {
            name: self._sign(name) * other._sign(name)[self.perms[name]]
            for name in {**self.signs, **other.signs}
        }
        phases = {
            name: self._phase(name) + self._sign(name) * other._phase(name)[self.perms[name]]
            for name in {**self.phases, **other.phases}
        }
        return Permutation(self.spec, perms, signs, phases)

    def _sign(self, name: str) -> Tensor:
        return self.signs.get(name, torch.ones_like(self.perms[name]))

    def _phase(self, name: str) -> Tensor:
        return self.phases.get(name, torch.zeros_like(self.perms[name]))

    def moved(self) -> dict[str, int]:
        """Return for each group how many units change place or sign."""
        return {
            name: int(
                ((perm != torch.arange(len(perm), device="cpu")) | (self._sign(name) < 0)).sum()
            )
            for name, perm in self.perms.items()
        }

    def shifted(self) -> int:
        """Return how many units have their phase shifted."""
        return sum(int((phase != 0).sum()) for phase in self.phases.values())

    @overload
    def apply(self, state_dict: M) -> M: ...

    @overload
    def apply(self, state_dict: StateDict) -> dict[str, Tensor]: ...

    def apply(self, state_dict: StateDict | nn.Module) -> dict[str, Tensor] | nn.Module:
        """Return the state dict with its units reordered; a module is reordered in place.

        Tensors without a group are passed on as they are; names that share one tensor share the
        result.

        Args:
            state_dict: name -> tensor, any dtype, on any device, or a stack of them with a leading
                axis of models; or a module, whose tensors are replaced as `load_state_dict` does.

        Returns:
            The same names in the same order, dtypes and devices kept; or the module itself.

        Raises:
            SpecError: names or shapes do not fit the spec.
        """
        if isinstance(state_dict, nn.Module):
            state = state_dict.state_dict()
            tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
            state_dict.load_state_dict({**state, **self.apply(tensors)})
            return state_dict
        known = self.spec.keys & state_dict.keys()
        count = stack_size(state_dict, {name: self.spec.lookup(name).shape for name in known})
        if count:
            return stacked([self.apply(state) for state in unstacked(state_dict, count)])
        self.spec.validate(state_dict)
        vectors = (self.perms, self.signs, self.phases)
        return reordered(self.spec, state_dict, *map(one_of_each, vectors))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index vectors, signs, phases and the spec to a safetensors file.

        Raises:
            CheckpointError: the file cannot be written.
        """
        write_vectors(path, (self.perms, self.signs, self.phases), self.spec.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Permutation":
        """Read a permutation written by `save`.

        Raises:
            CheckpointError: the file cannot be read or holds no permutation.
            SpecError: its spec cannot be read, or its vectors are no permutation.
        """
        vectors, spec, count = read_vectors(path)
        if count is not None:
            raise CheckpointError(
                f"{os.fspath(path)!r} holds a stack of {count} permutations; read them by "
                "Permutation.load_each, and save the one that you want"
            )
        return cls(PermutationSpec.from_json(spec), *vectors)

    @staticmethod
    def save_each(path: str | os.PathLike[str], permutations: "Sequence[Permutation]") -> None:
        """Write permutations of one spec to one safetensors file, their vectors stacked by group.

        Raises:
            InputError: there are none, or of several specs; CheckpointError: the file cannot be
                written.
        """
        specs = [permutation.spec for permutation in permutations]
        if not specs or any(spec is not specs[0] and spec != specs[0] for spec in specs):
            raise InputError(
                "expected at least one permutation, and all of one spec; save others apart"
            )
        signed = {name for each in permutations for name in each.signs}
        shifted = {name for each in permutations for name in each.phases}
        perms = {g: torch.stack([each.perms[g] for each in permutations]) for g in specs[0].groups}
        signs = {g: torch.stack([each._sign(g) for each in permutations]) for g in signed}
        phases = {g: torch.stack([each._phase(g) for each in permutations]) for g in shifted}
        write_vectors(path, (perms, signs, phases), specs[0].to_json(), len(specs))

    @classmethod
    def load_each(cls, path: str | os.PathLike[str]) -> "list[Permutation]":
        """Read the permutations written by `save_each`, or the one written by `save`.

        Raises:
            CheckpointError, SpecError: as for `load`.
        """
        found, text, count = read_vectors(path)
        if count is None:
            return [cls.load(path)]
        spec = PermutationSpec.from_json(text)
        perms, signs, phases = found
        vectors = [vector for named in found for vector in named.values()]
        if perms.keys() != spec.groups.keys() or any(v.shape[:1] != (count,) for v in vectors):
            raise CheckpointError(
                f"{os.fspath(path)!r} does not hold the {count} permutations that it says; "
                "expected a file written by Permutation.save_each"
            )
        return cls.each(spec, perms, signs, count, phases)


def _rows(stacks: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Tensor]]:
    """Yield the rows of each number by name."""
    names, columns = list(stacks), map(apart, stacks.values())
    rows = zip(*columns, strict=True) if names else itertools.repeat((), count)
    return (dict(zip(names, row, strict=True)) for row in rows)
