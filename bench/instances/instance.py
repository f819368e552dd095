"""Instances: a pair of networks, what may be reordered, and the value of an order. NumPy alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from bench.instances.layout import Group, Order, moved

FOLDER = Path(__file__).parent
NETWORKS, BEST = FOLDER / "networks", FOLDER / "best"
RECORDS = FOLDER / "records.json"
_SIGNS = "signs^"


class Refused(ValueError):
    """A file that is no answer to an instance; the message says why."""


@dataclass(frozen=True)
class Instance:
    """Two networks of one architecture.

    Attributes:
        name: of the instance.
        spec: as in its JSON file: groups, and where they lie on the axes of the tensors.
        target, source: tensors by name; the units of the source are reordered.
    """

    name: str
    spec: Mapping[str, Any]
    target: Mapping[str, NDArray]
    source: Mapping[str, NDArray]

    @classmethod
    def load(cls, name: str) -> "Instance":
        """Read an instance of the repository."""
        if name not in names():
            raise Refused(f"expected one of the instances {', '.join(names())}, got {name!r}")
        spec = json.loads((NETWORKS / f"{name}.json").read_text(encoding="utf-8"))
        target, source = (load_file(NETWORKS / f"{name}_{end}.safetensors") for end in "ab")
        return cls(name, spec, target, source)

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The groups by name."""
        return {name: Group.of(entry) for name, entry in self.spec["groups"].items()}

    def units(self, name: str) -> int:
        """Return the length of a group's index vector."""
        group = self.groups[name]
        return group.size * (self.groups[group.parent].size if group.parent else 1)

    def identity(self) -> Order:
        """Return the order in which nothing moves."""
        return Order(self.groups, {name: np.arange(self.units(name)) for name in self.groups})

    def value(self, order: Order) -> float:
        """Return the squared distance of target and reordered source, in float64."""
        total = 0.0
        for name, axes in self.spec["tensors"].items():
            if name not in self.spec["buffers"]:
                a = self.target[name].astype(np.float64)
                b = moved(self.source[name].astype(np.float64), axes, order)
                total += float(np.square(a - b).sum())
        return total

    def read(self, path: Path) -> Order:
        """Read an order from a file and check that it is one.

        Raises:
            Refused: it is not.
        """
        held = load_file(path)
        perms = {name: held[name] for name in held if not name.startswith(_SIGNS)}
        signs = {name.removeprefix(_SIGNS): held[name] for name in held if name.startswith(_SIGNS)}
        order = Order(self.groups, perms, signs)
        self.check(order)
        return order

    def check(self, order: Order) -> None:
        """Refuse an order that is none of this instance's symmetries."""
        if order.perms.keys() != self.groups.keys():
            raise Refused(f"expected the groups {sorted(self.groups)}, got {sorted(order.perms)}")
        for name, group in self.groups.items():
            perm, units = order.perms[name], self.units(name)
            is_whole = np.issubdtype(perm.dtype, np.integer) and perm.shape == (units,)
            if not is_whole or (np.sort(perm) != np.arange(units)).any():
                raise Refused(f"group {name}: expected each of 0 .. {units - 1} once")
            if group.fixed and (perm != np.arange(units)).any():
                raise Refused(f"group {name}: its units stay where they are")
            if group.parent and (perm // group.size).tolist() != [
                int(unit) for unit in order.perms[group.parent] for _ in range(group.size)
            ]:
                raise Refused(f"group {name}: units leave the unit of {group.parent} they lie in")
        for name, sign in order.signs.items():
            if name not in self.groups or not self.groups[name].signed:
                raise Refused(f"group {name}: its units have no signs")
            if sign.shape != (self.units(name),) or (np.abs(sign) != 1).any():
                raise Refused(f"group {name}: expected {self.units(name)} signs of 1 and -1")


def names() -> list[str]:
    """Return the names of all instances."""
    return sorted(path.stem for path in NETWORKS.glob("*.json"))


def records() -> dict[str, Any]:
    """Return what is known of every instance: best value, bound, who found it and how."""
    return json.loads(RECORDS.read_text(encoding="utf-8"))
