"""What came of aligning a zoo."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_align._errors import CheckpointError
from gpu_align._zoo._table import COLUMNS, read_columns, read_table

INDEX, SUMMARY = "index.parquet", "summary.json"
SCHEMA = "gpu-align/zoo/1"


@dataclass(frozen=True, repr=False)
class ZooAlignment:
    """A zoo that was aligned.

    Attributes:
        path: the folder of the output.
        data: what is known of it as a whole, as plain values: `families` with their counts, mean
            distances, spreads and histograms, `failed` (kind -> how many) with `examples`,
            `seconds`, `models_per_second`, `engine`, `workers` and the `settings`.
    """

    path: Path
    data: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ZooAlignment":
        """Read what `align_zoo` has written.

        Raises:
            CheckpointError: the folder holds no aligned zoo.
        """
        folder = Path(path)
        try:
            data = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.get("schema") != SCHEMA:
                raise ValueError(f"{SUMMARY} is of something else")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} holds no aligned zoo: {error}; expected the output of align_zoo"
            ) from error
        return cls(folder, data)

    def __len__(self) -> int:
        """Return the number of models, those that failed included."""
        return self.aligned + sum(self.failed.values())

    def __repr__(self) -> str:
        return f"ZooAlignment({str(self.path)!r}, aligned={self.aligned}, failed={self.failed})"

    @property
    def aligned(self) -> int:
        """How many models were aligned."""
        return int(self.data["aligned"])

    @property
    def failed(self) -> dict[str, int]:
        """Kind of failure -> how many models."""
        return dict(self.data["failed"])

    @property
    def index(self) -> Path:
        """The Parquet file with one row per model."""
        return self.path / INDEX

    def rows(self, *columns: str) -> dict[str, list[Any]]:
        """Return columns of the index, all by default: name -> values, None where not known."""
        return read_columns(self.index, columns or tuple(COLUMNS))

    def table(self) -> Any:
        """Return the index as a table of pyarrow."""
        return read_table(self.index)

    def write_report(self, path: str | os.PathLike[str]) -> None:
        """Write one HTML page with figures.

        Raises:
            InputError: the file cannot be written.
        """
        import gpu_align  # the page is made in a room that does not know this one

        gpu_align.write_zoo_report(self.data, path)
