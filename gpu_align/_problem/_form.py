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
from gpu_align._problem._stack import flat, squared_norms
from gpu_align._problem._terms import Term
from gpu_align._symmetry import Block, PermutationSpec, Units, Weights, part_elements, part_ranges

AnyTerm = Term | SiblingTerm

_SMALLEST = 2.0**-80  # squared norm


@dataclass(frozen=True)
class Form:
    """The objective `D(pi) = constant - 2 sum_terms <A, pi.B>`.

    Attributes:
        constant: float64 [m], squared norms of both networks less twice what no group can change.
        target_norm: float64 [1], squared norm of the target.
        terms: one for each combination of matrices.
    """

    constant: Tensor
    target_norm: Tensor
    terms: tuple[AnyTerm, ...]


@dataclass(frozen=True)
class Arrangement:
    """A block of a tensor as it is laid out for its term: groups leading, fixed places last.

    Attributes:
        name: of the tensor.
        block: the piece of it.
        variables: of the leading axes.
        siblings: how many of the leading axes are children of one root, which then leads.
        order: the block's factors as they are put one after another.
        shape: of the result, without the last axis.
    """

    name: str
    block: Block
    variables: tuple[str, ...]
    siblings: int
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Extent d of the last axis."""
        return math.prod(factor.size for factor in self.block.factors) // math.prod(self.shape)

    def of(self, tensors: Tensor) -> Tensor:
        """Return the block of a stack of tensors laid out, [m, *shape, d]."""
        part = self.block.unfold(tensors).permute(0, *(number + 1 for number in self.order))
        return part.reshape(len(tensors), *self.shape, -1)

    def undone(self, laid_out: Tensor) -> Tensor:
        """Return what `of` has laid out with one axis per factor of the block, [m, ...]."""
        sizes = (self.block.factors[number].size for number in self.order)
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return laid_out.reshape(len(laid_out), *sizes).permute(0, *(n + 1 for n in back))


def build_form(
    spec: PermutationSpec,
    families: Sequence[Family],
    target: Weights,
    sources: Weights,
    metric: Metric,
    dtype: torch.dtype,
) -> Form:
    """Cut the counted tensors into blocks and gather the blocks of each combination of matrices.

    Args:
        spec: which tensors count, and which axes carry which groups.
        families: of the spec, with the signs that count.
        target: the one model that stays.
        sources: m models, on the same device.
        metric: scales each tensor before it is cut.
        dtype: of the terms; norms and constants are float64.

    Returns:
        The form, on the device of the weights. What needs no change may be a view of them.
    """
    arrange = Arranger(families)
    names = [n for n, t in spec.tensors.items() if t.counted and 0 not in t.shape]
    terms: dict[tuple[tuple[str, ...], int], list[Arrangement]] = {}
    for name in names:
        for block in spec.tensors[name].blocks:
            plan = arrange(name, block)
            terms.setdefault((plan.variables, plan.siblings), []).append(plan)
    fixed = terms.pop(((), 0), [])
    (a, a_norm), (b, b_norm) = (
        _gathered(weights, names, list(terms.values()), metric, dtype)
        for weights in (target, sources)
    )
    constant = a_norm + b_norm - 2 * _fixed_inner(target, sources, fixed, metric)
    parts = zip(terms, a, b, strict=True)
    made = tuple(_term(*key, target[0], source) for key, target, source in parts)
    return Form(constant, a_norm, made)


def safe_exponent(form: Form, target: Weights, metric: Metric) -> int:
    """Return the power of two by which weights are to be divided, so that products stay in range.

    It is 0 for norms between 2^-40 and 2^40, of which float32 holds the products. Only the target
    is looked at, so that no source's answer depends on another source.
    """
    if form.target_norm.is_meta:
        return 0  # there are no values
    if _SMALLEST <= float(form.target_norm) <= 1 / _SMALLEST:
        return 0
    peaks = [
        float(_scaled(metric, target[name]).abs().max())
        for name, tensor in target.spec.tensors.items()
        if tensor.counted and 0 not in tensor.shape
    ]
    return math.frexp(max(peaks, default=0.0))[1]


def _term(variables: tuple[str, ...], siblings: int, target: Tensor, source: Tensor) -> AnyTerm:
    if siblings:
        return SiblingTerm(variables, siblings, target, source)
    return Term(variables, target, source)


def _gathered(
    weights: Weights,
    names: Sequence[str],
    terms: Sequence[Sequence[Arrangement]],
    metric: Metric,
    dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor]:
    """Return the blocks of each term side by side, [m, *shape, d], and the squared norms, [m].

    Each tensor is scaled once, in parts of the models, and written to where it belongs.
    """
    found: list[Tensor] = []
    places: dict[str, list[tuple[Arrangement, Tensor]]] = {name: [] for name in names}
    for plans in terms:
        whole = plans[0].name if len(plans) == 1 and metric.is_plain else None
        if whole is not None and weights.is_kept and weights[whole].dtype == dtype:
            found.append(plans[0].of(weights[whole]).contiguous())
            continue
        depths = [plan.depth for plan in plans]
        shape = (len(weights), *plans[0].shape, sum(depths))
        found.append(torch.empty(shape, dtype=dtype, device=weights.device))
        for plan, place in zip(plans, found[-1].split(depths, dim=-1), strict=True):
            places[plan.name].append((plan, place))
    norms = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    for name, put in places.items():
        elements = math.prod(weights.spec.tensors[name].shape)
        for start, stop in part_ranges(len(weights), elements, part_elements(weights.device)):
            tensors = _scaled(metric, weights.some(name, start, stop))
            norms[start:stop].add_(squared_norms(tensors))
            for plan, place in put:
                place[start:stop].copy_(plan.of(tensors))
    return found, norms


def _fixed_inner(
    target: Weights, sources: Weights, fixed: Sequence[Arrangement], metric: Metric
) -> Tensor:
    """Return the inner product of what no group can change, float64 [m]."""
    inner = torch.zeros(len(sources), dtype=torch.float64, device=sources.device)
    for plan in fixed:
        a = flat(plan.of(_scaled(metric, target[plan.name]))).to(torch.float64)
        for start, stop in part_ranges(len(sources), a.shape[1], part_elements(sources.device)):
            b = flat(plan.of(_scaled(metric, sources.some(plan.name, start, stop))))
            inner[start:stop].add_((b.to(torch.float64) * a).sum(1))
    return inner


def _scaled(metric: Metric, tensors: Tensor) -> Tensor:
    """Return a stack scaled in float64, or as it is where that changes nothing."""
    return tensors if metric.is_plain else metric.scaled_each(tensors)


class Arranger:
    """Says how a block is laid out, from the families of the spec."""

    def __init__(self, families: Sequence[Family]) -> None:
        members = [
            (family, member) for family in families for member in (family.root, *family.children)
        ]
        self.family = {member.group: family for family, member in members}
        self.member = {member.group: member for _, member in members}
        self.rank = {member.group: number for number, (_, member) in enumerate(members)}

    def __call__(self, name: str, block: Block) -> Arrangement:
        units = {n: factor for n, factor in block.units.items() if factor.group in self.member}
        free = sorted(units, key=lambda n: self.rank[units[n].group])
        children = [n for n in free if not self._is_root(units[n])]
        roots = [self.family[units[n].group].root.group for n in children]
        # A fixed root without children beside it is like any fixed place.
        free = [n for n in free if not self._is_fixed(units[n]) or units[n].group in roots]
        fixed = [n for n in range(len(block.factors)) if n not in free]
        crowded = [root for root in dict.fromkeys(roots) if roots.count(root) > 1]
        if len(crowded) > 1:
            raise SpecError(
                f"tensor {name!r} has several children of both {crowded[0]!r} and {crowded[1]!r}, "
                "which is not supported; fix one of them in the spec"
            )
        siblings = [n for n, root in zip(children, roots, strict=True) if root in crowded]
        axes = [[n] for n in siblings]
        for n in free:
            if n in siblings or units[n].group in roots:
                continue  # a root goes with its children
            axes.append([n] if self._is_root(units[n]) else [self._root_of(n, block), n])
        lead = [self._root_of(siblings[0], block)] if siblings else []
        return Arrangement(
            name,
            block,
            variables=tuple(self._matrix(units[axis[-1]]) for axis in axes),
            siblings=len(siblings),
            order=(*lead, *(n for axis in axes for n in axis), *fixed),
            shape=(
                *(units[n].size for n in lead),
                *(math.prod(units[n].size for n in axis) for axis in axes),
            ),
        )

    def _is_root(self, factor: Units) -> bool:
        return self.family[factor.group].root.group == factor.group

    def _is_fixed(self, factor: Units) -> bool:
        return self._is_root(factor) and self.family[factor.group].fixed

    def _root_of(self, number: int, block: Block) -> int:
        return block.numbers_of(self.family[block.units[number].group].root.group)[0]

    def _matrix(self, factor: Units) -> str:
        member = self.member[factor.group]
        return signed_matrix(member.group) if member.signed and factor.power else member.group
