"""The alignment problem: terms, objective, similarity, metrics and bound."""

from gpu_align._problem._bound import lower_bound, optimistic
from gpu_align._problem._hypotheses import Hypotheses, concatenate
from gpu_align._problem._metric import METRICS, Metric
from gpu_align._problem._problem import AlignmentProblem
from gpu_align._problem._terms import Term

__all__ = [
    "METRICS",
    "AlignmentProblem",
    "Hypotheses",
    "Metric",
    "Term",
    "concatenate",
    "lower_bound",
    "optimistic",
]
