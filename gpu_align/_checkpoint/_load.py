"""`load_checkpoint`: choose the reader by what is in the file."""

import os
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from gpu_align._checkpoint._archive import read_archive
from gpu_align._checkpoint._kind import kind_of, refuse_folder
from gpu_align._checkpoint._refusal import quoted, unreadable
from gpu_align._checkpoint._safetensors_file import read_safetensors
from gpu_align._checkpoint._shards import read_shards
from gpu_align._checkpoint._state import content_warnings, find_content, state_tensors
from gpu_align._checkpoint._torch_file import read_torch
from gpu_align._checkpoint._types import FILE_SUFFIXES, INDEX_SUFFIX, TORCH_SUFFIXES, Checkpoint
from gpu_align._checkpoint._unfit import check_weights
from gpu_align._errors import CheckpointError

_CONFIG = "config.json"

# What is weights too, or leads to them, in a folder of Hugging Face.
_WEIGHTS = (
    *(*FILE_SUFFIXES, *TORCH_SUFFIXES, INDEX_SUFFIX),
    *(".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".ot", ".npz", ".zip"),
)

# Files of a training run beside its weights.
_BESIDE = re.compile(r"optim|sched|scaler|rng_state|training_args|^\.", re.IGNORECASE)


def load_checkpoint(path: str | os.PathLike[str], *, key: str | None = None) -> Checkpoint:
    """Read a checkpoint, with all that is needed to write it back as it came.

    Tensors come to the CPU whatever device they were saved from. Code in a file is never executed:
    objects of classes that are not torch's own are kept as placeholders and written back as they
    came. What kind a file is of is told by its content, not by its name.

    Args:
        path: a safetensors file; a file written by torch.save with a state dict, plain or in a
            dict; the index (`*.index.json`) of a checkpoint in several files; a zip archive with
            one torch file (stable-baselines3); or a folder with one checkpoint.
        key: of the state dict in a torch file that has several, the keys that lead to it joined by
            dots: "ema", "models.generator". Default: the only one, the only one under
            "state_dict", "model_state_dict", "model", "net", "weights", "params", "network",
            "model_state", "model_weights" or "module", or the only one that is no average.

    Returns:
        The tensors in file order, and what surrounds them.

    Raises:
        CheckpointError: there is no such file, it cannot be read, is damaged or of another kind,
            has no state dict, several or none under `key`, or holds what stands for weights
            (quantised tensors, an adapter).
    """
    given = Path(path)
    try:
        file = _resolve(given)
        checkpoint = replace(
            _read(file, given, key), mode=file.stat().st_mode & 0o777, beside=_companions(given)
        )
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise unreadable(given, reason, "check that you may read it") from failure
    if not checkpoint.tensors:
        raise unreadable(given, "no tensors in it", "choose a checkpoint with weights")
    content = checkpoint.content
    others = () if content is None else [*content.surroundings(), *content.foreign]
    check_weights(given, checkpoint.tensors, others)
    return checkpoint


def _resolve(path: Path) -> Path:
    """Return the file to read: `path` itself, or the one meant by a folder."""
    if not os.path.exists(path):
        raise unreadable(path, "no such file or folder", "check the path")
    if not path.is_dir():
        return path
    names = sorted(entry.name for entry in path.iterdir())
    weights = [name for name in names if not _BESIDE.search(name) and (path / name).is_file()]
    for candidates in (
        [name for name in weights if name.endswith(f".safetensors{INDEX_SUFFIX}")],
        [name for name in weights if name.endswith(".safetensors")],
        [name for name in weights if name.endswith(INDEX_SUFFIX)],
        [name for name in weights if _is_checkpoint(path / name)],
    ):
        if len(candidates) == 1:
            return path / candidates[0]
        if candidates:
            break
    else:
        refuse_folder(path, names)
    raise unreadable(
        path,
        f"expected a folder with one checkpoint, got {quoted(candidates) or 'none'}",
        "name the file",
    )


def _companions(path: Path) -> tuple[Path, ...]:
    """Return what lies beside the weights in a folder with a configuration and goes with them."""
    if not (path / _CONFIG).is_file():
        return ()
    return tuple(
        path / name
        for name in sorted(entry.name for entry in path.iterdir() if entry.is_file())
        if not _BESIDE.search(name) and not name.lower().endswith(_WEIGHTS)
    )


def _is_checkpoint(file: Path) -> bool:
    try:
        return kind_of(file) != "index"
    except (CheckpointError, OSError):
        return False


def _read(file: Path, given: Path, key: str | None) -> Checkpoint:
    kind = kind_of(file)
    if key is not None and kind in ("safetensors", "index"):
        raise unreadable(
            given, f'it has one state dict, none under the key "{key}"', "leave it out"
        )
    if kind == "index":
        tensors, shards = read_shards(file)
        own = any(part.content is None for part in shards.files.values())
        files = tuple(file.parent / name for name in (file.name, *shards.files))
        view = MappingProxyType(tensors)
        return Checkpoint(
            given, view, "safetensors" if own else "torch", shards=shards, files=files
        )
    if kind == "safetensors":
        tensors, metadata = read_safetensors(file)
        view = MappingProxyType(tensors)
        return Checkpoint(given, view, "safetensors", metadata=metadata, files=(file,))
    archive = None
    if kind == "archive":
        root, archive = read_archive(file)
    else:
        root = read_torch(file)
    content = find_content(file, root, key)
    tensors = state_tensors(file, content)
    return Checkpoint(
        given,
        MappingProxyType(tensors),
        "torch",
        content=content,
        warnings=content_warnings(content, tensors),
        archive=archive,
        files=(file,),
    )
