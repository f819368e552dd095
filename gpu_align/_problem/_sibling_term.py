"""Terms on which several children of one group lie: query heads and dimensions inside a head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._problem._family import Family
from gpu_align._problem._hypotheses import in_chunks
from gpu_align._problem._signed import index_of, sign_of
from gpu_align._problem._terms import CHUNK_ELEMENTS


@dataclass(frozen=True)
class SiblingTerm:
    """`<A, pi.B>` of blocks of weights on which two or more children of one root lie.

    As matrices over (root unit, inner unit) the siblings would span a tensor that is zero
    wherever their root units differ; only the rest is stored. With R units of the root:

    Attributes:
        variables: those of the siblings, then those of the other axes.
        siblings: how many of `variables` are siblings; one may come twice.
        target: [R, s_1, ..., s_k, n_1, ..., n_l, d] for k siblings and l others.
        source: [m, R, s_1, ..., s_k, n_1, ..., n_l, d].
        chunk_elements: of a permuted copy, at most.
    """

    variables: tuple[str, ...]
    siblings: int
    target: Tensor
    source: Tensor
    chunk_elements: int = CHUNK_ELEMENTS

    def rows(self, mode: int) -> tuple[Tensor, Tensor]:
        """Return target [n, ..., d] and source [m, n, ..., d] with the units at `mode` leading."""
        target, source = self.target[None], self.source
        if mode >= self.siblings:
            return target.movedim(mode + 2, 1)[0], source.movedim(mode + 2, 1)
        target, source = (t.movedim(mode + 2, 2).flatten(1, 2) for t in (target, source))
        return target[0], source

    def squared_norms(self, mode: int) -> Tensor:
        """Return `|a_i|^2 + |b_j|^2` of the rows of units at `mode`, [m, n, n]."""
        target, source = self.rows(mode)
        a, b = target.flatten(1).square().sum(1), source.flatten(2).square().sum(2)
        return a[None, :, None] + b[:, None, :]

    def inner(self, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return `<A, pi.B>` for each hypothesis, float64 [b]."""

        def of(part: slice) -> Tensor:
            vectors = self._vectors(perms, part)
            moved = self._moved(model[part], self._root(vectors), vectors)
            return (moved * self.target).flatten(1).sum(1, dtype=torch.float64)

        return in_chunks(of, len(model), self._chunk(pairs=False))

    def similarity(self, mode: int, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return `d<A, pi.B> / dP` of the matrix at `mode`, the others permuted, [b, n, n].

        For a sibling only the blocks at the root's present assignment are not zero, as elsewhere
        it does not meet the other siblings; `pair_similarity` looks beyond.
        """

        def of(part: slice) -> Tensor:
            vectors = self._vectors(perms, part)
            root = self._root(vectors)
            still = torch.arange(self.target.shape[mode + 1], device=root.device)
            if mode >= self.siblings:
                vectors[mode] = still.expand_as(vectors[mode])
                moved = self._moved(model[part], root, vectors).movedim(mode + 2, 1)
                target = self.target.movedim(mode + 1, 0).flatten(1)
                return target @ moved.flatten(2).transpose(1, 2)
            size = len(still)
            vectors[mode] = (root[..., None] * size + still).flatten(1)
            moved = self._moved(model[part], root, vectors).movedim(mode + 2, 2)
            target = self.target.movedim(mode + 1, 1).flatten(2)
            blocks = target @ moved.flatten(3).transpose(2, 3)
            spread = blocks.new_zeros(len(root), len(target), len(target), size, size)
            where = root[:, :, None, None, None].expand(-1, -1, 1, size, size)
            spread.scatter_(2, where, blocks[:, :, None])
            return Family.joined(spread)

        return in_chunks(of, len(model), self._chunk(pairs=False))

    def pair_similarity(
        self,
        mode: int,
        guess: Sequence[Tensor],
        perms: Mapping[str, Tensor],
        model: Tensor,
    ) -> Tensor:
        """Return the similarity of a sibling as it would be if any pair of root units were matched.

        Args:
            mode: which of the siblings.
            guess: [b, n, n] of each sibling: its matrix inside every pair of root units at once.
            perms: variable -> int64 [b, n] of the other axes.
            model: int64 [b].

        Returns:
            [b, n, n].
        """

        def of(part: slice) -> Tensor:
            batch, device = len(model[part]), model.device
            root = torch.arange(len(self.target), device=device).expand(batch, -1)
            vectors = [
                torch.arange(len(self.target) * size, device=device).expand(batch, -1)
                for size in self.target.shape[1 : self.siblings + 1]
            ]
            others = [perms[name][part] for name in self.variables[self.siblings :]]
            source = self._moved(model[part], root, [*vectors, *others])
            return self._of_pairs(mode, [matrix[part] for matrix in guess], source)

        return in_chunks(of, len(model), self._chunk(pairs=True))

    def soft_similarity(self, mode: int, soft: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return the gradient of the matrix at `mode` at doubly stochastic matrices, [b, n, n]."""

        def of(part: slice) -> Tensor:
            matrices = [soft[name][part] for name in self.variables]
            source = self.source[model[part]]
            for number in range(self.siblings, len(matrices)):
                if number != mode:
                    source = mix(matrices[number], source, number + 2)
            siblings = matrices[: self.siblings]
            if mode < self.siblings:
                return self._of_pairs(mode, siblings, source)
            moved = self._in_pairs(siblings, source, skip=None).sum(2).movedim(mode + 2, 1)
            target = self.target.movedim(mode + 1, 0).flatten(1)
            return target @ moved.flatten(2).transpose(1, 2)

        return in_chunks(of, len(model), self._chunk(pairs=True))

    def _vectors(self, perms: Mapping[str, Tensor], part: slice) -> list[Tensor]:
        return [perms[name][part] for name in self.variables]

    def _root(self, vectors: list[Tensor]) -> Tensor:
        """Return where the root's units go, as the first sibling tells: int64 [b, R]."""
        size = self.target.shape[1]
        return index_of(vectors[0])[:, ::size] // size

    def _moved(self, model: Tensor, root: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """Return pi.B: model [b], root [b, R], one vector each -> [b, R, s_1, ..., d]."""
        rows = (model[:, None] * root.shape[1] + root)[..., None]
        signs = torch.ones_like(rows)
        for number, vector in enumerate(vectors):
            size = self.target.shape[number + 1]
            places = vector.reshape(len(model), -1, 1, size)
            rows = (rows[..., None] * size + index_of(places) % size).flatten(2)
            signs = (signs[..., None] * sign_of(places)).flatten(2)
        depth = self.target.shape[-1]
        moved = self.source.reshape(-1, depth).index_select(0, rows.flatten())
        return (moved * signs.reshape(-1, 1)).reshape(len(model), *self.target.shape)

    def _of_pairs(self, mode: int, siblings: Sequence[Tensor], source: Tensor) -> Tensor:
        """Contract target [R, ...] and source [b, R', ...] in every pair of root units."""
        moved = self._in_pairs(siblings, source, skip=mode).movedim(mode + 3, 3)
        target = self.target.movedim(mode + 1, 1).flatten(2)[:, None]
        return Family.joined(target @ moved.flatten(4).transpose(3, 4))

    def _in_pairs(self, siblings: Sequence[Tensor], source: Tensor, skip: int | None) -> Tensor:
        """Apply the siblings' blocks of each pair: [b, R', s_1, ...] -> [b, R, R', s_1, ...]."""
        root = len(self.target)
        moved = source[:, None].expand(-1, root, *source.shape[1:])
        for number, matrix in enumerate(siblings):
            if number != skip:
                size = self.target.shape[number + 1]
                blocks = matrix.reshape(-1, root, size, root, size).transpose(2, 3)
                moved = mix(blocks, moved, number + 3)
        return moved

    def _chunk(self, *, pairs: bool) -> int:
        copies = len(self.target) if pairs else 1
        return self.chunk_elements // max(self.target.numel() * copies, 1)


def mix(matrix: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """Apply matrices [*batch, n, n] to one axis of a tensor [*batch, ...]."""
    batch = matrix.ndim - 2
    leading = tensor.movedim(axis, batch)
    mixed = matrix @ leading.flatten(batch + 1)
    return mixed.reshape(leading.shape).movedim(batch, axis)
