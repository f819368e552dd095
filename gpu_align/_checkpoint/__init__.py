"""Reading and writing PyTorch checkpoints so that only the tensors' values may differ."""

from gpu_align._checkpoint._atomic import atomic_write
from gpu_align._checkpoint._inert import Foreign
from gpu_align._checkpoint._inert import load as load_inert
from gpu_align._checkpoint._load import load_checkpoint
from gpu_align._checkpoint._names import Renamed, is_count, match_names, rename
from gpu_align._checkpoint._safetensors_file import read_safetensors
from gpu_align._checkpoint._save import check_conversion, output_format, save_checkpoint
from gpu_align._checkpoint._types import FILE_SUFFIXES, INDEX_SUFFIX, Checkpoint

__all__ = [
    "FILE_SUFFIXES",
    "INDEX_SUFFIX",
    "Checkpoint",
    "Foreign",
    "Renamed",
    "atomic_write",
    "check_conversion",
    "is_count",
    "load_checkpoint",
    "load_inert",
    "match_names",
    "output_format",
    "read_safetensors",
    "rename",
    "save_checkpoint",
]
