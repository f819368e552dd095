"""The alignment problem: terms, objective, similarity, metrics and bound."""

from gpu_align._problem._bound import (
    add_bound,
    bounded_shares,
    dual_match,
    exact_match,
    known_match,
    lower_bound,
    optimistic,
)
from gpu_align._problem._digest import hash_tensors
from gpu_align._problem._family import Family, Matcher, Member, families_of
from gpu_align._problem._form import AnyTerm
from gpu_align._problem._hypotheses import Hypotheses, concatenate, in_chunks, joined
from gpu_align._problem._metric import METRICS, Metric, as_metric
from gpu_align._problem._problem import AlignmentProblem
from gpu_align._problem._sibling_term import SiblingTerm
from gpu_align._problem._signed import (
    index_of,
    is_signed,
    picked,
    sign_of,
    signed_matrix,
    to_matrix,
    unsigned,
    with_sign,
)
from gpu_align._problem._soft_networks import SoftNetworks
from gpu_align._problem._stack import (
    check_weights,
    compute_dtype,
    unusable,
    unusable_of_stack,
)
from gpu_align._problem._terms import CHUNK_ELEMENTS, Term

__all__ = [
    "CHUNK_ELEMENTS",
    "METRICS",
    "AlignmentProblem",
    "AnyTerm",
    "Family",
    "Hypotheses",
    "Matcher",
    "Member",
    "Metric",
    "SiblingTerm",
    "SoftNetworks",
    "Term",
    "add_bound",
    "as_metric",
    "bounded_shares",
    "check_weights",
    "compute_dtype",
    "concatenate",
    "dual_match",
    "exact_match",
    "families_of",
    "hash_tensors",
    "in_chunks",
    "index_of",
    "is_signed",
    "joined",
    "known_match",
    "lower_bound",
    "optimistic",
    "picked",
    "sign_of",
    "signed_matrix",
    "to_matrix",
    "unsigned",
    "unusable",
    "unusable_of_stack",
    "with_sign",
]
