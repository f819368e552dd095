"""`save_checkpoint`: check that nothing gets lost, then write at one stroke."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from gpu_align._checkpoint._archive import write_archive
from gpu_align._checkpoint._atomic import atomic_folder, atomic_write
from gpu_align._checkpoint._memory import has_plain_values
from gpu_align._checkpoint._refusal import quoted
from gpu_align._checkpoint._safetensors_file import write_safetensors
from gpu_align._checkpoint._shards import copy_beside, merged_metadata, write_shards
from gpu_align._checkpoint._torch_file import write_torch
from gpu_align._checkpoint._types import FILE_SUFFIXES, INDEX_SUFFIX, TORCH_SUFFIXES, Checkpoint
from gpu_align._errors import CheckpointError, bullet_list

# What PyTorch's own tools put into new files; some loaders refuse files without it.
_NEW_METADATA = {"format": "pt"}

# Endings that promise something else than a checkpoint of PyTorch.
_OTHER_FILES = {
    *(".json", ".html", ".htm", ".txt", ".csv", ".py", ".search", ".log", ".md", ".yaml"),
    *(".zip", ".tar", ".gz", ".7z", ".npz", ".npy", ".msgpack", ".pickle", ".pkl", ".joblib"),
    *(".onnx", ".pb", ".tflite", ".h5", ".hdf5", ".keras", ".gguf", ".ggml", ".pt2"),
}

Output = Literal["safetensors", "torch", "archive", "shards", "folder"]


def save_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, like: Checkpoint | None = None
) -> None:
    """Write tensors to a file, or to a folder of shards.

    The output appears whole or not at all. The order, metadata, shards, wrapper, names and
    permission bits of `like` are kept. In torch files, tensors that share memory are written as
    tied; in safetensors files, which cannot share, as separate entries. Tensors are written
    contiguous. From torch to safetensors, the module versions (`_metadata`), ties and gradient
    flags have no place.

    Args:
        path: the extension chooses the format: `.safetensors`, or `.pt`, `.pth`, `.bin`, `.ckpt`;
            any other keeps that of `like`. If `like` is sharded, any other name, or
            `*.index.json`, is a new or empty folder that gets the same shards and index. So it is
            if `like` was read from a folder with a `config.json`; the folder then gets a copy of
            what lies beside the weights too.
        tensors: name -> strided tensor of any shape, dtype and device.
        like: the checkpoint that the tensors came from; None for a new one.

    Raises:
        CheckpointError: names, shapes or dtypes differ from `like`, the format has no place for
            something in `like`, or `path` cannot be written.
    """
    out = Path(path)
    _check_tensors(tensors)
    ordered = _on_cpu(dict(tensors) if like is None else _in_order_of(like, tensors))
    content = None if like is None else like.content
    mode = None if like is None else like.mode
    chosen = output_format(out, like)
    if chosen == "shards":
        assert like is not None
        assert like.shards is not None
        write_shards(out, ordered, like.shards, mode, like.beside)
        return
    if chosen == "folder":
        assert like is not None
        with atomic_folder(out, CheckpointError) as folder:
            copy_beside(like.beside, folder)
            save_checkpoint(folder / like.files[0].name, tensors, like=replace(like, beside=()))
        return
    if like is not None:
        check_conversion(out, like)
    with atomic_write(out, CheckpointError, mode=mode) as temporary:
        if chosen == "safetensors":
            write_safetensors(temporary, ordered, _safetensors_metadata(out, like))
        elif chosen == "torch":
            with open(temporary, "wb") as file:
                write_torch(file, ordered, content)
        else:
            assert like is not None
            assert like.archive is not None
            assert content is not None
            write_archive(temporary, ordered, content, like.archive)


def output_format(out: Path, like: Checkpoint | None) -> Output:
    """Tell what `save_checkpoint` makes of a path.

    Args:
        out: the output.
        like: what it is written like; None for a new checkpoint.

    Raises:
        CheckpointError: it cannot be told, or the name is that of another kind of file.
    """
    name = out.name.lower()
    if name.endswith(".safetensors"):
        return "safetensors"
    if name.endswith(TORCH_SUFFIXES):
        return "torch"
    if like is not None and like.shards is not None:
        if name.endswith(INDEX_SUFFIX) or out.suffix.lower() not in _OTHER_FILES:
            return "shards"
    elif like is not None and like.beside:
        if out.suffix.lower() not in _OTHER_FILES:
            return "folder"
    elif like is not None and like.archive is not None:
        if out.suffix.lower() not in _OTHER_FILES - {".zip"} and not out.is_dir():
            return "archive"
    elif like is not None and out.suffix.lower() not in _OTHER_FILES and not out.is_dir():
        return like.format
    raise _unknown_output(out)


def check_conversion(out: Path, like: Checkpoint) -> None:
    """Check that the format of `out` has a place for everything that `like` holds.

    Raises:
        CheckpointError: names what would be lost, or the format cannot be told.
    """
    chosen = output_format(out, like)
    if chosen == "torch":
        _check_no_metadata_lost(out, like)
    if chosen == "safetensors":
        _safetensors_metadata(out, like)
    if chosen in ("safetensors", "torch") and like.archive is not None:
        lost = [info.filename for info, _ in like.archive.members]
        lost.remove(like.archive.name)
        if lost:
            raise CheckpointError(
                f"cannot write {out}: one file has no place for {quoted(lost)} of {like.path}; "
                "choose a .zip output"
            )


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise CheckpointError("no tensors to write; a checkpoint needs at least one")
    strange = [f'"{name}"' for name, tensor in tensors.items() if not has_plain_values(tensor)]
    if strange:
        raise CheckpointError(
            "only dense tensors with values can be written; call `to_dense()` or `dequantize()` "
            f"on:\n{bullet_list(strange)}"
        )


def _in_order_of(like: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    problems = [f'"{name}" is missing' for name in like.tensors if name not in tensors]
    problems += [f'"{name}" is not in the input' for name in tensors if name not in like.tensors]
    for name, before in like.tensors.items():
        if name in tensors and _layout(tensors[name]) != _layout(before):
            problems.append(f'"{name}": expected {_layout(before)}, got {_layout(tensors[name])}')
    if problems:
        raise CheckpointError(
            f"the tensors to write differ from {like.path}; pass all of its tensors with their "
            f"shapes and dtypes:\n{bullet_list(problems)}"
        )
    return {like.file_names.get(name, name): tensors[name] for name in like.tensors} | like.aside


def _layout(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Moved once per object, so that ties survive the move.
    moved = {id(tensor): tensor.detach().cpu() for tensor in tensors.values()}
    return {name: moved[id(tensor)] for name, tensor in tensors.items()}


def _safetensors_metadata(out: Path, like: Checkpoint | None) -> Mapping[str, str] | None:
    if like is None:
        return _NEW_METADATA
    if like.shards is not None:
        metadata = merged_metadata(like.shards)
        return _NEW_METADATA if like.format == "torch" else metadata
    if like.content is None:
        return like.metadata
    lost = list(like.content.surroundings())
    if lost:
        raise CheckpointError(
            f"cannot write {out}: a safetensors file has no place for {quoted(lost)} of "
            f"{like.path}; choose a .pt output"
        )
    return _NEW_METADATA


def _check_no_metadata_lost(out: Path, like: Checkpoint | None) -> None:
    if like is None or like.content is not None:
        return
    metadata = merged_metadata(like.shards) if like.shards is not None else like.metadata
    lost = [key for key, value in (metadata or {}).items() if (key, value) != ("format", "pt")]
    if lost:
        raise CheckpointError(
            f"cannot write {out}: a torch file has no place for the metadata {quoted(lost)} of "
            f"{like.path}; choose a .safetensors output"
        )


def _unknown_output(out: Path) -> CheckpointError:
    choices = ", ".join(FILE_SUFFIXES)
    if out.name.endswith(INDEX_SUFFIX):
        return CheckpointError(
            f"cannot write {out}: the input is not sharded; choose one of {choices}"
        )
    if out.is_dir():
        return CheckpointError(
            f"cannot write {out}: it is a folder; give the name of a file in it, ending in one of "
            f"{choices}"
        )
    got = f'unknown extension "{out.suffix}"' if out.suffix else "no extension"
    return CheckpointError(f"cannot write {out}: {got}; choose one of {choices}")
