"""MergeResult: a merged network, and what was tried to get it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from gpu_align._checkpoint import atomic_write
from gpu_align._symmetry import Permutation

SCHEMA = "gpu-align/merge/1"


@dataclass(frozen=True)
class Trial:
    """One way of merging that was tried, or one of the networks.

    Attributes:
        order: how the units were brought into one order: "as given", "weights", "weights and
            data, 0.3" with the alpha of `align`; the name of the network for one of those that are
            merged.
        method: how the mean was set right on data, see `merge`; "" for a network.
        loss: on held-back data; None without data.
        accuracy, ece: likewise; None without classes.
        distance: squared distance of the networks to their mean, summed over networks and weights;
            None for a network.
        examples: how many the loss was measured on.
        fitted: how many the mean was set right on.
    """

    order: str
    method: str
    loss: float | None = None
    accuracy: float | None = None
    ece: float | None = None
    distance: float | None = None
    examples: int = 0
    fitted: int = 0

    @property
    def is_merged(self) -> bool:
        """Whether it is a way of merging and not one of the networks."""
        return bool(self.method)


@dataclass(frozen=True)
class GroupMatch:
    """How well the units of a group match in the networks that are merged.

    Attributes:
        name: of the group.
        units: how many it has.
        moved: how many of them another place was found for, in all networks together.
        kept_before, kept: share of the squares of the weights on its units that is left in their
            mean, as given and in the order that was chosen: 1 for equal networks, 1 / n for n
            whose units have nothing to do with each other.
    """

    name: str
    units: int
    moved: int
    kept_before: float
    kept: float


@dataclass(frozen=True)
class MergeResult:
    """A merged network and what is known about it.

    Attributes:
        state_dict: the merged network; its units are in the order of the first network's.
        chosen: how it was merged.
        trials: all that was tried, in that order, the networks first.
        permutations: of each network into the order of the first one; identities where the units
            were left as given.
        cycle_error: share of units that do not return over triangles of networks; None for two.
        weights: of the networks, summing to 1.
        notes: what is to be known of it, a sentence each.
        groups: how well the units match, group by group.
        seconds: time spent.
        seed: of all random numbers.
    """

    state_dict: Mapping[str, Tensor]
    chosen: Trial
    trials: Sequence[Trial]
    permutations: Sequence[Permutation]
    cycle_error: float | None
    weights: Sequence[float]
    notes: Sequence[str]
    groups: Sequence[GroupMatch]
    seconds: float
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return everything but tensors as plain JSON values."""
        return {
            "schema": SCHEMA,
            "chosen": asdict(self.chosen),
            "trials": [asdict(trial) for trial in self.trials],
            "moved": [permutation.moved() for permutation in self.permutations],
            "cycle_error": self.cycle_error,
            "weights": list(self.weights),
            "notes": list(self.notes),
            "groups": [asdict(group) for group in self.groups],
            "seconds": self.seconds,
            "seed": self.seed,
        }

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file.

        Raises:
            InputError: the file cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_report(self, path: str | os.PathLike[str], *, title: str = "Merge") -> None:
        """Write one HTML page with figures, as `gpu_align.write_report` does.

        Raises:
            InputError: the file cannot be written.
        """
        import gpu_align  # the page is made above this room, which does not know who makes it

        gpu_align.write_report(self, path, title=title)

    def summary(self) -> str:
        """Return what was tried as a table, for `print`; the chosen way is marked."""
        lines = [f"  {'order of units':<24} {'set right by':<14} {'loss':>9} {'accuracy':>9}"]
        for trial in self.trials:
            mark = "*" if trial is self.chosen else " "
            loss = "" if trial.loss is None else f"{trial.loss:.4f}"
            accuracy = "" if trial.accuracy is None else f"{100 * trial.accuracy:.2f} %"
            method = trial.method or "(not merged)"
            lines.append(f"{mark} {trial.order:<24} {method:<14} {loss:>9} {accuracy:>9}")
        return "\n".join([*lines, *self.notes])
