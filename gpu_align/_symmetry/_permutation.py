"""Permutation: one index vector per group, and what can be done with it."""

import itertools
import os
from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from gpu_align._errors import SpecError, folded
from gpu_align._symmetry._html import counted, html_table
from gpu_align._symmetry._memory import memory_of
from gpu_align._symmetry._move import move, multiply, one_of_each
from gpu_align._symmetry._permutation_file import read_vectors, write_vectors
from gpu_align._symmetry._spec import Group, PermutationSpec, StateDict
from gpu_align._symmetry._weights import Weights, apart

M = TypeVar("M", bound=nn.Module)
_SHOWN = 20  # groups in the table of a notebook


@dataclass(frozen=True)
class Permutation:
    """A reordering of the units of every group of a spec, with signs where units have them.

    `perms[g][i] = j` puts unit j of the source at place i of the target: SciPy's `col_ind` with
    the target on the rows. The permuted network computes the same function as the source.

    Attributes:
        spec: the spec whose groups are permuted.
        perms: group -> int64 [units] on the CPU, each a permutation. Units of a group with a
            parent are numbered (unit of the parent, unit inside it), and stay together.
        signs: signed group -> int64 [units] of 1 and -1, the sign that the unit gets at its new
            place; groups left out keep theirs.

    Raises:
        SpecError: groups are missing, a vector is not a permutation, units leave their parent.
    """

    spec: PermutationSpec
    perms: Mapping[str, Tensor]
    signs: Mapping[str, Tensor] = field(default_factory=dict)

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
        _check(self.spec, one_of_each(self.perms), one_of_each(self.signs))

    @classmethod
    def each(
        cls,
        spec: PermutationSpec,
        perms: Mapping[str, Tensor],
        signs: Mapping[str, Tensor],
        count: int,
    ) -> "list[Permutation]":
        """Return many permutations, checked together; each vector in memory of its own.

        Args:
            spec: the spec whose groups are permuted.
            perms: group -> int64 [count, units] on the CPU, for every group.
            signs: signed group -> int64 [count, units] of 1 and -1.
            count: how many.

        Raises:
            SpecError: as for one.
        """
        _check(spec, perms, signs)
        made = []
        for own in zip(_rows(perms, count), _rows(signs, count), strict=True):
            one = object.__new__(cls)  # what `__post_init__` checks is checked
            vars(one).update(spec=spec, perms=own[0], signs=own[1])
            made.append(one)
        return made

    @classmethod
    def identity(cls, spec: PermutationSpec) -> "Permutation":
        """Return the permutation that moves nothing."""
        return cls(
            spec, {name: torch.arange(spec.units(name), device="cpu") for name in spec.groups}
        )

    @classmethod
    def random(
        cls, spec: PermutationSpec, *, generator: torch.Generator | None = None
    ) -> "Permutation":
        """Return a permutation drawn uniformly from all symmetries of the spec, signs included."""
        perms, signs = {}, {}
        for name, group in spec.groups.items():
            if group.fixed:
                perms[name] = torch.arange(group.size, device="cpu")[None]
                continue
            inside = torch.rand(
                spec.units(name) // group.size,
                group.size,
                dtype=torch.float32,
                generator=generator,
                device="cpu",
            )
            perms[name] = inside.argsort(1)
            if group.signed:
                draw = torch.randint(2, (spec.units(name),), generator=generator, device="cpu")
                signs[name] = 2 * draw - 1
        for name, group in spec.groups.items():
            if group.parent is not None:
                perms[name] += group.size * perms[group.parent].reshape(-1, 1)
        return cls(spec, {name: perm.reshape(-1) for name, perm in perms.items()}, signs)

    def __repr__(self) -> str:
        return f"Permutation({', '.join(self._facts().values())})"

    def _repr_html_(self) -> str:
        units = {n: f"{moved} of {self.spec.units(n)} moved" for n, moved in self.moved().items()}
        shown = dict(itertools.islice(units.items(), _SHOWN))
        more = {"...": f"{len(units) - _SHOWN} more"} if len(units) > _SHOWN else {}
        return html_table(repr(self), shown | more)

    def _facts(self) -> dict[str, str]:
        """Return what it does in few words."""
        units = sum(map(self.spec.units, self.spec.groups))
        facts = {
            "groups": counted(len(self.perms), "group"),
            "moved": f"{sum(self.moved().values())} of {counted(units, 'unit')} moved",
        }
        negated = sum(int((sign < 0).sum()) for sign in self.signs.values())
        return facts | ({"negated": f"{negated} negated"} if negated else {})

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
        return Permutation(self.spec, perms, signs)

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
        return Permutation(self.spec, perms, signs)

    def _sign(self, name: str) -> Tensor:
        return self.signs.get(name, torch.ones_like(self.perms[name]))

    def moved(self) -> dict[str, int]:
        """Return for each group how many units change place or sign."""
        return {
            name: int(
                ((perm != torch.arange(len(perm), device="cpu")) | (self._sign(name) < 0)).sum()
            )
            for name, perm in self.perms.items()
        }

    @overload
    def apply(self, state_dict: M) -> M: ...

    @overload
    def apply(self, state_dict: StateDict) -> dict[str, Tensor]: ...

    def apply(self, state_dict: StateDict | nn.Module) -> dict[str, Tensor] | nn.Module:
        """Return the state dict with its units reordered; a module is reordered in place.

        Tensors without a group are passed on as they are; names that share one tensor share the
        result.

        Args:
            state_dict: name -> tensor, any dtype, on any device; or a module, whose tensors are
                replaced as `load_state_dict` does it.

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
        self.spec.validate(state_dict)
        return _applied(self.spec, state_dict, one_of_each(self.perms), one_of_each(self.signs))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index vectors, the signs and the spec to a safetensors file.

        Raises:
            CheckpointError: the file cannot be written.
        """
        write_vectors(path, self.perms, self.signs, self.spec.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Permutation":
        """Read a permutation written by `save`.

        Raises:
            CheckpointError: the file cannot be read or holds no permutation.
            SpecError: its spec cannot be read, or its vectors are no permutation.
        """
        perms, signs, spec = read_vectors(path)
        return cls(PermutationSpec.from_json(spec), perms, signs)


def _check(spec: PermutationSpec, perms: Mapping[str, Tensor], signs: Mapping[str, Tensor]) -> None:
    """Check permutations of all groups of a spec; vectors [b, units].

    Raises:
        SpecError: a vector is not a permutation, units leave their parent, those of a fixed group
            their place, signs are none.
    """
    for name in spec.groups:
        _check_perm(name, perms[name], spec.units(name))
    for name, group in spec.groups.items():
        if group.parent is not None:
            _check_parent(name, group, perms)
        if group.fixed and not bool((perms[name] == torch.arange(group.size, device="cpu")).all()):
            raise SpecError(f"group {name!r} is fixed: expected torch.arange({group.size})")
    for name, sign in signs.items():
        _check_signs(spec, name, sign)


def _rows(stacks: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Tensor]]:
    """Yield the rows of each number by name."""
    names, columns = list(stacks), map(apart, stacks.values())
    rows = zip(*columns, strict=True) if names else itertools.repeat((), count)
    return (dict(zip(names, row, strict=True)) for row in rows)


def _check_perm(name: str, perm: Tensor, units: int) -> None:
    is_plain = isinstance(perm, Tensor) and perm.layout == torch.strided and not perm.is_meta
    right = is_plain and perm.dtype == torch.int64 and perm.shape[1:] == (units,)
    if not right or not bool((perm.sort(1).values == torch.arange(units, device="cpu")).all()):
        raise SpecError(
            f"group {name!r}: expected an int64 permutation of range({units}), got "
            f"{perm.dtype} of shape {list(perm.shape[1:])}"
        )


def _check_parent(name: str, group: Group, perms: Mapping[str, Tensor]) -> None:
    parent = group.parent or ""
    inside = perms[name].reshape(len(perms[name]), -1, group.size) // group.size
    if not bool((inside == perms[parent][:, :, None]).all()):
        raise SpecError(
            f"group {name!r}: its units must go where those of its parent {parent!r} go; "
            "expected perms[group] // size to repeat perms[parent]"
        )


def _check_signs(spec: PermutationSpec, name: str, sign: Tensor) -> None:
    if name not in spec.groups or not spec.groups[name].signed:
        signed = sorted(n for n, group in spec.groups.items() if group.signed)
        raise SpecError(
            f"{name!r} is not a signed group; expected signs for the groups {signed} only"
        )
    # Callers may have floats; bool, complex and unsigned numbers are no signs.
    is_real = sign.dtype.is_signed and not sign.is_complex()
    is_real = is_real and (sign.dtype.itemsize > 1 or sign.dtype == torch.int8)
    right = is_real and sign.shape[1:] == (spec.units(name),)
    if not right or not bool((sign.abs() == 1).all()):
        raise SpecError(
            f"group {name!r}: expected a sign of 1 or -1 for each unit, [{spec.units(name)}], got "
            f"{sign.dtype} of shape {list(sign.shape[1:])}"
        )


def apply_permutations(
    weights: Weights, perms: Mapping[str, Tensor], signs: Mapping[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Return the state dict of every model with its units reordered by its own permutation.

    The same as `Permutation.apply` of one after another; all tensors of one name are moved at once.

    Args:
        weights: m models.
        perms: group -> int64 [m, units], on the device of the weights.
        signs: signed group -> int64 [m, units].
    """
    spec = weights.spec
    results: list[dict[str, Tensor]] = []
    together = []
    for number, state in enumerate(weights.states):
        if len(weights) > 1 and _is_plain(spec, state):
            results.append(dict(state))
            together.append(number)
        else:
            own = ({g: v[number, None].cpu() for g, v in found.items()} for found in (perms, signs))
            results.append(_applied(spec, state, *own))
    for name, tensor_spec in spec.tensors.items() if together else ():
        if tensor_spec.groups:
            moved = move(weights[name], tensor_spec, spec.groups, perms)
            rows = apart(multiply(moved, tensor_spec, spec.groups, signs).cpu())
            for number in together:
                given = results[number][name]
                results[number][name] = rows[number].to(given.device, given.dtype)
    return results


def _applied(
    spec: PermutationSpec,
    state: StateDict,
    perms: Mapping[str, Tensor],
    signs: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return one state dict with its units reordered; perms and signs [1, units]."""
    done: dict[object, Tensor] = {}
    result = {}
    for name, tensor in state.items():
        # Names may share memory and still be permuted apart, where the spec does not tie them.
        tensor_spec = spec.lookup(name)
        identity = memory_of(tensor), tensor_spec.axes
        if identity not in done:
            done[identity] = tensor
            if tensor_spec.groups:
                moved = move(tensor[None], tensor_spec, spec.groups, perms)
                done[identity] = multiply(moved, tensor_spec, spec.groups, signs)[0]
        result[name] = done[identity]
    return result


def _is_plain(spec: PermutationSpec, state: StateDict) -> bool:
    """Say whether a state dict has the names of the spec only, and each its own memory."""
    if state.keys() != spec.tensors.keys():
        return False
    # Tensors at different places are different memory, those of no entries aside.
    if len({tensor.data_ptr() for tensor in state.values()}) == len(state):
        return True
    return len({memory_of(tensor) for tensor in state.values()}) == len(state)
