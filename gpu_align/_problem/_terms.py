"""Terms: the objective as a sum of products of tensors whose leading axes are groups."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._errors import CheckpointError, bullet_list
from gpu_align._problem._metric import Metric
from gpu_align._symmetry._axis import Segment, segment_size
from gpu_align._symmetry._spec import PermutationSpec, StateDict, TensorSpec


@dataclass(frozen=True)
class Term:
    """`<A, pi.B>` of all blocks of weights that lie on the same groups.

    Attributes:
        groups: the group of each leading axis, in the spec's order; a group may come twice.
        target: [n_1, ..., n_k, d], the fixed axes flattened into the last one.
        source: [m, n_1, ..., n_k, d], one slice per source model.
    """

    groups: tuple[str, ...]
    target: Tensor
    source: Tensor

    def rows(self, place: int) -> tuple[Tensor, Tensor]:
        """Return target [n, ..., d] and source [m, n, ..., d] with axis `place` leading."""
        return self.target.movedim(place, 0), self.source.movedim(place + 1, 1)

    def squared_norms(self, place: int) -> Tensor:
        """Return `|a_i|^2 + |b_j|^2` of the rows along axis `place`, [m, n, n]."""
        target, source = self.rows(place)
        a = target.flatten(1).square().sum(1)
        b = source.flatten(2).square().sum(2)
        return a[None, :, None] + b[:, None, :]


@dataclass(frozen=True)
class Form:
    """The objective `D(pi) = constant - 2 sum_terms <A, pi.B>`.

    Attributes:
        constant: float64 [m], squared norms of both networks less twice what no group can change.
        terms: one Term per combination of groups.
    """

    constant: Tensor
    terms: tuple[Term, ...]


def check_weights(spec: PermutationSpec, state_dict: StateDict, role: str) -> None:
    """Check that the weights of a network can be compared.

    Raises:
        CheckpointError: weights are integers or complex, or have NaN or infinite entries.
    """
    problems = []
    for name, tensor_spec in spec.tensors.items():
        tensor = spec.tensor_of(name, state_dict)
        if not torch.is_floating_point(tensor):
            if tensor_spec.counted or tensor_spec.groups:
                problems.append(
                    f"{name!r} has dtype {tensor.dtype}, expected floating point; dequantise it"
                )
        elif not bool(torch.isfinite(tensor.float()).all()):
            bad = int((~torch.isfinite(tensor.float())).sum())
            problems.append(
                f"{name!r} has {bad} NaN or infinite entries of {tensor.numel()}; "
                "was the training stable?"
            )
    if problems:
        raise CheckpointError(f"the {role} cannot be aligned:\n{bullet_list(problems)}")


def build_form(
    spec: PermutationSpec,
    target: StateDict,
    sources: Sequence[StateDict],
    metric: Metric,
    dtype: torch.dtype,
) -> Form:
    """Cut the counted tensors into blocks and gather the blocks of each combination of groups.

    Args:
        spec: which axes carry which groups.
        target: name -> tensor.
        sources: one state dict per model m.
        metric: scales each tensor before it is cut.
        dtype: of the terms; norms and constants are float64.
    """
    constant = torch.zeros(len(sources), dtype=torch.float64)
    blocks: dict[tuple[str, ...], list[tuple[Tensor, Tensor]]] = {}
    for name, tensor_spec in spec.tensors.items():
        if not tensor_spec.counted or 0 in tensor_spec.shape:
            continue
        a = metric.scaled(spec.tensor_of(name, target))
        b = torch.stack([metric.scaled(spec.tensor_of(name, source)) for source in sources])
        constant += a.square().sum() + b.square().flatten(1).sum(1)
        for groups, a_block, b_block in _blocks(tensor_spec, a, b, list(spec.groups)):
            if groups:
                blocks.setdefault(groups, []).append((a_block.to(dtype), b_block.to(dtype)))
            else:
                constant -= 2 * (b_block * a_block).flatten(1).sum(1)
    terms = tuple(
        Term(
            groups,
            torch.cat([a_block for a_block, _ in parts], dim=-1).contiguous(),
            torch.cat([b_block for _, b_block in parts], dim=-1).contiguous(),
        )
        for groups, parts in blocks.items()
    )
    return Form(constant, terms)


def _blocks(
    tensor_spec: TensorSpec, a: Tensor, b: Tensor, order: list[str]
) -> list[tuple[tuple[str, ...], Tensor, Tensor]]:
    """Cut a tensor along its segments; return the groups and both networks' block of each."""
    result = []
    starts = [_starts(axis.segments) for axis in tensor_spec.axes]
    for chosen in itertools.product(*starts):
        a_block, b_block = a, b
        for number, (start, segment) in enumerate(chosen):
            a_block = a_block.narrow(number, start, segment_size(segment))
            b_block = b_block.narrow(number + 1, start, segment_size(segment))
        factors = [factor for _, segment in chosen for factor in segment]
        sizes = [factor.size for factor in factors]
        places = [n for n, factor in enumerate(factors) if factor.group is not None]
        places.sort(key=lambda n: order.index(factors[n].group or ""))
        fixed = [n for n, factor in enumerate(factors) if factor.group is None]
        shape = [sizes[n] for n in places] + [-1]
        groups = tuple(factors[n].group or "" for n in places)
        a_block = a_block.reshape(sizes).permute(places + fixed).reshape(shape)
        b_order = [0, *(n + 1 for n in places + fixed)]
        b_block = b_block.reshape(-1, *sizes).permute(b_order).reshape(len(b), *shape)
        result.append((groups, a_block, b_block))
    return result


def _starts(segments: Sequence[Segment]) -> list[tuple[int, Segment]]:
    sizes = [segment_size(segment) for segment in segments]
    return list(zip(itertools.accumulate([0, *sizes[:-1]]), segments, strict=True))
