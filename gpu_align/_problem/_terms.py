"""Terms: the objective as a sum of products of tensors whose leading axes are groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from gpu_align._problem._hypotheses import in_chunks
from gpu_align._problem._signed import index_of, is_signed, sign_of
from gpu_align.kernels.rows import fold

CHUNK_ELEMENTS = 2**26
"""Largest number of elements of one permuted copy of a term (256 MiB in float32)."""


_FEW = 0.25
"""Share of changed rows up to which a similarity is updated and not computed anew."""


@dataclass(frozen=True)
class Matricization:
    """A term as matrices with one mode apart, so that the others are re-indexed by whole rows.

    With K the combined extent of the other modes that have variables:

    Attributes:
        target: [n, K * d].
        source: [m * K, d * n]; row k holds all that the units see of unit k of the others.

    Source: Kolda & Bader, "Tensor decompositions and applications" (2009), section 2.4.
    """

    target: Tensor
    source: Tensor

    @cached_property
    def columns(self) -> Tensor:
        """Return the target by columns, [K * d, n]."""
        return self.target.T.contiguous()


@dataclass(frozen=True)
class Term:
    """`<A, pi.B>` of all blocks of weights that lie on the same groups.

    Attributes:
        variables: the permutation matrix of each mode (leading axis), in the spec's order: the name
            of a group, or of its signed matrix where its signs are seen. One may come twice.
        target: [n_1, ..., n_k, d], the fixed axes flattened into the last one.
        source: [m, n_1, ..., n_k, d], one slice per source model.
        chunk_elements: of a permuted copy, at most.
    """

    variables: tuple[str, ...]
    target: Tensor
    source: Tensor
    chunk_elements: int = CHUNK_ELEMENTS
    _matricizations: dict[int, Matricization] = field(
        default_factory=dict, repr=False, compare=False
    )

    def rows(self, mode: int) -> tuple[Tensor, Tensor]:
        """Return target [n, ..., d] and source [m, n, ..., d] with `mode` leading."""
        return self.target.movedim(mode, 0), self.source.movedim(mode + 1, 1)

    def squared_norms(self, mode: int) -> Tensor:
        """Return `|a_i|^2 + |b_j|^2` of the rows along `mode`, [m, n, n]."""
        target, source = self.rows(mode)
        a = target.flatten(1).square().sum(1)
        b = source.flatten(2).square().sum(2)
        return a[None, :, None] + b[:, None, :]

    def inner(self, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return `<A, pi.B>` for each hypothesis, float64 [b]."""

        def of(part: slice) -> Tensor:
            others = [(variable, perms[variable][part]) for variable in self.others(0)]
            moved = gather_rows(flat.source, model[part][:, None], others)
            moved = moved.reshape(-1, flat.target.shape[1], len(flat.target))
            perm = perms[first][part]
            units = _units(first, perm)[:, None].expand_as(moved)
            sums = moved.gather(2, units).mul_(flat.target.T).sum(1, dtype=torch.float64)
            return (sums * sign_of(perm) if is_signed(first) else sums).sum(1)

        flat, first = self._matricization(0), self.variables[0]
        return in_chunks(of, len(model), self._chunk)

    def similarity(self, mode: int, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return `d<A, pi.B> / dP` of the matrix at `mode`, the others permuted.

        Args:
            mode: which index of the term the matrix has.
            perms: variable -> int64 [b, n].
            model: int64 [b].

        Returns:
            [b, n, n].
        """

        def of(part: slice) -> Tensor:
            others = [(variable, perms[variable][part]) for variable in self.others(mode)]
            moved = gather_rows(flat.source, model[part][:, None], others)
            return flat.target @ moved.reshape(-1, flat.target.shape[1], len(flat.target))

        flat = self._matricization(mode)
        return in_chunks(of, len(model), self._chunk)

    def change(
        self,
        mode: int,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        model: Tensor,
        share: float = _FEW,
    ) -> Tensor | None:
        """Return by how much `similarity` differs between two states of the other matrices.

        Only the rows that have changed are multiplied. Looks at the values of the
        index vectors, so on a device it would wait.

        Args:
            mode: which index of the term the matrix has.
            before, after: variable -> int64 [b, n].
            model: int64 [b].
            share: of the rows, up to which it is faster than computing the similarity anew.

        Returns:
            [b, n, n]; None where more has changed.
        """
        flat, names = self._matricization(mode), self.others(mode)
        old, new = (fold([perms[name] for name in names]) for perms in (before, after))
        moved = old != new
        most = int(moved.sum(1).max()) if len(model) else 0
        if most > share * moved.shape[1]:
            return None
        places = moved.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        size, units = len(flat.target), moved.shape[1]
        columns = flat.columns.reshape(units, -1, size)
        depth = columns.shape[1]

        def of(part: slice) -> Tensor:
            chosen, first = places[part], model[part][:, None] * units
            rows = flat.source.reshape(-1, depth, size)
            difference = _signed_rows(rows, first, new[part].gather(1, chosen))
            difference -= _signed_rows(rows, first, old[part].gather(1, chosen))
            target = columns[chosen].reshape(len(chosen), -1, size)
            return target.transpose(1, 2) @ difference.reshape(len(chosen), -1, size)

        chunk = self.chunk_elements // max(most * depth * size, 1)
        return in_chunks(of, len(model), chunk)

    def soft_similarity(self, mode: int, soft: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return the gradient of the matrix at `mode` at doubly stochastic matrices, [b, n, n].

        Args:
            mode: which index of the term the matrix has.
            soft: variable -> [b, n, n].
            model: int64 [b].
        """

        def of(part: slice) -> Tensor:
            sizes = [soft[variable].shape[1] for variable in self.others(mode)]
            moved = flat.source.reshape(len(self.source), *sizes, -1)
            moved = moved if len(moved) == 1 else moved.index_select(0, model[part])
            for axis, variable in enumerate(self.others(mode), start=1):
                leading = moved.movedim(axis, 1)
                mixed = soft[variable][part] @ leading.flatten(2)
                moved = mixed.reshape(-1, *leading.shape[1:]).movedim(1, axis)
            return flat.target @ moved.reshape(-1, flat.target.shape[1], len(flat.target))

        flat = self._matricization(mode)
        return in_chunks(of, len(model), self._chunk)

    @property
    def _chunk(self) -> int:
        return self.chunk_elements // max(self.target.numel(), 1)

    def others(self, mode: int) -> tuple[str, ...]:
        """Return the variables of the other modes."""
        return (*self.variables[:mode], *self.variables[mode + 1 :])

    def _matricization(self, mode: int) -> Matricization:
        if mode not in self._matricizations:
            target, source = self.rows(mode)
            size = len(target)
            last = source.movedim(1, -1)
            rows = last.shape[1:-2].numel() * len(source)
            self._matricizations[mode] = Matricization(
                target.reshape(size, -1).contiguous(), last.reshape(rows, -1).contiguous()
            )
        return self._matricizations[mode]


def _signed_rows(rows: Tensor, first: Tensor, perm: Tensor) -> Tensor:
    """Return rows [., d, n] that an index vector names, negated where it says so: [b, k, d, n]."""
    index = first + index_of(perm)
    chosen = rows.index_select(0, index.flatten()).reshape(*index.shape, *rows.shape[1:])
    return chosen.mul_(sign_of(perm)[..., None, None])


def gather_rows(source: Tensor, rows: Tensor, perms: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Gather the rows of a matricization that permutations name, with their signs.

    Args:
        source: [m * K, ...], rows numbered (model, unit of the first matrix, of the second, ...).
        rows: int64 [b, r], where to begin, numbered by what comes before the matrices.
        perms: name and int64 [b, n] of each matrix, slowest first.

    Returns:
        [b * r * n_1 * n_2 * ..., ...].
    """
    signs = torch.ones_like(rows) if any(is_signed(name) for name, _ in perms) else None
    for name, perm in perms:
        rows = (rows[..., None] * perm.shape[1] + _units(name, perm)[:, None]).flatten(1)
        if signs is not None:
            signs = (signs[..., None] * sign_of(perm)[:, None]).flatten(1)
    moved = source.index_select(0, rows.flatten())
    return moved if signs is None else moved.mul_(signs.reshape(-1, 1))


def _units(variable: str, perm: Tensor) -> Tensor:
    """Return the unit at each place: of a matrix without signs, what stands there."""
    return index_of(perm) if is_signed(variable) else perm
