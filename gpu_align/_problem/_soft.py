"""The objective of a problem at doubly stochastic matrices."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gpu_align._problem._form import AnyTerm


class SoftEvaluation:
    """What an `AlignmentProblem` is worth at doubly stochastic matrices."""

    constant: Tensor
    unary: dict[str, Tensor]
    terms: tuple[AnyTerm, ...]

    def soft_value(self, soft: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return F of doubly stochastic matrices, to be maximised, float64 [b].

        Args:
            soft: variable -> [b, n, n].
            model: int64 [b].
        """
        total = self.constant.new_zeros(len(model))
        for variable, unary in self.unary.items():
            total += (unary[model] * soft[variable]).sum((1, 2), dtype=torch.float64)
        for term in self.terms:
            gradient = term.soft_similarity(0, soft, model)
            total += (gradient * soft[term.variables[0]]).sum((1, 2), dtype=torch.float64)
        return total

    def soft_similarity(
        self,
        soft: Mapping[str, Tensor],
        model: Tensor,
        out: Mapping[str, Tensor] | None = None,
        beat: Callable[[str], None] | None = None,
    ) -> dict[str, Tensor]:
        """Return the gradient of F at doubly stochastic matrices, variable -> [b, n, n].

        Args:
            soft: variable -> [b, n, n].
            model: int64 [b].
            out: variable -> [b, n, n] to write to; default new memory.
            beat: told before each product how many are done.
        """
        gradient = {
            variable: torch.index_select(
                unary, 0, model, out=None if out is None else out[variable]
            )
            for variable, unary in self.unary.items()
        }
        modes = [(t, mode, m) for t in self.terms for mode, m in enumerate(t.variables)]
        for number, (term, mode, variable) in enumerate(modes):
            if beat is not None:
                beat(f"product {number + 1} of {len(modes)}")
            gradient[variable] += term.soft_similarity(mode, soft, model)
        return gradient
