"""Reading and writing PyTorch checkpoints so that only the tensors' values may differ."""

from gpu_align._checkpoint._load import load_checkpoint
from gpu_align._checkpoint._save import save_checkpoint
from gpu_align._checkpoint._types import Checkpoint

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]
