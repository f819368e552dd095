"""The alignment problem: terms, objective, similarity, metrics and bound."""

from gpu_align._problem._bound import dual_match, lower_bound, optimistic
from gpu_align._problem._family import Family, Member
from gpu_align._problem._form import AnyTerm
from gpu_align._problem._hypotheses import Hypotheses, concatenate, in_chunks
from gpu_align._problem._metric import METRICS, Metric
from gpu_align._problem._problem import AlignmentProblem
from gpu_align._problem._sibling_term import SiblingTerm
from gpu_align._problem._signed import index_of, is_signed, picked, to_matrix, unsigned
from gpu_align._problem._terms import Term

__all__ = [
    "METRICS",
    "AlignmentProblem",
    "AnyTerm",
    "Family",
    "Hypotheses",
    "Member",
    "Metric",
    "SiblingTerm",
    "Term",
    "concatenate",
    "dual_match",
    "in_chunks",
    "index_of",
    "is_signed",
    "lower_bound",
    "optimistic",
    "picked",
    "to_matrix",
    "unsigned",
]
