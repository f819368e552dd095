"""Contractions: the summed axes of both operands are one class and have opposite powers.

Each visits its index space, which has every index exactly once: where rows and columns are in one
class, that class is there twice.
"""

from collections.abc import Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, product
from gpu_align._symmetry._power import (
    AxisPowers,
    TensorPowers,
    UnmatchedError,
    even,
    multiplied,
    set_equal,
    set_opposite,
    set_zero,
)
from gpu_align._symmetry._rules._pointwise import powers_of_product, powers_of_sum
from gpu_align._symmetry._rules._table import (
    Call,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    tensors_given,
    without,
)
from gpu_align._symmetry._splits import TensorAxes


@axis_rule("linear")
def _linear(
    call: Call, input: TensorAxes, weight: TensorAxes, bias: TensorAxes | None = None
) -> TensorAxes:
    call.unify(input[-1], weight[-1])
    if bias is not None:
        broadcast(call, [TensorAxes(weight[:-1]), bias])
    call.visit((*input, *weight[:-1]))
    return TensorAxes((*input[:-1], *weight[:-1]))


@power_rule("linear")
def _linear_powers(
    call: PowerCall, input: TensorPowers, weight: TensorPowers, bias: TensorPowers | None = None
) -> TensorPowers:
    set_opposite(input[-1], weight[-1])
    made = TensorPowers((*input[:-1], *weight[:-1]))
    return made if bias is None else powers_of_sum(call, [made, bias])


@axis_rule("conv1d", "conv2d", "conv3d")
def _convolution(
    call: Call,
    input: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None = None,
    groups: int = 1,
    **_: Any,
) -> TensorAxes:
    """Each of the groups makes its own outputs from its own inputs, the same number in each."""
    call = _named_with_groups(call, groups)
    *batch, channels = input[: 2 - len(weight)]
    group, outer = AxisClass(groups), AxisClass(weight[0].size // groups)
    call.unify(channels, product([group, weight[1]]))
    call.unify(weight[0], product([group, outer]))
    call.visit((*batch, group, outer, weight[1]))
    return _map(call, input, weight, bias, weight[0])


@power_rule("conv1d", "conv2d", "conv3d")
def _convolution_powers(
    call: PowerCall,
    input: TensorPowers,
    weight: TensorPowers,
    bias: TensorPowers | None = None,
    groups: int = 1,
    **_: Any,
) -> TensorPowers:
    """The weight is [groups * out, in, ...] for an input of groups * in channels."""
    count = len(weight) - 2
    *batch, channels = input[:-count]
    shared, inner = _apart(channels, weight[1])
    same, made = weight[0].powers[: len(shared.powers)], weight[0].powers[len(shared.powers) :]
    if inner.powers or made:
        _check_product(groups, channels, weight[0])
    set_opposite(inner, weight[1])
    passed = multiplied(shared, AxisPowers(weight[0].axis, same), (False, True))
    out = AxisPowers(weight[0].axis, passed.powers + made)
    return _with_bias(call, [*batch, out], count, bias)


@axis_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(
    call: Call,
    input: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None = None,
    groups: int = 1,
    **_: Any,
) -> TensorAxes:
    """The weight is [in, out / groups, ...], the other way round than a convolution's."""
    call = _named_with_groups(call, groups)
    *batch, channels = input[: 2 - len(weight)]
    group, inner = AxisClass(groups), AxisClass(weight[0].size // groups)
    call.unify(channels, weight[0])
    call.unify(weight[0], product([group, inner]))
    call.visit((*batch, group, inner, weight[1]))
    return _map(call, input, weight, bias, product([group, weight[1]]))


@power_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution_powers(
    call: PowerCall,
    input: TensorPowers,
    weight: TensorPowers,
    bias: TensorPowers | None = None,
    groups: int = 1,
    **_: Any,
) -> TensorPowers:
    """The weight is [groups * in, out, ...] for an output of groups * out channels."""
    count = len(weight) - 2
    *batch, channels = input[:-count]
    out = call.output[-count - 1]
    number = len(out.powers) - len(weight[1].powers)
    shared, inner = channels.powers[:number], channels.powers[number:]
    same, reads = weight[0].powers[:number], weight[0].powers[number:]
    if inner or weight[1].powers:
        _check_product(groups, channels, out)
    set_opposite(AxisPowers(channels.axis, inner), AxisPowers(weight[0].axis, reads))
    passed = multiplied(
        AxisPowers(channels.axis, shared), AxisPowers(weight[0].axis, same), (False, True)
    )
    made = AxisPowers(out.axis, passed.powers + weight[1].powers)
    return _with_bias(call, [*batch, made], count, bias)


@axis_rule("convolution")
def _any_convolution(call: Call, transposed: bool, **arguments: Any) -> TensorAxes:
    chosen: Any = _transposed_convolution if transposed else _convolution
    return chosen(call, **arguments)


@power_rule("convolution")
def _any_convolution_powers(call: PowerCall, transposed: bool, **arguments: Any) -> TensorPowers:
    chosen: Any = _transposed_convolution_powers if transposed else _convolution_powers
    return chosen(call, **arguments)


def _apart(axis: AxisPowers, last: AxisPowers) -> tuple[AxisPowers, AxisPowers]:
    """Take an axis apart that is a product: its first factors, and those of `last`."""
    number = len(axis.powers) - len(last.powers)
    if number < 0:
        raise UnmatchedError
    return AxisPowers(axis.axis, axis.powers[:number]), AxisPowers(axis.axis, axis.powers[number:])


def _check_product(groups: int, *axes: AxisPowers) -> None:
    """Only of a product the last powers are those inside each group."""
    if groups > 1 and any(len(axis.axis.flat_parts(Structure.CONCAT)) > 1 for axis in axes):
        raise UnmatchedError


def _with_bias(
    call: PowerCall, axes: list[AxisPowers], count: int, bias: TensorPowers | None
) -> TensorPowers:
    """Return the output of a convolution with its `count` spatial axes."""
    made = TensorPowers((*axes, *call.output[-count:]))
    if bias is None:
        return made
    one = AxisPowers(AxisClass(1))
    return powers_of_sum(call, [made, TensorPowers((*bias, *[one] * count))])


def _named_with_groups(call: Call, groups: int) -> Call:
    if groups == 1:
        return call
    return Call(f"{call.op} with groups={groups}", call.shapes, visited=call.visited)


def _map(
    call: Call, input: TensorAxes, weight: TensorAxes, bias: TensorAxes | None, out: AxisClass
) -> TensorAxes:
    """Return the axes of a map with channels `out`; its places and the kernel's are pinned."""
    count = len(weight) - 2
    call.pin((*weight[2:], *input[-count:]))
    if bias is not None:
        call.unify(bias[0], out)
    places = (call.pinned(size) for size in call.shape[-count:])
    return TensorAxes((*input[: -count - 1], out, *places))


@axis_rule("matmul", "mm", "bmm", "mv", "dot", "vdot")
def _matmul(call: Call, self: TensorAxes, **others: Any) -> TensorAxes:
    right = tensors_given(others)[0]
    call.unify(self[-1], right[-2] if len(right) > 1 else right[0])
    batch = broadcast(call, [TensorAxes(self[:-2]), TensorAxes(right[:-2])])
    rows = self[-2:-1] if len(self) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    call.visit((*batch, *rows, self[-1], *columns))
    return TensorAxes((*batch, *rows, *columns))


@power_rule("matmul", "mm", "bmm", "mv", "dot", "vdot")
def _matmul_powers(call: PowerCall, self: TensorPowers, **others: Any) -> TensorPowers:
    right = tensors_given(others)[0]
    set_opposite(self[-1], right[-2] if len(right) > 1 else right[0])
    batches = TensorPowers(self[:-2]), TensorPowers(right[:-2])
    for batch, whole in zip(batches, (self, right), strict=True):
        batch.is_stored = whole.is_stored
    rows = self[-2:-1] if len(self) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return TensorPowers((*powers_of_product(*batches), *rows, *columns))


@axis_rule("addmm", "baddbmm")
def _addmm(call: Call, self: TensorAxes, **factors: Any) -> TensorAxes:
    left, right = tensors_given(factors)
    return broadcast(call, [self, _matmul(call, left, other=right)])


@power_rule("addmm", "baddbmm")
def _addmm_powers(call: PowerCall, self: TensorPowers, **factors: Any) -> TensorPowers:
    left, right = tensors_given(factors)
    return powers_of_sum(call, [self, _matmul_powers(call, left, other=right)])


@axis_rule("addmv")
def _addmv(call: Call, self: TensorAxes, mat: TensorAxes, vec: TensorAxes, **_: Any) -> TensorAxes:
    return broadcast(call, [self, _matmul(call, mat, vec=vec)])


@axis_rule("outer", "ger")
def _outer(call: Call, self: TensorAxes, vec2: TensorAxes) -> TensorAxes:
    return TensorAxes((*self, *vec2))


@power_rule("outer", "ger")
def _outer_powers(call: PowerCall, self: TensorPowers, vec2: TensorPowers) -> TensorPowers:
    return TensorPowers((*self, *vec2))


@axis_rule("bilinear")
def _bilinear(
    call: Call,
    input1: TensorAxes,
    input2: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None = None,
) -> TensorAxes:
    batch = broadcast(call, [TensorAxes(input1[:-1]), TensorAxes(input2[:-1])])
    call.unify(input1[-1], weight[1])
    call.unify(input2[-1], weight[2])
    if bias is not None:
        call.unify(bias[0], weight[0])
    call.visit((*batch, *weight))
    return TensorAxes((*batch, weight[0]))


@axis_rule("einsum")
def _einsum(call: Call, equation: str, tensors: list[TensorAxes], **_: Any) -> TensorAxes:
    """An index is one class wherever it stands; "..." are further indices, aligned at the end."""
    terms, arrow, made = equation.replace(" ", "").partition("->")
    indices: dict[str, AxisClass] = {}
    ellipses: list[TensorAxes] = []
    for term, axes in zip(terms.split(","), tensors, strict=True):
        before, _dots, after = term.partition("...")
        end = len(axes) - len(after)
        ellipses.append(TensorAxes(axes[len(before) : end]))
        named = (*axes[: len(before)], *axes[end:])
        for letter, axis in zip(before + after, named, strict=True):
            met = indices.setdefault(letter, axis)
            if met.size == 1:
                indices[letter] = axis
            elif axis.size != 1:
                call.unify(met, axis)
    rest = broadcast(call, ellipses)
    if not arrow:
        letters = terms.replace(".", "").replace(",", "")
        made = "..." + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    first, dots, last = made.partition("...")
    call.visit((*indices.values(), *rest))
    middle = rest if dots else TensorAxes()
    return TensorAxes((*(indices[x] for x in first), *middle, *(indices[x] for x in last)))


@power_rule("einsum")
def _einsum_powers(
    call: PowerCall, equation: str, tensors: list[TensorPowers], **_: Any
) -> TensorPowers:
    """Indices that are summed over stand in two terms, those that are kept in one or two."""
    terms, arrow, made = equation.replace(" ", "").partition("->")
    if not arrow or "." in equation:
        raise UnmatchedError
    found: dict[str, list[tuple[AxisPowers, bool]]] = {}
    for term, axes in zip(terms.split(","), tensors, strict=True):
        for letter, axis in zip(term, axes, strict=True):
            found.setdefault(letter, []).append((axis, axes.is_stored))
    kept = {letter: _met(places, letter in made) for letter, places in found.items()}
    return TensorPowers(kept[letter] for letter in made)


def _met(places: Sequence[tuple[AxisPowers, bool]], is_kept: bool) -> AxisPowers:
    """Return the axis of an index, given where it stands and whether in a stored tensor."""
    (first, stored), *others = places
    if len(others) > 1:
        raise UnmatchedError
    for other, other_stored in others:
        if is_kept:
            return multiplied(first, other, (stored, other_stored))
        set_opposite(first, other)
    if not is_kept and not others:
        set_zero([first])
    return first


@axis_rule("inner")
def _inner(call: Call, self: TensorAxes, other: TensorAxes) -> TensorAxes:
    """Of scalars it is their product."""
    if not self or not other:
        return TensorAxes((*self, *other))
    call.unify(self[-1], other[-1])
    call.visit((*self, *other[:-1]))
    return TensorAxes((*self[:-1], *other[:-1]))


@power_rule("inner")
def _inner_powers(call: PowerCall, self: TensorPowers, other: TensorPowers) -> TensorPowers:
    if self and other:
        set_opposite(self[-1], other[-1])
        return TensorPowers((*self[:-1], *other[:-1]))
    return TensorPowers((*self, *other))


@axis_rule("tensordot")
def _tensordot(
    call: Call, self: TensorAxes, other: TensorAxes, dims_self: list[int], dims_other: list[int]
) -> TensorAxes:
    for first, second in zip(dims_self, dims_other, strict=True):
        call.unify(self[first], other[second])
    kept = without(other, dims_other)
    call.visit((*self, *kept))
    return TensorAxes((*without(self, dims_self), *kept))


@axis_rule("cdist", "_euclidean_dist")
def _distances(call: Call, x1: TensorAxes, x2: TensorAxes, **_: Any) -> TensorAxes:
    """Points [..., P, M] and [..., R, M], distances [..., P, R]."""
    call.unify(x1[-1], x2[-1])
    batch = broadcast(call, [TensorAxes(x1[:-2]), TensorAxes(x2[:-2])])
    call.visit((*batch, x1[-2], x2[-2], x1[-1]))
    return TensorAxes((*batch, x1[-2], x2[-2]))


@power_rule("cdist", "_euclidean_dist")
def _distances_powers(
    call: PowerCall, x1: TensorPowers, x2: TensorPowers, **_: Any
) -> TensorPowers:
    """A distance does not see the signs of coordinates."""
    set_equal(x1[-1], x2[-1])
    even(x1[-1])
    set_zero((*x1[:-1], *x2[:-1]))
    return call.output


@axis_rule("pairwise_distance")
def _pairwise_distance(
    call: Call, x1: TensorAxes, x2: TensorAxes, keepdim: bool = False, **_: Any
) -> TensorAxes:
    met = broadcast(call, [x1, x2])
    call.visit(met)
    return TensorAxes((*met[:-1], *[AxisClass(1)] * keepdim))


@axis_rule("cosine_similarity")
def _cosine_similarity(
    call: Call, x1: TensorAxes, x2: TensorAxes, dim: int = 1, **_: Any
) -> TensorAxes:
    met = broadcast(call, [x1, x2])
    call.visit(met)
    return without(met, [dim])
