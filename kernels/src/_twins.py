"""Plain twins of the Triton kernels in torch: what they compute, and their oracles.

They need neither Triton nor a GPU, work in any floating-point dtype, and store permuted copies.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .rows import RowTerm


def row_distance_reference(
    terms: Sequence[RowTerm],
    perms: Mapping[str, Tensor],
    model: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the similarity of one group by gathers and matrix products.

    `S[w, i, j] = sum_t <A_t[i], (pi_w B_t)[j]>`.

    Args:
        terms: the tensors of the group.
        perms: group -> int64 [b, units], ~j for the negative of unit j.
        model: int64 [b].
        dtype: of the computation.

    Returns:
        [b, n, n].
    """
    rows = terms[0].target.shape[terms[0].mode]
    total = torch.zeros(len(model), rows, rows, dtype=dtype, device=model.device)
    for term in terms:
        target = term.target.movedim(term.mode, 0).flatten(1).to(dtype)
        source = _moved(term, perms, model, dtype).flatten(2)
        total += target @ source.transpose(1, 2)
    return total


def annealing_step_reference(
    similarity: Tensor, soft: Tensor, temperature: float, damping: float, iterations: int
) -> None:
    """Move `P <- (1 - d) P + d Sinkhorn(S / (T std S))` in place.

    The deviation is over all n^2 entries (n^2 - 1 in the denominator) and at least 1e-6 of the
    largest entry: where all units are alike the spread is rounding noise. Rows, then columns, of
    the logits are shifted to a maximum of 0, so that no sum underflows.

    Args:
        similarity: S, [b, n, n].
        soft: P, [b, n, n], changed.
        temperature: T, in units of the standard deviation.
        damping: d.
        iterations: pairs of a row and a column scaling, at least 1.

    Source: Gold & Rangarajan, "A graduated assignment algorithm for graph matching" (1996).
    """
    if similarity.numel() == 0:
        return
    entries = similarity[0].numel()
    deviation = similarity.flatten(1).std(dim=1, correction=1 if entries > 1 else 0)
    floor = 1e-6 * similarity.abs().amax((1, 2)) + 1e-30
    logits = similarity / (temperature * torch.maximum(deviation, floor))[:, None, None]
    logits = logits - logits.amax(2, keepdim=True)
    logits = logits - logits.amax(1, keepdim=True)
    kernel = logits.exp_()
    column = torch.ones_like(kernel[:, :1])
    for _ in range(iterations):
        row = 1 / (kernel @ column.transpose(1, 2))
        column = 1 / (row.transpose(1, 2) @ kernel)
    soft.lerp_(kernel.mul_(row).mul_(column).to(soft.dtype), damping)


def _moved(term: RowTerm, perms: Mapping[str, Tensor], model: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the source rows with the other axes re-indexed, [b, n, ..., d]."""
    moved = term.source.movedim(term.mode + 1, 1).to(dtype)[model]
    for axis, group in enumerate(term.others, start=2):
        shape = [len(model)] + [1] * (moved.dim() - 1)
        shape[axis] = perms[group].shape[1]
        index = perms[group].reshape(shape)
        moved = moved.take_along_dim(torch.where(index < 0, ~index, index), axis)
        moved = moved * torch.where(index < 0, -1, 1).to(dtype)
    return moved
