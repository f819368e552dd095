"""Signs and scales applied to state dicts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._symmetry._memory import memory_of
from gpu_align._symmetry._move import multiply, one_of_each
from gpu_align._symmetry._parts import NormScale
from gpu_align._symmetry._spec import PermutationSpec, StateDict

Multipliers = Mapping[str, Tensor]


def rescale(
    spec: PermutationSpec,
    state_dict: StateDict,
    units: Multipliers,
    rows: Multipliers | None = None,
) -> dict[str, Tensor]:
    """Return a state dict whose units have been given signs or scales.

    Computed in float64 and rounded once. Tensors that do not change are passed on as they are;
    names that share one tensor share the result.

    Args:
        spec: the symmetries.
        state_dict: name -> tensor, which fit the spec (`PermutationSpec.validate`).
        units: group -> [units], multipliers of its units: signs if it is signed, positive numbers
            if it is scaled; groups left out keep theirs.
        rows: weight of a norm scale -> [rows], positive.

    Returns:
        The same names in the same order, dtypes and devices kept.
    """
    scales = {
        name: (scale, (rows or {})[scale.weight])
        for scale in spec.norm_scales
        for name in scale.names
        if scale.weight in (rows or {})
    }
    done: dict[object, Tensor] = {}
    result = {}
    for alias, tensor in state_dict.items():
        name = spec.ties.get(alias, alias)
        identity = memory_of(tensor), name
        if identity not in done:
            done[identity] = _rescaled(tensor, name, spec, units, scales.get(name))
        result[alias] = done[identity]
    return result


def _rescaled(
    tensor: Tensor,
    name: str,
    spec: PermutationSpec,
    units: Multipliers,
    row: tuple[NormScale, Tensor] | None,
) -> Tensor:
    blocks = spec.tensors[name].blocks
    powers = {f.group for block in blocks for f in block.units.values() if f.power}
    if row is None and powers.isdisjoint(units):
        return tensor
    wide = tensor.to(torch.float64)[None]
    wide = multiply(wide, spec.tensors[name], spec.groups, one_of_each(units))[0]
    if row is not None:
        wide = _row_scaled(wide, name, *row)
    return wide.to(tensor.dtype)


def _row_scaled(wide: Tensor, name: str, scale: NormScale, multiplier: Tensor) -> Tensor:
    multiplier = multiplier.to(wide).reshape(-1, *[1] * (wide.ndim - 1))
    if name == scale.variance:
        variance = multiplier**2 * (wide + scale.eps) - scale.eps
        # What is zero but for rounding must not become a negative variance.
        return torch.where(variance.abs() <= 1e-12 * scale.eps, 0.0, variance)
    return multiplier * wide
