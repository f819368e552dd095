"""What is known about a checkpoint once it is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

Format = Literal["safetensors", "torch"]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
FILE_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class ShardFile:
    """One file of a sharded checkpoint.

    Attributes:
        names: the tensors in the file, in file order.
        metadata: the file's `__metadata__`; None if the header has none.
    """

    names: tuple[str, ...]
    metadata: Mapping[str, str] | None


@dataclass(frozen=True)
class Shards:
    """How a safetensors checkpoint is divided into files.

    Attributes:
        index_name: file name of the index.
        index_bytes: the index as it stands on disk; names and sizes do not change, so it is
            written back as it is.
        index_metadata: the index's "metadata" entry.
        files: file name -> its part.
    """

    index_name: str
    index_bytes: bytes = field(repr=False)
    index_metadata: Mapping[str, Any]
    files: Mapping[str, ShardFile] = field(repr=False)


@dataclass(frozen=True)
class TorchContent:
    """Everything a torch file holds, with the place of the state dict in it.

    Attributes:
        root: the object that was saved.
        path: keys that lead from `root` to the state dict; empty for a plain state dict.
    """

    root: dict[Any, Any] = field(repr=False)
    path: tuple[str, ...]

    def levels(self) -> list[dict[Any, Any]]:
        """List the dicts from `root` down to the state dict, which comes last."""
        levels = [self.root]
        for key in self.path:
            levels.append(levels[-1][key])
        return levels

    def state(self) -> dict[str, Any]:
        """Return the state dict, with its entries that are not tensors."""
        return self.levels()[-1]

    def surroundings(self) -> dict[str, Any]:
        """Map dotted names to all that is kept besides the state dict's tensors."""
        kept: dict[str, Any] = {}
        prefix = ""
        for level, inner in zip(self.levels()[:-1], self.path, strict=True):
            kept |= {f"{prefix}{key}": value for key, value in level.items() if key != inner}
            prefix += f"{inner}."
        state = self.state().items()
        return kept | {f"{prefix}{k}": v for k, v in state if not isinstance(v, Tensor)}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Named tensors, and all that is needed to write them back as they came.

    Attributes:
        path: where it was read from.
        tensors: flat name -> CPU tensor (any shape and dtype, no gradient), in file order,
            read-only mapping. Tied names have the very same tensor object. They are in
            memory, and do not change with the file; do not change them in place.
        format: the kind of file.
        metadata: `__metadata__` of a safetensors file; None if it has none, and for sharded and
            torch checkpoints.
        shards: division into files; None for a single file.
        content: what surrounds the tensors in a torch file; None for safetensors.
        warnings: what will be copied as it is although it may not fit reordered units.
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)
    format: Format
    metadata: Mapping[str, str] | None = None
    shards: Shards | None = None
    content: TorchContent | None = None
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it was read from: none of them may be overwritten by something else."""
        if self.shards is None:
            return tuple(self.path.glob("*.safetensors")) if self.path.is_dir() else (self.path,)
        folder = self.path if self.path.is_dir() else self.path.parent
        return tuple(folder / name for name in (self.shards.index_name, *self.shards.files))
