"""What an experiment has come to: rows of a table, checks, and the numbers that figures show."""

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gpu_align._checkpoint import atomic_write

SCHEMA = "gpu-align/learn/1"


@dataclass(frozen=True)
class Run:
    """A training of a model, from one seed.

    Attributes:
        seed: of the model and its training.
        values: measure -> its value on test networks.
        held: what the epoch was chosen by, on networks that are held back.
        epochs, epoch: trained, and the one chosen.
        seconds: of the processor.
    """

    seed: int
    values: Mapping[str, float]
    held: float | None = None
    epochs: int = 0
    epoch: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A model and the form of the weights that it gets.

    Attributes:
        model: its name.
        form: what of a network it gets.
        runs: one for each seed; one without a training where nothing is trained.
        parameters: of the model.
        setting: the one that was chosen by the networks held back, of `settings` that were tried.
        settings: how many were.
        listed_apart: whether it may do what the others may not, such as running the networks.
    """

    model: str
    form: str
    runs: tuple[Run, ...]
    parameters: int = 0
    setting: str = ""
    settings: int = 1
    listed_apart: bool = False

    def mean(self, measure: str) -> float:
        """Return the mean over the seeds."""
        return statistics.mean(run.values[measure] for run in self.runs)

    def spread(self, measure: str) -> float | None:
        """Return the standard deviation over the seeds; None for one."""
        values = [run.values[measure] for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def seconds(self) -> float:
        """Seconds of the processor of a training, the mean over the seeds."""
        return statistics.mean(run.seconds for run in self.runs)


@dataclass(frozen=True)
class Panel:
    """Points of a scatter plot.

    Attributes:
        title: above it.
        x, y: the points.
        labels: of the two axes.
        color: a value for each point; None for one colour.
        color_label: what that is.
        diagonal: whether a good point lies on the diagonal.
    """

    title: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, str] = ("", "")
    color: tuple[float, ...] | None = None
    color_label: str = ""
    diagonal: bool = False


def rounded(values: Tensor) -> tuple[float, ...]:
    """Return values as a figure needs them."""
    return tuple(round(value, 4) for value in values.tolist())


@dataclass(frozen=True)
class Plot:
    """A figure with scatter plots side by side.

    Attributes:
        title, caption: above and below it.
        panels: in rows of two or three.
    """

    title: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Study:
    """An experiment.

    Attributes:
        task: its name.
        measures: what the rows are measured by, the first one first: name -> "%" for shares, "" for
            other numbers.
        rows: of the table.
        checks: of the data, name -> value.
        settings: how it was made.
        notes: sentences on what the numbers mean.
        plots: figures beside that of the rows.
    """

    task: str
    measures: Mapping[str, str]
    rows: tuple[Row, ...]
    checks: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document that `save_json` writes."""
        rows = [
            {
                **asdict(row),
                "mean": {name: row.mean(name) for name in self.measures},
                "spread": {name: row.spread(name) for name in self.measures},
                "seconds": row.seconds,
            }
            for row in self.rows
        ]
        return {"schema": SCHEMA, **asdict(self), "rows": rows}

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file.

        Raises:
            InputError: the file cannot be written.
        """
        with atomic_write(path) as temporary:
            Path(temporary).write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")
