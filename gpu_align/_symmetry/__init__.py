"""Symmetries: what a spec says, and how it is discovered."""

from gpu_align._symmetry._axis import Axis, Factor, Fixed, Units
from gpu_align._symmetry._chain import chain_spec
from gpu_align._symmetry._draw import draw
from gpu_align._symmetry._gauge._apply import rescale
from gpu_align._symmetry._gauge._balance import balance
from gpu_align._symmetry._gauge._shift import shift_phases
from gpu_align._symmetry._html import counted, html_table
from gpu_align._symmetry._in_double import PRESERVED, double
from gpu_align._symmetry._move import move, multiply, stack
from gpu_align._symmetry._op import Op, bounds, extent
from gpu_align._symmetry._outline import (
    Module,
    Outline,
    Span,
    axis_name,
    axis_names,
    ops_without_rule,
    outline,
    pins_by_reason,
)
from gpu_align._symmetry._outputs import Kept, output_tensors
from gpu_align._symmetry._parts import Pin
from gpu_align._symmetry._permutation import Permutation
from gpu_align._symmetry._permutation_file import save_stack
from gpu_align._symmetry._reference import Reference, tied_names
from gpu_align._symmetry._rename import spec_of_file
from gpu_align._symmetry._reorder import apply_permutations, permuted, permuted_stack
from gpu_align._symmetry._running import (
    as_arguments,
    copied,
    duplicate,
    evaluation_mode,
    same_noise,
)
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._stacks import Stack, stack_size, unstacked
from gpu_align._symmetry._tensor_spec import Block, TensorSpec
from gpu_align._symmetry._trace import discover
from gpu_align._symmetry._traced_model import TracedModel, trace_model
from gpu_align._symmetry._verify import Comparison, compare_outputs, compare_stacks
from gpu_align._symmetry._weights import Weights, part_elements, part_ranges, stack_of, tensors_of
from gpu_align._symmetry._wrappers import unwrapped

__all__ = [
    "PRESERVED",
    "Axis",
    "Block",
    "Comparison",
    "Factor",
    "Fixed",
    "Kept",
    "Module",
    "Op",
    "Outline",
    "Permutation",
    "PermutationSpec",
    "Pin",
    "Reference",
    "Span",
    "Stack",
    "StateDict",
    "TensorSpec",
    "TracedModel",
    "Units",
    "Weights",
    "apply_permutations",
    "as_arguments",
    "axis_name",
    "axis_names",
    "balance",
    "bounds",
    "chain_spec",
    "compare_outputs",
    "compare_stacks",
    "copied",
    "counted",
    "discover",
    "double",
    "draw",
    "duplicate",
    "evaluation_mode",
    "extent",
    "html_table",
    "move",
    "multiply",
    "ops_without_rule",
    "outline",
    "output_tensors",
    "part_elements",
    "part_ranges",
    "permuted",
    "permuted_stack",
    "pins_by_reason",
    "rescale",
    "same_noise",
    "save_stack",
    "shift_phases",
    "spec_of_file",
    "stack",
    "stack_of",
    "stack_size",
    "tensors_of",
    "tied_names",
    "trace_model",
    "unstacked",
    "unwrapped",
]
