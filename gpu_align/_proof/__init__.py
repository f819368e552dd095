"""Proofs: that no permutation is closer than one that was found, or by how much one could be."""

from gpu_align._proof._check import check_proof
from gpu_align._proof._proof import Proof
from gpu_align._proof._prove import narrowed, prove
from gpu_align._proof._record import ProofRecord, ProofStep

__all__ = ["Proof", "ProofRecord", "ProofStep", "check_proof", "narrowed", "prove"]
