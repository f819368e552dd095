"""Similarities by the row-distance kernels, in the place of torch's products."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from gpu_align._problem._form import AnyTerm
from gpu_align._problem._signed import is_signed
from gpu_align._problem._terms import Term

if TYPE_CHECKING:
    from gpu_align.kernels.row_distance import RowDistance
    from gpu_align.kernels.rows import PackedRows, RowProblem


class KernelSimilarity:
    """Computes what the unary similarity and the plain terms of a problem make up, in float32.

    The weights are laid out for the kernels when a matrix is first asked for.
    """

    def __init__(self, unary: Mapping[str, Tensor], terms: Sequence[AnyTerm]) -> None:
        """Keep what is summed.

        Args:
            unary: variable -> float32 [m, n, n].
            terms: those that couple matrices.
        """
        self._unary, self._terms = unary, terms
        self._packed: dict[str, PackedRows | None] = {}

    def similarity(self, variable: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """See `AlignmentProblem.similarity`; terms of siblings are left out."""
        from gpu_align.kernels.row_distance import RowDistance

        rows = self._rows(variable)
        if rows is None:
            return self._unary[variable][model]
        return RowDistance(self._problem(variable, rows, perms, model)).launch()

    def prepares(self, variable: str) -> bool:
        """Say whether `prepared` takes a matrix: its terms have at most two others each."""
        rows = self._rows(variable)
        terms = (term for term in self._terms if variable in term.variables)
        plain = all(isinstance(term, Term) for term in terms)
        return rows is not None and plain and all(len(t.others) <= 2 for t in rows.terms)

    def prepared(
        self,
        variable: str,
        perms: Mapping[str, Tensor],
        model: Tensor,
        active: Tensor,
        out: Tensor,
    ) -> "RowDistance":
        """See `AlignmentProblem.prepared_similarity`."""
        from gpu_align.kernels.row_distance import RowDistance

        rows = self._rows(variable)
        assert rows is not None
        return RowDistance(self._problem(variable, rows, perms, model, active), out=out)

    def _rows(self, variable: str) -> "PackedRows | None":
        from gpu_align.kernels.rows import RowTerm, pack_rows

        if variable not in self._packed:
            terms = [
                RowTerm(term.target, term.source, term.variables, mode)
                for term in self._terms
                if isinstance(term, Term)
                for mode, name in enumerate(term.variables)
                if name == variable
            ]
            signed = any(is_signed(name) for term in terms for name in term.others)
            self._packed[variable] = pack_rows(terms, signed=signed) if terms else None
        return self._packed[variable]

    def _problem(
        self,
        variable: str,
        rows: "PackedRows",
        perms: Mapping[str, Tensor],
        model: Tensor,
        active: Tensor | None = None,
    ) -> "RowProblem":
        from gpu_align.kernels.rows import RowProblem

        others = {name: perms[name] for term in rows.terms for name in term.others}
        return RowProblem(rows, others, model, self._unary[variable], active)
