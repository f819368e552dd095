"""What two specs have in common when only their names differ."""

import hashlib
import json
import re
from dataclasses import dataclass

from gpu_align._symmetry import PermutationSpec, Units
from gpu_align.learn._cells import BlockCell
from gpu_align.learn._space import WeightSpace


@dataclass(frozen=True)
class Structure:
    """The parameters of a spec and how its groups lie on them, whatever both are called.

    Attributes:
        tensors: names of the parameters in natural order, "2.weight" before "10.weight".
        groups: names of the groups, as they come on these.
        digest: SHA-256 of the shapes, of the groups on every axis, and of the last parts of names,
            such as "weight": equal for networks whose modules are only called otherwise.
    """

    tensors: tuple[str, ...]
    groups: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, spec: PermutationSpec) -> "Structure":
        """Read a spec; signs count, positive scales do not."""
        cells = sorted(WeightSpace(spec).cells, key=lambda cell: natural(cell.name))
        numbers: dict[str, int] = {}
        for cell in cells:
            for factor in cell.block.units.values():
                numbers.setdefault(factor.group, len(numbers))
        groups = [spec.groups[name] for name in numbers]
        document = {
            "groups": [
                [g.size, g.signed, g.fixed, None if g.parent is None else numbers[g.parent]]
                for g in groups
            ],
            "cells": [_described(cell, spec, numbers) for cell in cells],
        }
        digest = hashlib.sha256(json.dumps(document).encode()).hexdigest()
        return cls(tuple(dict.fromkeys(cell.name for cell in cells)), tuple(numbers), digest)


def natural(name: str) -> list[str | int]:
    """Return a key by which numbers in names are in their own order."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def _described(cell: BlockCell, spec: PermutationSpec, numbers: dict[str, int]) -> list[object]:
    pieces = [
        [
            piece.start,
            list(piece.strides),
            [[f.size, numbers[f.group] if isinstance(f, Units) else None] for f in piece.factors],
        ]
        for piece in cell.block.pieces
    ]
    kind = cell.name.rpartition(".")[2]
    shape = list(spec.tensors[cell.name].shape)
    return [kind, shape, pieces, [axis.odd for axis in cell.axes], list(cell.chosen)]
