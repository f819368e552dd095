"""Batch norms that normalise by the statistics of the batch, whatever is stored."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gpu_align._errors import ModelError

_ARGUMENTS = (
    *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
)

_TRACED = torch.ops.aten.batch_norm.default
"""The op of a program."""

_TRACED_ARGUMENTS = tuple(argument.name for argument in _TRACED._schema.arguments)

_OF_BATCH = {"running_mean": None, "running_var": None, "training": True}


class BatchStatistics(TorchFunctionMode):
    """Within it batch norms use the mean and variance of what they are given, and store nothing.

    A network halfway between two others has other statistics than their average: this is their
    re-estimation on the batch (Jordan et al., REPAIR, ICLR 2023, section 2).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is batch_norm or func is _TRACED:
            names = _ARGUMENTS if func is batch_norm else _TRACED_ARGUMENTS
            given = dict(zip(names, args, strict=False)) | kwargs
            return func(**given | _OF_BATCH)
        return func(*args, **kwargs)


def is_in_training(program: nn.Module) -> bool:
    """Whether the batch norms of a program use the statistics of the batch as they were traced."""
    return any(
        dict(zip(_TRACED_ARGUMENTS, node.args, strict=False)).get("training") is True
        for node in _batch_norms(program.modules())
    )


def _batch_norms(modules: Iterable[nn.Module]) -> Iterator[fx.Node]:
    for module in modules:
        if isinstance(module, fx.GraphModule):
            yield from module.graph.find_nodes(op="call_function", target=_TRACED)


class Together(fx.Interpreter):
    """Runs the parts of a batch op by op through a program, with batch norms over all of them.

    Args:
        program: the module of a program.
        tensor: returns a tensor of it by its name; None for what is no tensor of its own.
        counts: how many examples of each part count in the statistics; those behind them repeat
            the first ones.
        sizes: how many each part has.

    Raises:
        ModelError: a batch norm lies in a part of the graph that is run as a whole, or examples lie
            on one axis with something else where they are normalised.
    """

    def __init__(
        self,
        program: fx.GraphModule,
        tensor: Callable[[str], Tensor | None],
        counts: Sequence[int],
        sizes: Sequence[int],
    ) -> None:
        super().__init__(program, garbage_collect_values=True)
        self._tensor, self._counts, self._sizes = tensor, counts, sizes
        if any(_batch_norms(part for part in program.modules() if part is not program)):
            raise ModelError(
                "the program has batch norms in a part that is run without gradients or in another "
                "precision, so that they cannot see examples beyond those that it takes at once; "
                "export it with a dynamic batch, or take norms='stored'"
            )

    def of(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        """Return what the program returns for each part.

        Args:
            parts: for each its flat inputs.
        """
        inputs = [_Parts(values) for values in zip(*parts, strict=True)]
        found = self.run(*inputs, enable_io_processing=False)
        graph: Any = self.module.graph
        return [graph.process_outputs(_of_part(found, number)) for number in self._numbers]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a tensor of the state, or a part of the graph."""
        own = self._tensor(target)
        return super().get_attr(target, args, kwargs) if own is None else own

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a module of checks on each part."""
        call = super().call_module
        return _Parts([call(target, *_of_part((args, kwargs), n)) for n in self._numbers])

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run an op on each part, and a batch norm on all of them."""
        if target is _TRACED:
            return self._normalised(dict(zip(_TRACED_ARGUMENTS, args, strict=False)) | kwargs)
        call = super().call_function
        if not _has_parts((args, kwargs)):
            return call(target, args, kwargs)
        return _Parts([call(target, *_of_part((args, kwargs), n)) for n in self._numbers])

    @property
    def _numbers(self) -> range:
        return range(len(self._counts))

    def _normalised(self, given: Mapping[str, Any]) -> Any:
        if not isinstance(given["input"], _Parts):
            return _TRACED(**{**given, **_OF_BATCH})
        parts = given["input"].values
        if [len(part) for part in parts] != list(self._sizes):
            raise ModelError(
                "the program puts examples and something else on one axis before a batch norm, so "
                "that it is not known which entries are of examples that count; export it with a "
                "dynamic batch (dynamic_shapes), or take norms='stored'"
            )
        counted = [part[:count] for part, count in zip(parts, self._counts, strict=True)]
        joined = _TRACED(**{**given, **_OF_BATCH, "input": torch.cat(counted)})
        pairs = zip(joined.split(list(self._counts)), parts, strict=True)
        return _Parts([again(own, len(part)) for own, part in pairs])


class _Parts:
    """The values of one op, one for each part."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = list(values)


def _of_part(value: Any, number: int) -> Any:
    return tree_map(lambda x: x.values[number] if isinstance(x, _Parts) else x, value)


def _has_parts(value: Any) -> bool:
    found: list[bool] = []
    tree_map(lambda x: found.append(isinstance(x, _Parts)), value)
    return any(found)


def again(tensor: Tensor, count: int) -> Tensor:
    """Return the first `count` entries of a tensor, or again from the first one where it ends."""
    if count == len(tensor):
        return tensor
    return tensor[torch.arange(count, device=tensor.device) % len(tensor)]
