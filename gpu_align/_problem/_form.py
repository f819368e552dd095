"""From checkpoints to terms: the counted tensors are cut into blocks and gathered by group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._errors import SpecError
from gpu_align._problem._family import Family
from gpu_align._problem._metric import Metric
from gpu_align._problem._sibling_term import SiblingTerm
from gpu_align._problem._signed import signed_matrix
from gpu_align._problem._stack import flat, stacked
from gpu_align._problem._terms import Term
from gpu_align._symmetry._axis import Factor
from gpu_align._symmetry._spec import Block, PermutationSpec, StateDict

AnyTerm = Term | SiblingTerm


@dataclass(frozen=True)
class Form:
    """The objective `D(pi) = constant - 2 sum_terms <A, pi.B>`.

    Attributes:
        constant: float64 [m], squared norms of both networks less twice what no group can change.
        terms: one for each combination of matrices.
    """

    constant: Tensor
    terms: tuple[AnyTerm, ...]


@dataclass(frozen=True)
class _Arrangement:
    """How a block is laid out for its term: groups leading, fixed places last.

    Attributes:
        matrices: of the leading axes.
        siblings: how many of the leading axes are children of one root, which then leads.
        order: the block's factors as they are put one after another.
        shape: of the result, without the last axis.
    """

    matrices: tuple[str, ...]
    siblings: int
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, block: Block, tensors: Tensor) -> Tensor:
        """Return the block of a stack of tensors laid out, [m, *shape, d]."""
        part = block.unfold(tensors).permute(0, *(number + 1 for number in self.order))
        return part.reshape(len(tensors), *self.shape, -1)


def build_form(
    spec: PermutationSpec,
    families: Sequence[Family],
    target: StateDict,
    sources: Sequence[StateDict],
    metric: Metric,
    dtype: torch.dtype,
) -> Form:
    """Cut the counted tensors into blocks and gather the blocks of each combination of matrices.

    Args:
        spec: which axes carry which groups.
        families: of the spec, with the signs that count.
        target: name -> tensor.
        sources: one state dict per model m.
        metric: scales each tensor before it is cut.
        dtype: of the terms; norms and constants are float64.
    """
    arrange = _Arranger(families)
    constant = torch.zeros(len(sources), dtype=torch.float64)
    parts: dict[tuple[tuple[str, ...], int], list[tuple[Tensor, Tensor]]] = {}
    for name, tensor_spec in spec.tensors.items():
        if not tensor_spec.counted or 0 in tensor_spec.shape:
            continue
        a = metric.scaled(spec.tensor_of(name, target).cpu())[None]
        b = metric.scaled_each(stacked(spec, name, sources))
        constant += a.square().sum() + flat(b).square().sum(1)
        for block in tensor_spec.blocks():
            plan = arrange(name, block)
            a_block, b_block = plan.of(block, a)[0], plan.of(block, b)
            if plan.matrices:
                kept = parts.setdefault((plan.matrices, plan.siblings), [])
                kept.append((a_block.to(dtype), b_block.to(dtype)))
            else:
                constant -= 2 * (b_block * a_block).flatten(1).sum(1)
    return Form(constant, tuple(_term(*key, blocks) for key, blocks in parts.items()))


def _term(
    matrices: tuple[str, ...], siblings: int, blocks: Sequence[tuple[Tensor, Tensor]]
) -> AnyTerm:
    target, source = _joined([a for a, _ in blocks]), _joined([b for _, b in blocks])
    if siblings:
        return SiblingTerm(matrices, siblings, target, source)
    return Term(matrices, target, source)


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    """Join blocks along their last axis; a single one is not copied."""
    return (blocks[0] if len(blocks) == 1 else torch.cat(list(blocks), dim=-1)).contiguous()


class _Arranger:
    """Says how a block is laid out, from the families of the spec."""

    def __init__(self, families: Sequence[Family]) -> None:
        members = [(family, member) for family in families for member in family.members]
        self.family = {member.group: family for family, member in members}
        self.member = {member.group: member for _, member in members}
        self.rank = {member.group: number for number, (_, member) in enumerate(members)}

    def __call__(self, name: str, block: Block) -> _Arrangement:
        factors = block.factors
        free = sorted(
            (n for n, factor in enumerate(factors) if factor.group in self.member),
            key=lambda n: self.rank[factors[n].group or ""],
        )
        fixed = [n for n in range(len(factors)) if n not in free]
        children = [n for n in free if not self._is_root(factors[n])]
        roots = [self.family[factors[n].group or ""].root.group for n in children]
        crowded = [root for root in dict.fromkeys(roots) if roots.count(root) > 1]
        if len(crowded) > 1:
            raise SpecError(
                f"tensor {name!r} has several children of both {crowded[0]!r} and {crowded[1]!r}, "
                "which is not supported; fix one of them in the spec"
            )
        siblings = [n for n, root in zip(children, roots, strict=True) if root in crowded]
        axes = [[n] for n in siblings]
        for n in free:
            if n in siblings or factors[n].group in roots:
                continue  # a root goes with its children
            axes.append([n] if self._is_root(factors[n]) else [self._root_of(n, factors), n])
        lead = [self._root_of(siblings[0], factors)] if siblings else []
        return _Arrangement(
            matrices=tuple(self._matrix(factors[axis[-1]]) for axis in axes),
            siblings=len(siblings),
            order=(*lead, *(n for axis in axes for n in axis), *fixed),
            shape=(
                *(factors[n].size for n in lead),
                *(math.prod(factors[n].size for n in axis) for axis in axes),
            ),
        )

    def _is_root(self, factor: Factor) -> bool:
        return self.family[factor.group or ""].root.group == factor.group

    def _root_of(self, number: int, factors: Sequence[Factor]) -> int:
        root = self.family[factors[number].group or ""].root.group
        return next(n for n, factor in enumerate(factors) if factor.group == root)

    def _matrix(self, factor: Factor) -> str:
        member = self.member[factor.group or ""]
        return signed_matrix(member.group) if member.signed and factor.power else member.group
