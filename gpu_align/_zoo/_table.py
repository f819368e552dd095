"""The index of a zoo: one row per model, as Parquet."""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_align._errors import UnavailableError

COLUMNS = {
    "name": "string",
    "family": "string",
    "status": "string",
    "reason": "string",
    "run": "string",
    "distance_before": "double",
    "distance": "double",
    "lower_bound": "double",
    "relative_gap": "double",
    "optimal_groups": "bool",
    "function_difference": "double",
    "units_moved": "int64",
    "search_status": "string",
    "shard": "int64",
    "row": "int64",
    "facts": "string",
}
"""Column -> type of Arrow; what is not known of a model is null.

status: "aligned", or the kind of failure. shard, row: the folder with its permutation, and which
one there. facts: what is known of it besides its weights, as JSON.
"""


def arrow() -> Any:
    """Return the library for Parquet.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise UnavailableError(
            "the index of a zoo is a Parquet file, which needs pyarrow; run "
            "`pip install gpu-align[zoo]`"
        ) from error


def _parquet() -> Any:
    arrow()
    return importlib.import_module("pyarrow.parquet")


def schema() -> Any:
    """Return the columns of an index with their types."""
    library = arrow()
    kinds = {"string": library.string, "double": library.float64, "bool": library.bool_}
    kinds["int64"] = library.int64
    return library.schema([(name, kinds[kind]()) for name, kind in COLUMNS.items()])


def write_rows(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write rows to a Parquet file; columns that are left out, and NaN, are null."""
    _parquet().write_table(_rows(columns), path, compression="zstd", store_schema=False)


def _rows(columns: Mapping[str, Sequence[Any]]) -> Any:
    library = arrow()
    count = len(columns["name"])
    arrays = []
    for field in schema():
        values = columns.get(field.name, [None] * count)
        arrays.append(library.array(values, type=field.type, from_pandas=True))
    return library.table(arrays, schema=schema())


def join_rows(path: Path, parts: Iterable[Path | Mapping[str, Sequence[Any]]]) -> None:
    """Join the rows of Parquet files, and further ones, to one file; one part is held at a time.

    Args:
        path: the file to write.
        parts: files written by `write_rows`, or columns as it takes them.
    """
    parquet = _parquet()
    with parquet.ParquetWriter(path, schema(), compression="zstd", store_schema=False) as writer:
        for part in parts:
            if isinstance(part, Path):
                writer.write_table(parquet.read_table(part, schema=schema()))
            else:
                writer.write_table(_rows(part))


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Return some columns of an index, name -> values, None where they are null."""
    table = _parquet().read_table(path, columns=list(columns))
    found: dict[str, list[Any]] = table.to_pydict()
    return found


def each_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Yield some columns of an index, a group of rows at a time: as many as a shard has."""
    file = _parquet().ParquetFile(path)
    for number in range(file.num_row_groups):
        yield file.read_row_group(number, columns=list(columns)).to_pydict()


def read_table(path: Path) -> Any:
    """Return an index as a table of pyarrow."""
    return _parquet().read_table(path)
