"""The ops of a traced graph: what is called, with what, and what comes out.

Here alone is looked at what torch keeps to itself: the schema of an op and the values of the trace.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

Shape = tuple[int, ...]


class Op:
    """One node of a graph as the call of an op.

    Attributes:
        node: the node.
        name: of an ATen op, without `aten::` and overload; "" if it is none.
    """

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        is_aten = isinstance(node.target, torch._ops.OpOverload)
        self._schema = node.target._schema if is_aten else None  # type: ignore[union-attr]
        self.name: str = self._schema.name.removeprefix("aten::") if self._schema else ""

    @property
    def is_item(self) -> bool:
        """Whether it takes one output out of several."""
        return self.node.target is operator.getitem

    @property
    def writes(self) -> bool:
        """Whether it writes into an argument."""
        return self._schema is not None and self._schema.is_mutable

    @property
    def written(self) -> list[str]:
        """Names of the arguments that it writes into."""
        arguments = self._schema.arguments if self._schema else ()
        return [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]

    @property
    def has_out(self) -> bool:
        """Whether it is the overload that writes its outputs into `out=`."""
        return self._schema is not None and any(a.is_out for a in self._schema.arguments)

    def arguments(self, value: Callable[[fx.Node], Any] = lambda node: node) -> dict[str, Any]:
        """Return what an ATen op is called with, by the names of its schema.

        Args:
            value: what stands for a node; by default the node itself.
        """
        args, kwargs = fx.node.map_arg((self.node.args, dict(self.node.kwargs)), value)
        names = [argument.name for argument in self._schema.arguments] if self._schema else []
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def draws(self, arguments: Mapping[str, Any]) -> bool:
        """Whether it draws random numbers; dropout does so in training only.

        Args:
            arguments: what it is called with, see `arguments`.
        """
        target = self.node.target
        if self._schema is None or torch.Tag.nondeterministic_seeded not in target.tags:  # type: ignore[union-attr]
            return False
        given = {a.name: a.default_value for a in self._schema.arguments} | dict(arguments)
        is_training = all(given.get(name) is not False for name in ("train", "training"))
        return is_training and all(given.get(name) != 0 for name in ("p", "dropout_p", "dropout"))

    def item(self, value: Callable[[fx.Node], Any]) -> Any:
        """Return the output that is taken out of several; None of what is not a tuple of them."""
        node, number = cast(tuple[fx.Node, int], self.node.args)
        outputs = value(node)
        return outputs[number] if type(outputs) is tuple else None

    @property
    def shapes(self) -> tuple[Shape, ...] | None:
        """The shapes of its outputs if these are one tensor or a list of them, else None."""
        value = self.node.meta.get("val")
        values = [value] if isinstance(value, Tensor) else value
        if not isinstance(values, tuple | list) or not all(isinstance(v, Tensor) for v in values):
            return None
        shapes = tuple(tuple(extent(size) for size in v.shape) for v in values)
        return None if any(None in shape for shape in shapes) else shapes  # type: ignore[return-value]

    @property
    def gives_tensors(self) -> bool:
        """Whether a tensor comes out, not only sizes or nothing."""
        return any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.node.meta.get("val")))

    @property
    def gives_floats(self) -> bool:
        """Whether all outputs, which are tensors, are of real floating point."""
        return all(torch.is_floating_point(leaf) for leaf in tree_leaves(self.node.meta["val"]))


_DECIDED_BY_DATA = 1_000_003
"""So large and odd that it is no other size by accident, nor a product or part of one."""


def extent(size: object) -> int | None:
    """Return a size as it was when the model was traced.

    For a size that data decide, such as the number of places where a mask is true, a large number
    stands: the same wherever the size is the same.
    """
    if not isinstance(size, torch.SymInt):
        return size if isinstance(size, int) else None
    hint = size.node.hint
    if isinstance(hint, int | torch.SymInt):
        return int(hint)
    stand_ins: dict[Any, int] = {}
    for symbol in size.node.expr.free_symbols:
        kind, number = str(symbol)[0], str(symbol)[1:]
        if kind != "u" or not number.isdecimal():
            return None
        stand_ins[symbol] = _DECIDED_BY_DATA + 2 * int(number)
    return int(size.node.expr.subs(stand_ins))


def bounds(size: object) -> tuple[int, int | None] | None:
    """Return the least and the most that a size of a traced program may be, None for no end.

    Of one that is computed from others, such as twice another one, it is what it was in the trace.

    Returns:
        Both, or None for what is no size.
    """
    if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
        known = size.node.shape_env.bound_sympy(size.node.expr)
        return int(known.lower), int(known.upper) if known.upper.is_Integer else None
    traced = extent(size)
    return None if traced is None else (traced, traced)
