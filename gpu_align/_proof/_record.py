"""What is known of a proof but for its duals: what a result keeps and a page shows."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gpu_align._status import Status


@dataclass(frozen=True)
class ProofStep:
    """Where a proof stands after a sweep.

    Attributes:
        seconds: time spent.
        bound: no permutation has a smaller distance.
        candidates: pairs of units that a better permutation may still have.
    """

    seconds: float
    bound: float
    candidates: int


@dataclass(frozen=True, kw_only=True)
class ProofRecord:
    """What was proved about a permutation.

    Attributes:
        method: "dual ascent", or "convex relaxation" where the duals of the former do not fit the
            memory; why is in `note`.
        note: what was used and how it ended, in words.
        distance: of the permutation.
        lower_bound: no permutation has a smaller distance; not above `distance`.
        allowance: what was taken off it for rounding.
        tolerance: a permutation is optimal if none can be closer by more than this, which is
            rounding.
        pairs: number of pairs of units (and signs) in all groups.
        candidates: those of them that a better permutation may still have.
        seconds: time spent.
        status: PROVED_OPTIMAL, or how it ended else.
        history: after every sweep.
    """

    method: str
    note: str
    distance: float
    lower_bound: float
    allowance: float
    tolerance: float
    pairs: int
    candidates: int
    seconds: float
    status: Status
    history: tuple[ProofStep, ...] = field(repr=False)

    @property
    def is_optimal(self) -> bool:
        """Whether no permutation is better, up to rounding."""
        return self.status is Status.PROVED_OPTIMAL

    @property
    def gap(self) -> float:
        """By what share of its distance a better permutation might be closer."""
        return 1 - self.lower_bound / self.distance if self.distance > 0 else 0.0

    def in_words(self) -> str:
        """Say what came of it in one line."""
        if self.is_optimal:
            return "optimal, proved: no order of the units is closer"
        left = f"{self.candidates} of {self.pairs} pairs of units are left"
        return (
            f"no order is closer than {self.lower_bound:.6g}, {100 * self.gap:.3g} % below; {left}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        found = {name: getattr(self, name) for name in _FIELDS}
        history = [asdict(step) for step in self.history]
        return {**found, "status": str(self.status), "history": history}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ProofRecord":
        """Read the form written by `to_json`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: it has another form.
        """
        values: dict[str, Any] = {name: data[name] for name in _FIELDS}
        for name, value in values.items():
            kinds = (str,) if name in _TEXTS else (int,) if name in _COUNTS else (int, float)
            if type(value) not in kinds:
                raise TypeError(f"expected {kinds[-1].__name__} for {name!r}, got {value!r}")
            if kinds[-1] is float and not math.isfinite(value):
                raise ValueError(f"expected a finite number for {name!r}, got {value!r}")
        history = tuple(
            ProofStep(float(e["seconds"]), float(e["bound"]), int(e["candidates"]))
            for e in data["history"]
        )
        return ProofRecord(**values, status=Status[data["status"].upper()], history=history)


_TEXTS, _COUNTS = ("method", "note"), ("pairs", "candidates")
_NUMBERS = ("distance", "lower_bound", "allowance", "tolerance", "seconds")
_FIELDS = (*_TEXTS, *_COUNTS, *_NUMBERS)
