"""Sums over models, from which the distance of the models to their mean is known."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpu_align._checkpoint import read_safetensors, write_safetensors
from gpu_align._symmetry import PermutationSpec

_COUNT, _SQUARES = "count", "squares:"
_SIDES = ("before:", "after:")


def sums_of(
    spec: PermutationSpec, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the sums of the counted tensors of a batch, in float64, and of their squares.

    Args:
        spec: of the models.
        before, after: name -> [k, *shape].
    """
    names = [n for n, t in spec.tensors.items() if t.counted and n in after]
    found = {
        _COUNT: torch.tensor(
            [len(after[names[0]]) if names else 0], dtype=torch.int64, device="cpu"
        )
    }
    for name in names:
        if after[name].is_floating_point():
            found[_SIDES[0] + name] = before[name].sum(0, dtype=torch.float64)
            found[_SIDES[1] + name] = after[name].sum(0, dtype=torch.float64)
            found[_SQUARES + name] = after[name].to(torch.float64).square().sum()
    return found


def add_sums(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return sums added up."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def spreads(total: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return tensor -> mean squared distance of the models to their mean, "before" and "after".

    Units that change place keep the sum of squares, so one serves both.
    """
    if _COUNT not in total or not int(total[_COUNT]):
        return {}
    count, found = int(total[_COUNT]), {}
    for name in total:
        if name.startswith(_SQUARES):
            own, square = name.removeprefix(_SQUARES), float(total[name]) / count
            found[own] = {
                side.rstrip(":"): max(square - float((total[side + own] / count).square().sum()), 0)
                for side in _SIDES
            }
    return found


def save_sums(path: Path, total: Mapping[str, Tensor]) -> None:
    """Write sums to a file."""
    write_safetensors(path, total, None)


def load_sums(path: Path) -> dict[str, Tensor]:
    """Read what `save_sums` wrote."""
    return read_safetensors(path)[0]
