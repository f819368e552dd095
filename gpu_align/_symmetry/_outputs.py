"""The outputs of a model: their names, and which of them are to be kept."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import SUPPORTED_NODES, tree_unflatten
from torch.utils.hooks import RemovableHandle

from gpu_align._errors import InputError, folded
from gpu_align._symmetry._flat_graph import Program

Kept = str | int | Sequence[str | int]
"""Names or numbers of outputs that must be kept."""

_ONLY = "output"
"""The name of an output that is alone."""

_SHOWN_NAMES = 20


def named_leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Go through what a forward returns, in order.

    Yields:
        The name of each leaf and the leaf: keys, fields and numbers that lead to it, with dots.
    """
    parts = _parts(value)
    if parts is None:
        yield name or _ONLY, value
        return
    for part, inner in parts:
        yield from named_leaves(inner, f"{name}.{part}" if name else str(part))


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the names and values that an object is made of; None if it is a leaf."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, torch.distributions.Distribution):
        kinds = (Tensor, torch.distributions.Distribution)
        return [(name, part) for name, part in vars(value).items() if isinstance(part, kinds)]
    if type(value) in SUPPORTED_NODES:
        return list(enumerate(SUPPORTED_NODES[type(value)].flatten_fn(value)[0]))
    return None


def output_tensors(result: object) -> dict[str, Tensor]:
    """Return the tensors among what a forward returns, by their names."""
    return {name: leaf for name, leaf in named_leaves(result) if isinstance(leaf, Tensor)}


def passed_over(result: object) -> list[str]:
    """Name the outputs that no tensor can be reached in, such as caches."""
    plain = (Tensor, bool, int, float, complex, str, bytes, type(None))
    return [
        f"{name} ({type(leaf).__name__})"
        for name, leaf in named_leaves(result)
        if not isinstance(leaf, plain)
    ]


def choose_outputs(names: Sequence[str], kept: Kept | None) -> list[str]:
    """Return the names of outputs that are kept; all of them by default.

    Args:
        names: of all outputs that are tensors.
        kept: a name keeps also what lies in an output of that name; a number counts the outputs
            that the forward returns.

    Raises:
        InputError: there is no such output.
    """
    if kept is None:
        return list(names)
    wanted = [kept] if isinstance(kept, str | int) else list(kept)
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    found: set[str] = set()
    for output in wanted:
        inside = [n for n in names if n == output or n.startswith(f"{output}.")]
        number = int(output) if str(output).isdecimal() else len(tops)
        if not inside and number < len(tops):
            inside = [n for n in names if n.partition(".")[0] == tops[number]]
        if not inside:
            raise InputError(
                f"the model has no output {output!r}; it has: {folded(list(names), _SHOWN_NAMES)}"
            )
        found.update(inside)
    if not found:
        raise InputError("expected at least one output to keep, got none; leave outputs out")
    return [name for name in names if name in found]


def plain_outputs(model: nn.Module) -> RemovableHandle:
    """Let a module return its tensors by name, until the handle that comes back is removed."""
    return model.register_forward_hook(lambda module, arguments, result: output_tensors(result))


def output_names(program: Program) -> list[str]:
    """Return the names of what a program returns, in the order of its graph."""
    numbers = tree_unflatten(range(program.out_spec.num_leaves), program.out_spec)
    return [name for name, _ in named_leaves(numbers)]


def outputs_of_graph(
    program: Program, graph: fx.Graph, kept: Kept | None
) -> list[tuple[fx.Node, str]]:
    """Return the values of a program's graph that must stay as they are, and their names.

    What it writes into buffers is among them, without a name.

    Args:
        program: what was traced.
        graph: its graph, flat.
        kept: see `choose_outputs`.

    Raises:
        InputError: there is no such output.
    """
    names = iter(output_names(program))
    returned = graph.output_node().args[0]
    assert isinstance(returned, tuple | list)
    specs = program.graph_signature.output_specs
    all_named = [
        (value, next(names) if spec.kind is OutputKind.USER_OUTPUT else "")
        for value, spec in zip(returned, specs, strict=True)
    ]
    named = [(value, name) for value, name in all_named if isinstance(value, fx.Node)]
    chosen = choose_outputs([name for _, name in named if name], kept)
    return [(value, name) for value, name in named if not name or name in chosen]
