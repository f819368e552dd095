"""Symmetries: what a spec says, and how it is discovered."""

from gpu_align._symmetry._chain import chain_spec
from gpu_align._symmetry._spec import Group, PermutationSpec, Pin, TensorSpec
from gpu_align._symmetry._trace import discover

__all__ = ["Group", "PermutationSpec", "Pin", "TensorSpec", "chain_spec", "discover"]
