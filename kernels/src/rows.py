"""What the row-distance kernels read: weights laid out once per group, and hypotheses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_align._errors import InputError

ALIGNMENT = 16
"""Rows are padded with zeros to a multiple of this many elements, so that loads are 16 bytes."""


@dataclass(frozen=True)
class RowTerm:
    """One tensor of both networks (or several on the same groups), seen from one of its groups.

    Axes that carry no group are flattened into the last one. A composite axis (unit * inner + r,
    as after conv -> flatten -> linear) is two axes of the view: the units, and r in the last one.
    Units inside each unit of a parent are one axis of parent * inner units.

    Attributes:
        target: [n_1, ..., n_k, d], any strides.
        source: [m, n_1, ..., n_k, d], one slice per source model, any strides.
        groups: the group of each of the k leading axes; a group may come twice.
        mode: which of them has the rows.
    """

    target: Tensor
    source: Tensor
    groups: tuple[str, ...]
    mode: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.mode < len(self.groups) or self.target.dim() != len(self.groups) + 1:
            raise InputError(
                f"expected a target [n_1, ..., n_k, d] with k = {len(self.groups)} groups and a "
                f"mode below k, got {list(self.target.shape)} and mode {self.mode}"
            )
        if self.source.shape[1:] != self.target.shape:
            raise InputError(
                f"expected a source [m, {', '.join(map(str, self.target.shape))}] like the target, "
                f"got {list(self.source.shape)}"
            )

    @property
    def others(self) -> tuple[str, ...]:
        """The groups of the other leading axes."""
        return (*self.groups[: self.mode], *self.groups[self.mode + 1 :])


@dataclass(frozen=True)
class PackedTerm:
    """A term laid out for the kernel; with L the product of the other axes and d.

    Attributes:
        target: [n, planes * L padded], row i is unit i; planes side by side.
        source: [m * L, planes * n padded], row k of a model is what all units see at position k;
            with signs [m * 2 L, planes * n padded], the negatives behind the rows of each model.
        others: the groups of the other axes.
        sizes: their units; `L = prod(sizes) * inner`, the first group outermost.
        inner: d.
    """

    target: Tensor
    source: Tensor
    others: tuple[str, ...]
    sizes: tuple[int, ...]
    inner: int

    @property
    def length(self) -> int:
        """L, the length of a row."""
        return math.prod(self.sizes) * self.inner


@dataclass(frozen=True)
class PackedRows:
    """All terms of one group, laid out once and read by every launch; no hypothesis in it.

    Attributes:
        terms: at least one.
        size: n, units of the group.
        models: m.
        planes: 3 where the weights are the sum of three bfloat16 matrices, else 1.
        signed: whether index vectors may carry signs.
    """

    terms: tuple[PackedTerm, ...]
    size: int
    models: int
    planes: int
    signed: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights as they lie, bfloat16 where they are split."""
        return self.terms[0].target.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.terms[0].target.device


@dataclass(frozen=True)
class RowProblem:
    """One group and the hypotheses whose similarities are wanted.

    Attributes:
        rows: the weights of the group.
        perms: group -> int64 [b, units], for each other group of the terms: unit j of the source
            at place i, or ~j for its negative where the rows are signed. Nothing checks that it
            points at a unit: the kernel reads there.
        model: int64 [b], which source each hypothesis permutes.
        unary: float32 [1 or m, n, n], added to the similarity: of each hypothesis's source, or
            the only one.
        active: int64 [b], 0 for each hypothesis that is not computed: its output stays as it is.
    """

    rows: PackedRows
    perms: Mapping[str, Tensor]
    model: Tensor
    unary: Tensor | None = None
    active: Tensor | None = None

    def __post_init__(self) -> None:
        check_index("model", self.model, (len(self.model),), self.rows.device)
        if self.active is not None:
            check_index("active", self.active, (len(self.model),), self.rows.device)
        if self.unary is not None:
            self._check_unary(self.unary)
        for term in self.rows.terms:
            for group, size in zip(term.others, term.sizes, strict=True):
                if group not in self.perms:
                    raise InputError(
                        f"expected an index vector for each of the groups {term.others}, got only "
                        f"{sorted(self.perms)}"
                    )
                shape = (len(self.model), size)
                check_index(group, self.perms[group], shape, self.rows.device)

    def _check_unary(self, unary: Tensor) -> None:
        rows = self.rows
        right = unary.dtype == torch.float32 and unary.device == rows.device
        right = right and unary.dim() == 3 and unary.shape[1:] == (rows.size, rows.size)
        if not right or len(unary) not in (1, rows.models) or not unary[0].is_contiguous():
            raise InputError(
                f"expected 'unary' as float32 [1 or {rows.models}, {rows.size}, {rows.size}] on "
                f"{rows.device}, each matrix contiguous, got {unary.dtype} {list(unary.shape)} on "
                f"{unary.device} with strides {unary.stride()}"
            )


def pack_rows(
    terms: Sequence[RowTerm],
    *,
    signed: bool = False,
    split: bool = True,
) -> PackedRows:
    """Lay out the terms of one group for the kernel: once per problem, not per hypothesis.

    The weights become the sum of three bfloat16 matrices (`split_planes`). A tensor that is
    neither split nor signed and lies right (contiguous, a multiple of 16 wide) is not copied.

    Args:
        terms: float32, all with the same number of rows and models, on one device.
        signed: whether index vectors may carry signs: the source is kept with its negative.
        split: whether to split the weights.

    Raises:
        InputError: no term, terms that do not fit together, or that are not float32.
    """
    if not terms:
        raise InputError("expected at least one term, got none; a group lies on some tensor")
    found = {tensor.dtype for term in terms for tensor in (term.target, term.source)}
    if found != {torch.float32}:
        raise InputError(
            f"expected float32 weights, got {sorted(map(str, found))}; convert them with .float(), "
            "or use the CPU for float64"
        )
    shapes = {(t.target.shape[t.mode], len(t.source), t.target.device) for t in terms}
    if len(shapes) > 1:
        raise InputError(
            f"expected terms of the same rows, models and device, got (n, m, device) {shapes}"
        )
    size, models, _ = shapes.pop()
    planes = 3 if split else 1
    packed = tuple(_pack(term, planes, signed=signed) for term in terms)
    return PackedRows(packed, size, models, planes, signed)


def split_planes(matrix: Tensor, planes: Tensor | None = None) -> Tensor:
    """Return three bfloat16 matrices whose sum is a float32 matrix, largest first: [3, ...].

    Each takes the 8 leading bits of what is left, by rounding, so the sum is exact; but for the
    part of a number below 2^-133, the smallest bfloat16. What is not finite gives NaN.

    Args:
        matrix: float32, any shape.
        planes: bfloat16 [3, ...], where to write them; default new memory.

    Source: Ootomo & Yokota, "Recovering single precision accuracy from Tensor Cores while
        surpassing the FP32 theoretical peak performance" (2022); for bfloat16 Henry, Tang &
        Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision
        computations" (2019).
    """
    if planes is None:
        planes = matrix.new_empty(3, *matrix.shape, dtype=torch.bfloat16)
    largest, nan = torch.finfo(torch.bfloat16).max, torch.nan
    planes[0].copy_(matrix.clamp(-largest, largest))  # rounding must not reach infinity
    rest = matrix - planes[0]
    planes[1].copy_(rest.nan_to_num_(nan, nan, nan))
    torch.sub(rest, planes[1], out=planes[2])
    return planes


def _pack(term: RowTerm, planes: int, *, signed: bool) -> PackedTerm:
    rows = term.target.movedim(term.mode, 0)
    columns = term.source.movedim(term.mode + 1, -1)
    sizes, inner = tuple(rows.shape[1:-1]), rows.shape[-1]
    length = math.prod(sizes) * inner
    lay = _padded if planes == 1 else _split
    columns = columns.reshape(len(columns), length, len(rows))
    if signed:
        columns = torch.cat([columns, -columns], 1)
    return PackedTerm(
        lay(rows.reshape(len(rows), length)),
        lay(columns.flatten(0, 1)),
        term.others,
        sizes,
        inner,
    )


def _padded(matrix: Tensor) -> Tensor:
    missing = -matrix.shape[1] % ALIGNMENT
    padded = F.pad(matrix, (0, missing)) if missing else matrix.contiguous()
    return padded if padded.data_ptr() % 16 == 0 else padded.clone()


def _split(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    missing = -columns % ALIGNMENT
    laid = matrix.new_empty(rows, 3, columns + missing, dtype=torch.bfloat16)
    split_planes(matrix, laid[:, :, :columns].movedim(1, 0))
    if missing:
        laid[:, :, columns:].zero_()
    return laid.flatten(1)


def fold(indices: Sequence[Tensor]) -> Tensor:
    """Return one index vector for several axes, int64 [b, product of units], signs multiplied.

    Args:
        indices: int64 [b, units] of each axis, slowest first; ~j for the negative of unit j.
    """
    total = indices[0]
    for index in indices[1:]:
        unit, inner = (i ^ (i >> 63) for i in (total, index))
        both = unit[:, :, None] * index.shape[1] + inner[:, None, :]
        negative = (total < 0)[:, :, None] ^ (index < 0)[:, None, :]
        total = torch.where(negative, ~both, both).flatten(1)
    return total


def check_index(name: str, index: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Check an index vector without looking at its values.

    Raises:
        InputError: it is not int64 of this shape, contiguous along its last axis, on this device.
    """
    wrong = index.dtype != torch.int64 or index.shape != shape or index.device != device
    if wrong or (index.dim() > 0 and index.shape[-1] > 1 and index.stride(-1) != 1):
        raise InputError(
            f"expected {name!r} as int64 {list(shape)} on {device}, contiguous along its last "
            f"axis, got {index.dtype} {list(index.shape)} on {index.device} with strides "
            f"{index.stride()}"
        )
