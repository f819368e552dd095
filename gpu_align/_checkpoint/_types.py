"""What is known about a checkpoint once it is read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from zipfile import ZipInfo

from torch import Tensor

from gpu_align._checkpoint._names import rename

Format = Literal["safetensors", "torch"]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".th", ".pth.tar", ".pt.tar")
FILE_SUFFIXES = (".safetensors", *TORCH_SUFFIXES[:4])
INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class ShardFile:
    """One file of a sharded checkpoint.

    Attributes:
        names: the tensors in the file, in file order.
        metadata: the file's `__metadata__`; None if the header has none.
        content: what a torch file holds; None for a safetensors file.
    """

    names: tuple[str, ...]
    metadata: Mapping[str, str] | None
    content: "TorchContent | None" = None


@dataclass(frozen=True)
class Shards:
    """How a checkpoint is divided into files.

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
        foreign: the classes and functions in it that are not loaded.
    """

    root: Any = field(repr=False)
    path: tuple[Any, ...]
    foreign: tuple[str, ...] = ()

    def levels(self) -> list[Any]:
        """List the dicts (or lists) from `root` down to the state dict, which comes last."""
        levels = [self.root]
        for key in self.path:
            levels.append(levels[-1][key])
        return levels

    def state(self) -> dict[str, Any]:
        """Return the state dict, with its entries that are not tensors."""
        state: dict[str, Any] = self.levels()[-1]
        return state

    def surroundings(self) -> dict[str, Any]:
        """Map dotted names to all that is kept besides the state dict's tensors."""
        kept: dict[str, Any] = {}
        prefix = ""
        for level, inner in zip(self.levels()[:-1], self.path, strict=True):
            kept |= {f"{prefix}{key}": value for key, value in entries(level) if key != inner}
            prefix += f"{inner}."
        state = self.state().items()
        return kept | {f"{prefix}{k}": v for k, v in state if not isinstance(v, Tensor)}


def entries(node: object) -> list[tuple[Any, Any]]:
    """Return the keys and values of a dict, or the places and items of a list."""
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


@dataclass(frozen=True)
class Archive:
    """A zip archive with the checkpoint in it.

    Attributes:
        members: everything in the archive, in its order.
        name: of the member that is the checkpoint.
    """

    members: tuple[tuple[ZipInfo, bytes], ...] = field(repr=False)
    name: str


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
        content: what surrounds the tensors in a torch file; None for safetensors and shards.
        warnings: what will be copied as it is although it may not fit reordered units.
        archive: the zip archive around a torch file; None for a file of its own.
        files: what it was read from: none of them may be overwritten by something else.
        mode: the permission bits of the file, which files written like it get.
        file_names: the name of a tensor -> its name in the file, where these differ.
        beside: files of the folder that it was read from which belong to it, such as the
            configuration and the tokenizer; a folder that is written like it gets them too.
        aside: tensors in the file that are no weights, and are written back as they are.
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)
    format: Format
    metadata: Mapping[str, str] | None = None
    shards: Shards | None = None
    content: TorchContent | None = None
    warnings: tuple[str, ...] = ()
    archive: Archive | None = None
    files: tuple[Path, ...] = ()
    mode: int | None = None
    beside: tuple[Path, ...] = ()
    file_names: Mapping[str, str] = field(default_factory=dict, repr=False)
    aside: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def named_like(self, names: Collection[str]) -> "Checkpoint":
        """Return the checkpoint with the tensors called as in another network.

        It is written back under the names in its file. Without a match (see `match_names`) all
        names stay.

        Args:
            names: of the other network's tensors.
        """
        renamed = rename(self.tensors, names)
        return replace(
            self,
            tensors=MappingProxyType(dict(renamed.state)),
            file_names={n: self.file_names.get(own, own) for n, own in renamed.own.items()},
            aside=self.aside | renamed.aside,
        )
