"""What index vectors, signs and phases must be to be symmetries of a spec."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._errors import SpecError
from gpu_align._symmetry._parts import Group
from gpu_align._symmetry._spec import PermutationSpec


def check_vectors(
    spec: PermutationSpec,
    perms: Mapping[str, Tensor],
    signs: Mapping[str, Tensor],
    phases: Mapping[str, Tensor],
) -> None:
    """Check permutations of all groups of a spec; vectors [b, units].

    Raises:
        SpecError: a vector is not a permutation, units leave their parent, those of a fixed group
            their place, signs or phases are none.
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
    for name, phase in phases.items():
        _check_phases(spec, name, phase)


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


def _check_phases(spec: PermutationSpec, name: str, phase: Tensor) -> None:
    if name not in spec.phases:
        raise SpecError(
            f"{name!r} is not a group with a phase; expected phases for the groups "
            f"{sorted(spec.phases)} only"
        )
    is_plain = isinstance(phase, Tensor) and phase.layout == torch.strided and not phase.is_meta
    if not is_plain or phase.dtype != torch.int64 or phase.shape[1:] != (spec.units(name),):
        raise SpecError(
            f"group {name!r}: expected a number of half periods for each unit, int64 "
            f"[{spec.units(name)}], got {phase.dtype} of shape {list(phase.shape[1:])}"
        )
