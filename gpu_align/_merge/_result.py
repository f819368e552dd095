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
