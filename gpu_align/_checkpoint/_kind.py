"""Telling what kind of file a path is by its first bytes, whatever its name."""

import struct
import zipfile
from pathlib import Path
from typing import Literal

from gpu_align._checkpoint._refusal import open_regular, unreadable
from gpu_align._errors import CheckpointError

Kind = Literal["safetensors", "torch", "archive", "index"]

INDEX_SUFFIX = ".index.json"

_SAVE = "where the model was made, save `model.state_dict()` with torch.save"
_COPY = "copy its weights into the model in PyTorch, and save `model.state_dict()`"
_ARRAYS = "turn its arrays into a dict of tensors (`torch.from_numpy`), and torch.save that"
_UNPACK = "unpack it, and name the checkpoint inside"
_EARLIER = "name the checkpoint that it was made from"
_AGAIN = "download it again"

# First bytes -> what such a file is, and what to do.
_FOREIGN = {
    b"version https://git-lfs": ("a Git LFS pointer", "run `git lfs pull` first"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file (Keras, TensorFlow)", _COPY),
    b"GGUF": ("a GGUF file (llama.cpp)", _EARLIER),
    b"tjgg": ("a GGML file (llama.cpp)", _EARLIER),
    b"lmgg": ("a GGML file (llama.cpp)", _EARLIER),
    b"ftrt": ("a TensorRT engine", _EARLIER),
    b"ptrt": ("a TensorRT engine", _EARLIER),
    b"\x93NUMPY": ("a NumPy array", _ARRAYS),
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\xfd7zXZ": ("an xz archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"model_checkpoint_path:": ("the list of a TensorFlow checkpoint", _COPY),
    b"<!DOCTYPE": ("a web page", _AGAIN),
    b"<!doctype": ("a web page", _AGAIN),
    b"<html": ("a web page", _AGAIN),
    b"<?xml": ("an XML file", _AGAIN),
}

# Part of a member's name -> what an archive with it is, and what to do.
_ARCHIVES = {
    "/constants.pkl": ("a TorchScript archive", "save `torch.jit.load(FILE).state_dict()`"),
    "/bytecode.pkl": ("a TorchScript archive for phones", _SAVE),
    "/code/": ("a TorchScript archive", "save `torch.jit.load(FILE).state_dict()`"),
    "/archive_format": (
        "an exported program",
        "save `torch.export.load(FILE).state_dict`, or name it as --model FILE.pt2",
    ),
    "/serialized_exported_program.json": (
        "an exported program",
        "save `torch.export.load(FILE).state_dict`, or name it as --model FILE.pt2",
    ),
    "/model.weights.h5": ("a Keras model", _COPY),
    "/MAR-INF/": ("a TorchServe archive", _UNPACK),
    "/word/": ("a document", "name a checkpoint"),
    ".npy": ("a NumPy archive (.npz, of JAX and MLX too)", _ARRAYS),
}

# End of a file's name -> what a folder with it is, and what to do.
_FOLDERS = {
    ".distcp": (
        "a checkpoint of torch.distributed",
        "join it with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch`",
    ),
    "zero_to_fp32.py": (
        "a DeepSpeed checkpoint",
        "join its parts with `python zero_to_fp32.py . FILE.pt` in it",
    ),
    "saved_model.pb": ("a TensorFlow model", _COPY),
    ".data-00000-of-00001": ("a TensorFlow checkpoint", _COPY),
    "tf_model.h5": ("a TensorFlow model", _COPY),
    "flax_model.msgpack": ("a Flax model", _COPY),
    "_CHECKPOINT_METADATA": ("an Orbax checkpoint (JAX)", _ARRAYS),
}


def kind_of(path: Path) -> Kind:
    """Tell what kind of checkpoint a file is.

    Args:
        path: an existing file.

    Returns:
        "archive" is a zip that may have torch files in it.

    Raises:
        CheckpointError: it is none; says what it is instead.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        start = file.read(512)
    if not start:
        raise unreadable(path, "expected a checkpoint, the file is empty", "copy it again")
    if path.name.endswith(INDEX_SUFFIX):
        return "index"
    if start.lstrip()[:1] in (b"{", b"[") and b"\0" not in start:
        if b'"weight_map"' in start:
            return "index"
        raise _refused(path, "JSON text", "name the weights, or the index of a sharded checkpoint")
    # The length of the header comes first, so that any first byte is possible.
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 40:
        return "safetensors"
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    _refuse_foreign(path, start)
    if start.startswith(b"\x80"):
        return "torch"
    if path.suffix.lower() == ".safetensors":
        return "safetensors"  # whose reader says what is wrong with it
    raise _refused(path, "something else", _SAVE)


def refuse_folder(path: Path, names: list[str]) -> None:
    """Name the other kinds of checkpoint that are folders.

    Args:
        path: the folder.
        names: of the files in it.

    Raises:
        CheckpointError: it is one of them.
    """
    for ending, (kind, remedy) in _FOLDERS.items():
        if any(name.endswith(ending) for name in names):
            raise _refused(path, kind, remedy)


def _kind_of_zip(path: Path) -> Kind:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "torch"  # whose reader says how it is damaged
    for part, (kind, remedy) in _ARCHIVES.items():
        if any(part in f"/{name}" for name in names):
            raise _refused(path, kind, remedy)
    is_torch = not names or any(name.rpartition("/")[2] == "data.pkl" for name in names)
    return "torch" if is_torch else "archive"


def _refuse_foreign(path: Path, start: bytes) -> None:
    for magic, (kind, remedy) in _FOREIGN.items():
        if start.startswith(magic):
            raise _refused(path, kind, remedy)
    if start[257:262] == b"ustar":
        raise _refused(path, "a tar archive", _UNPACK)
    if start[4:8] == b"TFL3":
        raise _refused(path, "a TensorFlow Lite model", _EARLIER)
    if _is_onnx(start):
        raise _refused(path, "an ONNX model", _SAVE)
    if path.suffix.lower() == ".pb":
        raise _refused(path, "a TensorFlow graph", _COPY)
    if _is_msgpack(start):
        raise _refused(path, "a msgpack file (Flax)", _COPY)


def _is_onnx(start: bytes) -> bool:
    """Tell a protobuf message with a small IR version and then a field of ONNX's `ModelProto`."""
    fields = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    return len(start) > 2 and start[0] == 0x08 and 0 < start[1] < 64 and start[2] in fields


def _is_msgpack(start: bytes) -> bool:
    """Tell a map whose first key is a string."""
    if not (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return False
    key = start[{0xDE: 3, 0xDF: 5}.get(start[0], 1) :][:1]
    return key != b"" and (0xA0 <= key[0] <= 0xBF or key[0] in (0xD9, 0xDA))


def _refused(path: Path, kind: str, remedy: str) -> CheckpointError:
    return unreadable(
        path, f"expected a safetensors file or one written by torch.save, got {kind}", remedy
    )
