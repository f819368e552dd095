"""From networks to results: align one or many, certify, bring into one form."""

from gpu_align._align._align import align, align_networks
from gpu_align._align._barycentre import Barycentre, barycentre, common_frame, cycle_error
from gpu_align._align._canonical import CanonicalForm, canonical_form, canonicalize
from gpu_align._align._certificate import CostMatrix, GroupReport, Inside
from gpu_align._align._common_evidence import CommonEvidence, pairs_bytes
from gpu_align._align._evidence import (
    ALPHAS,
    KINDS,
    Correlations,
    Correlator,
    Evidence,
    activation_evidence,
)
from gpu_align._align._hugging_face import model_beside
from gpu_align._align._networks import Model, Network, state_of
from gpu_align._align._result import (
    SCHEMA,
    AlignmentFailure,
    AlignmentResult,
    AlphaTrial,
    ResultRecord,
    read_result,
)
from gpu_align._align._settings import Settings, checked_seconds, checked_spec
from gpu_align._align._stacked import AlignedStack, align_stack, move_stack
from gpu_align._align._summary import (
    change_in_words,
    evidence_in_words,
    function_in_words,
    phases_in_words,
    status_in_words,
)

__all__ = [
    "ALPHAS",
    "KINDS",
    "SCHEMA",
    "AlignedStack",
    "AlignmentFailure",
    "AlignmentResult",
    "AlphaTrial",
    "Barycentre",
    "CanonicalForm",
    "CommonEvidence",
    "Correlations",
    "Correlator",
    "CostMatrix",
    "Evidence",
    "GroupReport",
    "Inside",
    "Model",
    "Network",
    "ResultRecord",
    "Settings",
    "activation_evidence",
    "align",
    "align_networks",
    "align_stack",
    "barycentre",
    "canonical_form",
    "canonicalize",
    "change_in_words",
    "checked_seconds",
    "checked_spec",
    "common_frame",
    "cycle_error",
    "evidence_in_words",
    "function_in_words",
    "model_beside",
    "move_stack",
    "pairs_bytes",
    "phases_in_words",
    "read_result",
    "state_of",
    "status_in_words",
]
