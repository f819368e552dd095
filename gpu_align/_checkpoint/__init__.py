"""Reading and writing PyTorch checkpoints so that only the tensors' values may differ."""

from gpu_align._checkpoint._atomic import atomic_folder, atomic_write, make_folder
from gpu_align._checkpoint._inert import Foreign
from gpu_align._checkpoint._inert import load as load_inert
from gpu_align._checkpoint._kind import kind_of
from gpu_align._checkpoint._load import load_checkpoint
from gpu_align._checkpoint._names import Renamed, bare_name, is_count, match_names, rename
from gpu_align._checkpoint._safetensors_file import read_safetensors, write_safetensors
from gpu_align._checkpoint._save import check_conversion, output_format, save_checkpoint
from gpu_align._checkpoint._stack_file import (
    TensorLayout,
    read_header,
    read_rows,
    write_in_parts,
)
from gpu_align._checkpoint._types import FILE_SUFFIXES, INDEX_SUFFIX, Checkpoint

__all__ = [
    "FILE_SUFFIXES",
    "INDEX_SUFFIX",
    "Checkpoint",
    "Foreign",
    "Renamed",
    "TensorLayout",
    "atomic_folder",
    "atomic_write",
    "bare_name",
    "check_conversion",
    "is_count",
    "kind_of",
    "load_checkpoint",
    "load_inert",
    "make_folder",
    "match_names",
    "output_format",
    "read_header",
    "read_rows",
    "read_safetensors",
    "rename",
    "save_checkpoint",
    "write_in_parts",
    "write_safetensors",
]
