"""Terms: the objective as a sum of products of tensors whose leading axes are groups."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpu_align._errors import CheckpointError, bullet_list
from gpu_align._problem._hypotheses import in_chunks
from gpu_align._problem._metric import Metric
from gpu_align._symmetry._axis import Factor, Segment, segment_size
from gpu_align._symmetry._spec import PermutationSpec, StateDict, TensorSpec

CHUNK_ELEMENTS = 2**26
"""Largest number of elements of one permuted copy of a term (256 MiB in float32)."""


@dataclass(frozen=True)
class Layout:
    """A term laid out for one of its groups, so that the others are re-indexed by whole rows.

    With K the combined extent of the other groups:

    Attributes:
        target: [n, K * d].
        source: [m * K, d * n]; row k holds all that the units see of unit k of the others.
    """

    target: Tensor
    source: Tensor


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
    _layouts: dict[int, Layout] = field(default_factory=dict, repr=False, compare=False)

    def rows(self, place: int) -> tuple[Tensor, Tensor]:
        """Return target [n, ..., d] and source [m, n, ..., d] with axis `place` leading."""
        return self.target.movedim(place, 0), self.source.movedim(place + 1, 1)

    def squared_norms(self, place: int) -> Tensor:
        """Return `|a_i|^2 + |b_j|^2` of the rows along axis `place`, [m, n, n]."""
        target, source = self.rows(place)
        a = target.flatten(1).square().sum(1)
        b = source.flatten(2).square().sum(2)
        return a[None, :, None] + b[:, None, :]

    def inner(self, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return `<A, pi.B>` for each hypothesis, float64 [b]."""
        similarity = self.similarity(0, perms, model)
        picked = similarity.gather(2, perms[self.groups[0]][..., None])
        return picked.sum((1, 2), dtype=torch.float64)

    def similarity(self, place: int, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return `d<A, pi.B> / dP` of the group at `place`, the others permuted.

        Args:
            place: which of the term's groups.
            perms: group -> int64 [b, n].
            model: int64 [b].

        Returns:
            [b, n, n].
        """

        def of(index: Tensor) -> Tensor:
            rows = model[index][:, None]
            for group in self._others(place):
                perm = perms[group][index]
                rows = (rows[..., None] * perm.shape[1] + perm[:, None]).flatten(1)
            moved = layout.source.index_select(0, rows.flatten())
            return layout.target @ moved.reshape(len(index), -1, len(layout.target))

        layout = self._layout(place)
        return in_chunks(of, len(model), self._chunk)

    def soft_similarity(self, place: int, soft: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return the same at doubly stochastic matrices, group -> [b, n, n]."""

        def of(index: Tensor) -> Tensor:
            sizes = [soft[group].shape[1] for group in self._others(place)]
            moved = layout.source.reshape(len(self.source), *sizes, -1)
            moved = moved if len(moved) == 1 else moved[model[index]]
            for axis, group in enumerate(self._others(place), start=1):
                leading = moved.movedim(axis, 1)
                mixed = soft[group][index] @ leading.flatten(2)
                moved = mixed.reshape(len(index), *leading.shape[1:]).movedim(1, axis)
            return layout.target @ moved.reshape(len(index), -1, len(layout.target))

        layout = self._layout(place)
        return in_chunks(of, len(model), self._chunk)

    @property
    def _chunk(self) -> int:
        return CHUNK_ELEMENTS // max(self.target.numel(), 1)

    def _others(self, place: int) -> tuple[str, ...]:
        return (*self.groups[:place], *self.groups[place + 1 :])

    def _layout(self, place: int) -> Layout:
        if place not in self._layouts:
            target, source = self.rows(place)
            size = len(target)
            last = source.movedim(1, -1)
            rows = last.shape[1:-2].numel() * len(source)
            self._layouts[place] = Layout(
                target.reshape(size, -1).contiguous(), last.reshape(rows, -1).contiguous()
            )
        return self._layouts[place]


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
                    f"{name!r} has dtype {tensor.dtype}, expected real floating point; convert or "
                    "dequantise it"
                )
        elif bad := _count_not_finite(tensor):
            problems.append(
                f"{name!r} has {bad} NaN or infinite entries of {tensor.numel()}; "
                "was the training stable?"
            )
    if problems:
        raise CheckpointError(f"the {role} cannot be aligned:\n{bullet_list(problems)}")


def _count_not_finite(tensor: Tensor) -> int:
    # The 8-bit formats have no isfinite of their own.
    wide = tensor if tensor.element_size() > 1 else tensor.float()
    return tensor.numel() - int(torch.isfinite(wide).sum())


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
        places = [n for n, factor in enumerate(factors) if _is_free(factor)]
        places.sort(key=lambda n: order.index(factors[n].group or ""))
        fixed = [n for n, factor in enumerate(factors) if not _is_free(factor)]
        shape = [sizes[n] for n in places] + [-1]
        groups = tuple(factors[n].group or "" for n in places)
        a_block = a_block.reshape(sizes).permute(places + fixed).reshape(shape)
        b_order = [0, *(n + 1 for n in places + fixed)]
        b_block = b_block.reshape(-1, *sizes).permute(b_order).reshape(len(b), *shape)
        result.append((groups, a_block, b_block))
    return result


def _is_free(factor: Factor) -> bool:
    return factor.group is not None and factor.size > 1


def _starts(segments: Sequence[Segment]) -> list[tuple[int, Segment]]:
    sizes = [segment_size(segment) for segment in segments]
    return list(zip(itertools.accumulate([0, *sizes[:-1]]), segments, strict=True))
