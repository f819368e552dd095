"""Similarities by the row-distance kernels, in the place of torch's products."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpu_align._problem._signed import is_signed
from gpu_align._problem._terms import Term

if TYPE_CHECKING:
    from gpu_align._problem._problem import AlignmentProblem
    from gpu_align.kernels._rows import PackedRows, RowProblem
    from gpu_align.kernels.row_distance import RowDistance

_MOST_MOVED = 4
"""Other groups up to which a similarity is updated: each is a launch that writes the matrix."""


def kernel_products(problem: "AlignmentProblem") -> "KernelProducts | None":
    """Return the products of a problem by kernels; None for float64, which they do not have."""
    return KernelProducts(problem) if problem.dtype == torch.float32 else None


class KernelProducts:
    """Computes what the unary similarity and the plain terms of a problem make up.

    The weights are laid out for the kernels when a matrix is first asked for.
    """

    def __init__(self, problem: "AlignmentProblem") -> None:
        self._problem = problem
        self._packed: dict[str, PackedRows | None] = {}

    def similarity(self, matrix: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """See `AlignmentProblem.similarity`; terms of siblings are left out."""
        from gpu_align.kernels.row_distance import row_distance

        rows, unary = self._rows(matrix), self._problem.unary[matrix]
        if rows is None:
            return unary[model]
        total = row_distance([self._row_problem(rows, perms, model)])[0]
        return total.add_(unary if len(unary) == 1 else unary[model])

    def updated(
        self,
        matrix: str,
        similarity: Tensor,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        model: Tensor,
    ) -> Tensor:
        """See `AlignmentProblem.updated_similarity`; one other group after the other."""
        from gpu_align.kernels.row_update import RowUpdate, row_distance_update

        rows = self._rows(matrix)
        if rows is None:
            return similarity
        others = list(dict.fromkeys(name for term in rows.terms for name in term.others))
        plain = all(len(t.others) <= 2 and len({*t.others}) == len(t.others) for t in rows.terms)
        if not plain or len(others) > _MOST_MOVED:
            return self.similarity(matrix, after, model)
        total, perms = similarity.contiguous(), dict(before)
        index = torch.arange(len(model), device=model.device)
        for moved in others:
            perms[moved] = after[moved]
            problem = self._row_problem(rows, perms, model)
            update = RowUpdate(problem, total, index, moved, before[moved])
            total = row_distance_update([update])[0]
        return total

    def prepares(self, matrix: str) -> bool:
        """Say whether `prepared` takes a matrix: its terms have at most two others each."""
        rows = self._rows(matrix)
        terms = self._problem.touching(matrix)
        plain = all(isinstance(term, Term) for term in terms)
        return rows is not None and plain and all(len(t.others) <= 2 for t in rows.terms)

    def prepared(
        self,
        matrices: Sequence[str],
        perms: Mapping[str, Tensor],
        model: Tensor,
        active: Tensor,
        out: Sequence[Tensor],
    ) -> "RowDistance":
        """See `AlignmentProblem.prepared_similarity`."""
        from gpu_align.kernels.row_distance import RowDistance

        problems = []
        for matrix in matrices:
            rows = self._rows(matrix)
            assert rows is not None
            plain = self._row_problem(rows, perms, model)
            problems.append(replace(plain, unary=self._problem.unary[matrix], active=active))
        return RowDistance(problems, out=out)

    def _rows(self, matrix: str) -> "PackedRows | None":
        from gpu_align.kernels._rows import RowTerm, pack_rows

        if matrix not in self._packed:
            terms = [
                RowTerm(term.target, term.source, term.matrices, place)
                for term in self._problem.touching(matrix)
                if isinstance(term, Term)
                for place, name in enumerate(term.matrices)
                if name == matrix
            ]
            self._packed[matrix] = pack_rows(terms) if terms else None
        return self._packed[matrix]

    def _row_problem(
        self, rows: "PackedRows", perms: Mapping[str, Tensor], model: Tensor
    ) -> "RowProblem":
        from gpu_align.kernels._rows import RowProblem

        others = {name for term in rows.terms for name in term.others}
        signed = any(is_signed(name) for name in others)
        return RowProblem(rows, {name: perms[name] for name in others}, model, signed)
