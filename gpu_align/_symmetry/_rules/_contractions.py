"""Contractions: the summed axes of both operands are one class.

Each visits its index space, which has every index exactly once: where rows and columns are in one
class, that class is there twice.
"""

from typing import Any

from gpu_align._symmetry._classes import AxisClass, product
from gpu_align._symmetry._rules._table import Call, TensorAxes, broadcast, rule, without


@rule("linear")
def _linear(
    call: Call, input: TensorAxes, weight: TensorAxes, bias: TensorAxes | None = None
) -> TensorAxes:
    call.unify(input[-1], weight[-1])
    if bias is not None:
        broadcast(call, [TensorAxes(weight[:-1]), bias])
    call.visit((*input, *weight[:-1]))
    return TensorAxes((*input[:-1], *weight[:-1]))


@rule("conv1d", "conv2d", "conv3d")
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


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
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


@rule("convolution")
def _any_convolution(call: Call, transposed: bool, **arguments: Any) -> TensorAxes:
    chosen: Any = _transposed_convolution if transposed else _convolution
    return chosen(call, **arguments)


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


@rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(
    call: Call,
    self: TensorAxes,
    other: TensorAxes | None = None,
    mat2: TensorAxes | None = None,
    vec: TensorAxes | None = None,
    tensor: TensorAxes | None = None,
    **_: Any,
) -> TensorAxes:
    right = next(axes for axes in (other, mat2, vec, tensor) if axes is not None)
    call.unify(self[-1], right[-2] if len(right) > 1 else right[0])
    batch = broadcast(call, [TensorAxes(self[:-2]), TensorAxes(right[:-2])])
    rows = self[-2:-1] if len(self) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    call.visit((*batch, *rows, self[-1], *columns))
    return TensorAxes((*batch, *rows, *columns))


@rule("addmm")
def _addmm(
    call: Call, self: TensorAxes, mat1: TensorAxes, mat2: TensorAxes, **_: Any
) -> TensorAxes:
    return broadcast(call, [self, _matmul(call, mat1, mat2)])


@rule("baddbmm")
def _baddbmm(
    call: Call, self: TensorAxes, batch1: TensorAxes, batch2: TensorAxes, **_: Any
) -> TensorAxes:
    return broadcast(call, [self, _matmul(call, batch1, batch2)])


@rule("outer", "ger")
def _outer(call: Call, self: TensorAxes, vec2: TensorAxes) -> TensorAxes:
    return TensorAxes((*self, *vec2))


@rule("bilinear")
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


@rule("einsum")
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


@rule("embedding")
def _embedding(call: Call, weight: TensorAxes, indices: TensorAxes, **_: Any) -> TensorAxes:
    call.pin(weight[:1])
    return TensorAxes((*indices, *weight[1:]))


@rule("cosine_similarity")
def _cosine_similarity(
    call: Call, x1: TensorAxes, x2: TensorAxes, dim: int = 1, **_: Any
) -> TensorAxes:
    met = broadcast(call, [x1, x2])
    call.visit(met)
    return without(met, [dim])
