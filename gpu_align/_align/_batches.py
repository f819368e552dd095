"""How many models fit into memory at once."""

import itertools
import math

import torch

from gpu_align._problem import CHUNK_ELEMENTS, Metric, families_of
from gpu_align._search import Search
from gpu_align._symmetry import PermutationSpec

_SHARE = 0.5  # of the free memory that is planned with: the estimates are rough


def batch_ranges(models: int, bytes_per_model: int, free: int) -> list[range]:
    """Cut `range(models)` into as few batches of nearly equal size as fit the free memory.

    A batch has at least one model, whatever is free.
    """
    fitting = max(int(_SHARE * free) // max(bytes_per_model, 1), 1)
    count = -(-models // fitting)
    ends = [models * number // count for number in range(count + 1)] if count else []
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def bytes_per_model(
    spec: PermutationSpec, metric: Metric, search: Search, dtype: torch.dtype
) -> int:
    """Estimate what one model needs while it is searched for, or certified after that.

    The weights are stacked. The search holds terms in its dtype, laid out once more for every group
    axis, and for each hypothesis at most four matrices per group at once (annealing: the matrices,
    their gradient and two steps between); beside it the copy that permutes a term. The
    certificate holds the terms and layouts in float64, and sorted copies of them for the bound; of
    many models only for some at a time.
    """
    families = families_of(spec, signs=metric.odd)
    units = [f.units(member) for f in families for member in f.members for _ in member.variables]
    matrices = sum(n * n for n in units)
    sizes, terms = [0], 0
    for tensor in spec.tensors.values():
        if tensor.counted:
            axes = sum(len(axis.groups) for axis in tensor.axes)
            sizes.append(math.prod(tensor.shape))
            terms += sizes[-1] * (1 + (axes if axes > 1 else 0))
    width = search.hypotheses_per_model
    entries = terms + (1 + 4 * width) * matrices + width * min(max(sizes), CHUNK_ELEMENTS)
    searching = entries * dtype.itemsize + width * 4 * 8 * sum(units)
    certifying = 8 * (terms + 2 * sum(sizes) + 6 * matrices)
    return max(searching, certifying) + dtype.itemsize * sum(sizes)


def largest_elements(spec: PermutationSpec) -> int:
    """Return the number of elements of the largest tensor or similarity of a model."""
    tensors = (math.prod(tensor.shape) for tensor in spec.tensors.values() if tensor.counted)
    return max([1, *tensors, *(spec.units(name) ** 2 for name in spec.groups)])
