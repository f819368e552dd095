"""Merging: one network out of several, and what its averaged layers have lost set right."""

from gpu_align._merge._average import average, slerp
from gpu_align._merge._heads import HeadedMerge, SharedBody, merge_heads, shared_body
from gpu_align._merge._partial import PartialMerge, partial_merge

__all__ = [
    "HeadedMerge",
    "PartialMerge",
    "SharedBody",
    "average",
    "merge_heads",
    "partial_merge",
    "shared_body",
    "slerp",
]
