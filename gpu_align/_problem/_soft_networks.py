"""Networks under doubly stochastic matrices, differentiable in these."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._problem._form import Arrangement, Arranger
from gpu_align._problem._problem import AlignmentProblem
from gpu_align._problem._sibling_term import mix
from gpu_align._problem._signed import unsigned


class SoftNetworks:
    """The sources of a problem with mixtures of units in the place of units.

    A permutation matrix gives the permuted network, its signs included.
    """

    def __init__(self, problem: AlignmentProblem) -> None:
        """Lay out every tensor on which groups lie."""
        arrange = Arranger(list(problem.families.values()))
        self._problem = problem
        self._plans = {
            name: [arrange(name, block) for block in tensor.blocks]
            for name, tensor in problem.spec.tensors.items()
            if tensor.groups and 0 not in tensor.shape
        }
        self._roots = {
            child.group: family.root.group
            for family in problem.families.values()
            for child in family.children
        }

    def of(self, soft: Mapping[str, Tensor], model: int) -> dict[str, Tensor]:
        """Return one source under the matrices, by the names of the spec.

        Args:
            soft: variable -> [1, n, n].
            model: which source.
        """
        sources = self._problem.sources
        return {
            name: self._mixed(name, sources.some(name, model, model + 1), soft)[0]
            if name in self._plans
            else sources.some(name, model, model + 1)[0]
            for name in self._problem.spec.tensors
        }

    def _mixed(self, name: str, tensors: Tensor, soft: Mapping[str, Tensor]) -> Tensor:
        plans = self._plans[name]
        tensors = tensors.to(self._problem.dtype)
        parts = [plan.undone(self._moved(plan, plan.of(tensors), soft)) for plan in plans]
        if len(parts) == 1:
            return parts[0].reshape(tensors.shape)
        whole = torch.empty_like(tensors, memory_format=torch.contiguous_format)
        for plan, part in zip(plans, parts, strict=True):
            plan.block.unfold(whole).copy_(part)
        return whole

    def _moved(self, plan: Arrangement, laid_out: Tensor, soft: Mapping[str, Tensor]) -> Tensor:
        """Apply the matrices of a block, [1, *shape, d]."""
        first = 1 + bool(plan.siblings)  # siblings stand behind their root
        for number in range(plan.siblings, len(plan.variables)):
            laid_out = mix(soft[plan.variables[number]], laid_out, first + number)
        return self._siblings(plan, laid_out, soft) if plan.siblings else laid_out

    def _siblings(self, plan: Arrangement, laid_out: Tensor, soft: Mapping[str, Tensor]) -> Tensor:
        """Apply the matrices of children of one root, each of which has the root's as a factor."""
        count = laid_out.shape[1]
        moved = laid_out[:, None].expand(-1, count, *laid_out.shape[1:])
        for number, variable in enumerate(plan.variables[: plan.siblings]):
            moved = mix(_pairs(soft[variable], count), moved, 3 + number)
        root = self._roots.get(unsigned(plan.variables[0]), "")
        if root in soft:
            share = soft[root].clamp_min(torch.finfo(moved.dtype).tiny)
            extra = share ** (plan.siblings - 1)
            moved = moved / extra.reshape(*extra.shape, *[1] * (moved.ndim - 3))
        return moved.sum(2)


def _pairs(matrix: Tensor, count: int) -> Tensor:
    """Return the blocks of a child's matrix, [1, n, n] -> [1, R, R, s, s]."""
    size = matrix.shape[1] // count
    return matrix.reshape(-1, count, size, count, size).transpose(2, 3)
