"""AlignmentResult: the answer and everything that is known about it."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NoReturn

from torch import Tensor

from gpu_align._align._certificate import CostMatrix, GroupReport
from gpu_align._checkpoint import atomic_write
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._search import Progress
from gpu_align._status import Status
from gpu_align._symmetry import Permutation, outline

SCHEMA = "gpu-align/result/1"
PICTURED = 8
"""Most models of one call whose cost matrices are kept."""
PRESERVED = 1e-9
"""Largest relative difference of outputs, in float64, that counts as the same function."""


@dataclass(frozen=True)
class AlignmentResult:
    """The permutation found, its distances and its certificate.

    Attributes:
        permutation: what reorders the source's units.
        state_dict: the source, reordered.
        metric: name of the metric of all distances.
        distance: squared distance after alignment, float64.
        distance_before: squared distance of source and target as given.
        lower_bound: no permutation has a smaller distance (may be loose).
        groups: one report per group, with the duality gap of its assignment.
        function_difference: largest relative difference of the outputs of the source before and
            after, in float64 on the example inputs; None if it could not be checked.
        function_note: how the function was checked, or why not.
        cost_matrix: costs of the group that gained most, for a picture; None without groups, and
            where more than `PICTURED` models were aligned in one call.
        history: progress after every step of the search, for all models of the batch together.
        search: which search found the best permutation.
        status: how the search ended.
        seconds: time of the search, for all models of the batch together.
        assignments: number of assignment problems solved, for all models of the batch together.
        seed: seed of the search.
        device: what it ran on, and why.
        versions: of the libraries involved.
        log10_symmetries: log10 of the number of permutations that there are.
        origin: where the spec comes from.
        studies: further measurements for the report, such as the beam-width study.
        batch_size: number of models that were aligned in one batch, this one included; less than
            the number of sources where these did not fit the memory together.
        ok: True; see `AlignmentFailure`.
        splits: what of the search did not fit into memory at once -> in what parts it was computed.
    """

    ok: ClassVar[Literal[True]] = True

    permutation: Permutation
    state_dict: Mapping[str, Tensor]
    metric: str
    distance: float
    distance_before: float
    lower_bound: float
    groups: tuple[GroupReport, ...]
    function_difference: float | None
    function_note: str
    cost_matrix: CostMatrix | None
    history: tuple[Progress, ...]
    search: str
    status: Status
    seconds: float
    assignments: int
    seed: int
    device: str
    versions: Mapping[str, str]
    log10_symmetries: float
    origin: str
    studies: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    splits: Mapping[str, str] = field(default_factory=dict)

    def unwrap(self) -> "AlignmentResult":
        """Return this result; an `AlignmentFailure` raises its error instead."""
        return self

    @property
    def function_preserved(self) -> bool | None:
        """Whether the outputs agree to `PRESERVED`; None if they were not compared."""
        if self.function_difference is None:
            return None
        return self.function_difference <= PRESERVED

    def to_json(self) -> dict[str, Any]:
        """Return everything but tensors and index vectors as plain JSON values."""
        names = (
            *("metric", "distance", "distance_before", "lower_bound", "function_difference"),
            *("function_preserved", "function_note", "search", "seconds", "assignments", "seed"),
            *("device", "log10_symmetries", "origin", "batch_size"),
        )
        return {
            "schema": SCHEMA,
            **{name: _plain(getattr(self, name)) for name in names},
            "status": str(self.status),
            "status_note": self.status.value,
            "groups": [asdict(group) for group in self.groups],
            "outline": asdict(outline(self.permutation.spec)),
            "history": [_plain_step(entry) for entry in self.history],
            "cost_matrix": None if self.cost_matrix is None else asdict(self.cost_matrix),
            "versions": dict(self.versions),
            "studies": dict(self.studies),
            "splits": dict(self.splits),
        }

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, from which `gpu-align report` makes its page.

        Raises:
            InputError: the file cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class AlignmentFailure:
    """Stands in the place of a result for a source that could not be aligned; others were.

    Attributes:
        index: place of the source in the list.
        name: its path, or None if it was not a file.
        error: what `unwrap` raises; its message says what to mend.
        status: UNUSABLE for a source that cannot be read, does not fit the spec or is not finite,
            INTERRUPTED for one that was not begun, else why its assignments could not be solved.
        ok: False; True for an `AlignmentResult`.
    """

    ok: ClassVar[Literal[False]] = False

    index: int
    name: str | None
    error: GpuAlignError
    status: Status

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        raise self.error


def _plain_step(entry: Progress) -> dict[str, Any]:
    # The history has whole steps only.
    return {name: value for name, value in entry.to_json().items() if name != "part"}


def _plain(value: Any) -> Any:
    """Return a value that JSON has: an infinite difference of outputs becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file written by `AlignmentResult.save_json`.

    Raises:
        InputError: the file cannot be read or is not a result.
    """
    advice = "expected a file written by `gpu-align align --json-file`"
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read {os.fspath(path)!r}: {error}; {advice}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError(f"{os.fspath(path)!r} is not a result ({SCHEMA}); {advice}")
    return data
