"""From networks to results: align one or many, certify, bring into one form."""

from gpu_align._align._align import align, function_check
from gpu_align._align._canonical import canonical_multipliers, canonicalize
from gpu_align._align._certificate import CostMatrix, GroupReport, Inside
from gpu_align._align._many import align_state_dicts
from gpu_align._align._result import (
    PRESERVED,
    SCHEMA,
    AlignmentFailure,
    AlignmentResult,
    read_result,
)

__all__ = [
    "PRESERVED",
    "SCHEMA",
    "AlignmentFailure",
    "AlignmentResult",
    "CostMatrix",
    "GroupReport",
    "Inside",
    "align",
    "align_state_dicts",
    "canonical_multipliers",
    "canonicalize",
    "function_check",
    "read_result",
]
