"""Reading and writing PyTorch checkpoints so that only the tensors' values may differ."""

from gpu_align._checkpoint._load import load_checkpoint
from gpu_align._checkpoint._save import check_conversion, save_checkpoint
from gpu_align._checkpoint._types import Checkpoint

__all__ = ["Checkpoint", "check_conversion", "load_checkpoint", "save_checkpoint"]
