"""LossCurve: how good the networks on a segment are, and its barrier."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from gpu_align._errors import InputError
from gpu_align._network import Score


@dataclass(frozen=True)
class LossCurve:
    """Scores along the segment `(1 - t) A + t B`.

    Attributes:
        aligned: whether B is aligned to A.
        reestimated: whether each network's batch norms have the statistics of the data.
        points: t, from 0 to 1, with 0.5 among them.
        losses: of each point.
        standard_errors: of the losses, from the spread of the batches; None for a single batch.
        accuracies, eces: of each point, see `Score`; empty without classes.
        barrier: the most by which the loss exceeds the line between the losses of the ends: 0 or
            more (Frankle et al. 2020, section 2; Entezari et al. 2022, definition 2.1).
        barrier_at: where it does.
        barrier_error: standard error of the barrier, from batches that all three networks see;
            None at an end, where there is no barrier.
    """

    aligned: bool
    reestimated: bool
    points: tuple[float, ...]
    losses: tuple[float, ...]
    standard_errors: tuple[float | None, ...]
    accuracies: tuple[float, ...]
    eces: tuple[float, ...]
    barrier: float
    barrier_at: float
    barrier_error: float | None

    @classmethod
    def of(
        cls, points: Sequence[float], scores: Sequence[Score], *, aligned: bool, reestimated: bool
    ) -> Self:
        """Return the curve of the scores at these points."""
        excesses = [
            _excess(t, score, scores[0], scores[-1])
            for t, score in zip(points, scores, strict=True)
        ]
        barrier = max(excess.loss for excess in excesses)
        at = next(n for n, excess in enumerate(excesses) if excess.loss == barrier)
        return cls(
            aligned=aligned,
            reestimated=reestimated,
            points=tuple(points),
            losses=tuple(score.loss for score in scores),
            standard_errors=tuple(score.standard_error for score in scores),
            accuracies=tuple(s.accuracy for s in scores if s.accuracy is not None),
            eces=tuple(s.ece for s in scores if s.ece is not None),
            barrier=barrier,
            barrier_at=points[at],
            barrier_error=None if points[at] in (0, 1) else excesses[at].standard_error,
        )

    @property
    def name(self) -> str:
        """What it is called in tables and figures."""
        parts = ["aligned" if self.aligned else "as given"]
        return ", ".join([*parts, *(["statistics re-estimated"] if self.reestimated else [])])

    @property
    def midpoint(self) -> int:
        """Number of the point in the middle."""
        return self.points.index(0.5)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; what is not finite becomes null."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` returns.

        Raises:
            KeyError: an entry is missing.
        """
        values = {entry.name: data[entry.name] for entry in fields(cls)}
        for name in ("points", "losses", "accuracies", "eces"):
            values[name] = tuple(math.nan if value is None else value for value in values[name])
        values["standard_errors"] = tuple(values["standard_errors"])
        if values["barrier"] is None:
            values["barrier"] = math.inf
        return cls(**values)


def segment_points(count: int) -> list[float]:
    """Return equally spaced points from 0 to 1, and the midpoint.

    Raises:
        InputError: there are fewer than 3.
    """
    if count < 3:
        raise InputError(
            f"expected at least 3 points on the segment, the ends and the middle, got {count}"
        )
    spaced = (number / (count - 1) for number in range(count))
    return sorted({*spaced, 0.5})


def _excess(t: float, score: Score, first: Score, last: Score) -> Score:
    """Return by how much a score exceeds the line between those of the ends.

    Each batch has an excess of its own, so that what is hard for all three networks adds nothing
    to the standard error.
    """

    def above(value: float, start: float, end: float) -> float:
        excess = value - ((1 - t) * start + t * end)
        # A loss that has overflowed is above every line.
        return math.inf if math.isnan(excess) else excess

    batches = zip(score.batch_losses, first.batch_losses, last.batch_losses, strict=True)
    loss = 0.0 if t in (0, 1) else above(score.loss, first.loss, last.loss)
    losses = tuple(above(*batch) for batch in batches)
    return Score(loss, None, None, score.examples, losses, score.batch_weights)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
