"""Merging: one network out of several, and what its averaged layers have lost set right."""

from gpu_align._merge._average import average, slerp
from gpu_align._merge._merge import WAYS, Task, merge
from gpu_align._merge._repair import RepairResult, repair
from gpu_align._merge._result import MergeResult, Trial

__all__ = [
    "WAYS",
    "MergeResult",
    "RepairResult",
    "Task",
    "Trial",
    "average",
    "merge",
    "repair",
    "slerp",
]
