"""What comes after alignment: the loss between networks, and one network out of several."""

from gpu_align._merge._average import average, slerp
from gpu_align._merge._barrier import barrier, loss_plane, measure_barrier
from gpu_align._merge._barrier_result import BarrierResult
from gpu_align._merge._curve import LossCurve
from gpu_align._merge._heads import HeadedMerge, SharedBody, merge_heads, shared_body
from gpu_align._merge._judge import STATISTICS, Judge
from gpu_align._merge._merge import merge
from gpu_align._merge._partial import PartialMerge, partial_merge
from gpu_align._merge._plane import LossPlane
from gpu_align._merge._repair import RepairResult, repair
from gpu_align._merge._result import GroupMatch, MergeResult, Trial
from gpu_align._merge._stages import StageStore
from gpu_align._merge._task import WAYS, Task
from gpu_align._merge._trio import Trio, aligned

__all__ = [
    "STATISTICS",
    "WAYS",
    "BarrierResult",
    "GroupMatch",
    "HeadedMerge",
    "Judge",
    "LossCurve",
    "LossPlane",
    "MergeResult",
    "PartialMerge",
    "RepairResult",
    "SharedBody",
    "StageStore",
    "Task",
    "Trial",
    "Trio",
    "aligned",
    "average",
    "barrier",
    "loss_plane",
    "measure_barrier",
    "merge",
    "merge_heads",
    "partial_merge",
    "repair",
    "shared_body",
    "slerp",
]
