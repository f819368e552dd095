"""Batched linear assignment problems: exact solvers, certificates and the k best matchings."""

from gpu_align._assignment._auction import AuctionAssignment
from gpu_align._assignment._auto import AutoAssignment, solve
from gpu_align._assignment._exact import exact_duals
from gpu_align._assignment._failures import raise_failures
from gpu_align._assignment._k_best import k_best
from gpu_align._assignment._lapx import LapxAssignment
from gpu_align._assignment._potentials import certify, dual_bounds
from gpu_align._assignment._problem import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
)
from gpu_align._assignment._scipy import ScipyAssignment
from gpu_align._assignment._threads import at_most_threads, thread_count
from gpu_align.kernels.auction import STATUS_OF_CODE, Auction, AuctionResult

__all__ = [
    "STATUS_OF_CODE",
    "AbstractAssignmentSolver",
    "AssignmentProblem",
    "AssignmentSolution",
    "Auction",
    "AuctionAssignment",
    "AuctionResult",
    "AutoAssignment",
    "LapxAssignment",
    "ScipyAssignment",
    "at_most_threads",
    "certify",
    "dual_bounds",
    "exact_duals",
    "k_best",
    "raise_failures",
    "solve",
    "thread_count",
]
