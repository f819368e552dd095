"""Zoos at scale: collections of any size aligned shard by shard, on one machine or a cluster."""

from gpu_align._zoo._aligner import CheckpointAligner
from gpu_align._zoo._dataset import AlignedNetworks
from gpu_align._zoo._inspect import ZooContents, inspect_zoo
from gpu_align._zoo._job import Job, ZooProgress
from gpu_align._zoo._pieces import PLAN
from gpu_align._zoo._result import ZooAlignment
from gpu_align._zoo._settings import Frame, MakeModel, ZooSettings
from gpu_align._zoo._zoo import ENGINES, align_zoo, called, called_targets, make_engine

__all__ = [
    "ENGINES",
    "PLAN",
    "AlignedNetworks",
    "CheckpointAligner",
    "Frame",
    "Job",
    "MakeModel",
    "ZooAlignment",
    "ZooContents",
    "ZooProgress",
    "ZooSettings",
    "align_zoo",
    "called",
    "called_targets",
    "inspect_zoo",
    "make_engine",
]
