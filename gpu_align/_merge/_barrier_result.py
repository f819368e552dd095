"""BarrierResult: what was measured between two networks."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from gpu_align._checkpoint import atomic_write
from gpu_align._merge._curve import LossCurve
from gpu_align._merge._plane import LossPlane

SCHEMA = "gpu-align/barrier/1"


@dataclass(frozen=True, kw_only=True, repr=False)
class BarrierResult:
    """The curves on the segment from A to B, before and after B is aligned to A.

    Attributes:
        curves: as given and aligned; then, where there are batch norms, the same with statistics
            re-estimated.
        loss: name of the loss.
        part: which part of the data it was measured on: "test", or "held" where there is none.
        examples: how many these are.
        statistics_examples: how many training examples statistics were re-estimated on, 0 without
            batch norms.
        findings: sentences that say why alignment does not help; empty if it does.
        notes: what else is to be known.
        plane: losses on the plane through A, B and B aligned, if it was asked for.
        metric: name of the metric of the distances; "" if only a permutation was given.
        distance_before, distance: squared distance without and with alignment, None likewise.
        search: which search found the permutation.
        seed: of the search and of the part that is held back.
        device: what it ran on.
        seconds: time of everything but the alignment.
        versions: of the libraries involved.
    """

    curves: tuple[LossCurve, ...]
    loss: str
    part: str
    examples: int
    statistics_examples: int = 0
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    plane: LossPlane | None = None
    metric: str = ""
    distance_before: float | None = None
    distance: float | None = None
    search: str = ""
    seed: int = 0
    device: str = ""
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(barrier={self.barrier:.4g}, barrier_before={self.barrier_before:.4g})"

    @property
    def has_norms(self) -> bool:
        """Whether there are batch norms, whose statistics can be re-estimated."""
        return any(curve.reestimated for curve in self.curves)

    def curve(self, *, aligned: bool, reestimated: bool | None = None) -> LossCurve:
        """Return a curve.

        Args:
            aligned: with alignment or without.
            reestimated: with statistics re-estimated or not; by default where that can be done.
        """
        wanted = self.has_norms if reestimated is None else reestimated
        return next(c for c in self.curves if (c.aligned, c.reestimated) == (aligned, wanted))

    @property
    def barrier(self) -> float:
        """The barrier with alignment, and with statistics re-estimated where there are some."""
        return self.curve(aligned=True).barrier

    @property
    def barrier_before(self) -> float:
        """The same without alignment."""
        return self.curve(aligned=False).barrier

    def rows(self) -> list[dict[str, Any]]:
        """Return what a table shows of each curve: its name, barrier and midpoint."""
        found = []
        for curve in self.curves:
            middle = curve.midpoint
            found.append(
                {
                    "network": curve.name,
                    "barrier": curve.barrier,
                    "error": curve.barrier_error,
                    "at": curve.barrier_at,
                    "loss": curve.losses[middle],
                    "accuracy": curve.accuracies[middle] if curve.accuracies else None,
                    "ece": curve.eces[middle] if curve.eces else None,
                }
            )
        return found

    def summary(self) -> str:
        """Return what is known in a few lines of text, for `print`."""
        width = max(len(curve.name) for curve in self.curves)
        lines = []
        for row in self.rows():
            error = "" if row["error"] is None else f" ± {row['error']:.2g}"
            text = f"{row['network']:<{width}}  barrier {row['barrier']:.4g}{error}"
            text += f", midpoint loss {row['loss']:.4g}"
            if row["accuracy"] is not None:
                text += f", accuracy {100 * row['accuracy']:.2f} %, ECE {row['ece']:.3f}"
            lines.append(text)
        return "\n".join([*lines, *self.findings, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        plane = None if self.plane is None else self.plane.to_json()
        curves = [curve.to_json() for curve in self.curves]
        made = {"curves": curves, "plane": plane, "versions": dict(self.versions)}
        lists = {name: list(values[name]) for name in ("findings", "notes")}
        headline = {
            "schema": SCHEMA,
            "barrier": self.curve(aligned=True).to_json()["barrier"],
            "barrier_before": self.curve(aligned=False).to_json()["barrier"],
        }
        return headline | values | made | lists

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` returns.

        Raises:
            KeyError: an entry is missing.
        """
        values = {entry.name: data[entry.name] for entry in fields(cls)}
        plane = values["plane"]
        return cls(
            **{
                **values,
                "curves": tuple(map(LossCurve.from_json, values["curves"])),
                "plane": None if plane is None else LossPlane.from_json(plane),
                "findings": tuple(values["findings"]),
                "notes": tuple(values["notes"]),
            }
        )

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file.

        Raises:
            InputError: the file cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_report(self, path: str | os.PathLike[str], *, title: str = "Loss barrier") -> None:
        """Write one HTML page with figures, as `gpu_align.write_report` does.

        Raises:
            InputError: the file cannot be written.
        """
        import gpu_align  # the page is made above this room, which does not know who makes it

        gpu_align.write_report(self, path, title=title)
