"""From networks to results: align one or many, certify, bring into one form."""

from gpu_align._align._align import align, align_networks
from gpu_align._align._canonical import CanonicalForm, canonical_form, canonicalize
from gpu_align._align._certificate import CostMatrix, GroupReport, Inside
from gpu_align._align._hugging_face import model_beside
from gpu_align._align._networks import Model
from gpu_align._align._result import (
    SCHEMA,
    AlignmentFailure,
    AlignmentResult,
    ResultRecord,
    read_result,
)
from gpu_align._align._settings import Settings, checked_seconds
from gpu_align._align._summary import change_in_words, function_in_words, status_in_words

__all__ = [
    "SCHEMA",
    "AlignmentFailure",
    "AlignmentResult",
    "CanonicalForm",
    "CostMatrix",
    "GroupReport",
    "Inside",
    "Model",
    "ResultRecord",
    "Settings",
    "align",
    "align_networks",
    "canonical_form",
    "canonicalize",
    "change_in_words",
    "checked_seconds",
    "function_in_words",
    "model_beside",
    "read_result",
    "status_in_words",
]
