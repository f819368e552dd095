"""Runner: a module that is run on batches of any size, or a program in parts that it takes."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from gpu_align._errors import ModelError
from gpu_align._network._batch_statistics import BatchStatistics, Together, is_in_training
from gpu_align._network._examples import Batch
from gpu_align._network._limits import Limits
from gpu_align._network._loss import main_output
from gpu_align._symmetry import Reference, StateDict, as_arguments, copied

_WHOLE = 4
"""Parts from which a last one that is filled up costs little beside them."""


class Runner(Reference):
    """A module on batches of any size, in evaluation mode.

    A program that takes other numbers of examples is run in parts. The last part is filled up with
    examples again, of which nothing is returned, so that all count, and each once.

    Args:
        module: left as it was.
        device: where it is run.
        in_double: whether in float64.
        main: whether of what a program returns in parts only the main output is looked at, see
            `main_output`; else all outputs must have an axis of examples.
        batch_statistics: whether batch norms use the statistics of the batch, see
            `BatchStatistics`; of all its parts.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        *,
        in_double: bool = False,
        main: bool = False,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__(module, device=device, in_double=in_double)
        self._limits = Limits.of(module)
        self._main, self._batch_statistics = main, batch_statistics

    def at_once(self, size: int) -> int:
        """Return how many examples are given to `each`: a multiple of `size`.

        It is `size` itself unless most of what a program runs would be examples again.
        """
        if self._limits.least == 1:
            return size
        return max(-(-_WHOLE * self._limits.least // size), 1) * size

    def run(self, state: StateDict, inputs: object, *, grad: bool = False) -> object:
        """Run it under a state dict and return what it does; see `each`."""
        [outputs] = self.each(state, inputs, None, grad=grad)
        return outputs

    def each(
        self, state: StateDict, inputs: object, size: int | None, *, grad: bool = False
    ) -> Iterator[object]:
        """Run it under a state dict and yield what it returns, batch by batch.

        Args:
            state: its tensors.
            inputs: of examples, `at_once` of them at most.
            size: of a batch; None for all inputs.
            grad: whether gradients can be taken through it.

        Raises:
            ModelError: the forward fails, or what a program returns cannot be put together.
        """
        arguments = as_arguments(inputs)
        made = self.result(state, arguments, grad=grad)
        total = len(Batch(arguments))
        size = size or total
        if not isinstance(made, _Returned):
            if total <= size:
                yield made
                return
            made = _Returned([main_output(made) if self._main else made], [total], [total])
        for start in range(0, total, size):
            yield made.between(start, min(start + size, total))

    def _call(self, state: dict[str, Tensor], arguments: Any) -> object:
        """Run it once, or in parts; see `Reference`."""
        if self._limits == Limits():
            return self._called(state, arguments)
        batch = Batch(arguments)
        if self._limits.allow(len(batch)):
            return self._called(state, arguments)
        parts = list(self._limits.parts(batch))
        sizes = [len(part) for part in parts]
        counts = [*sizes[:-1], len(batch) - sum(sizes[:-1])]
        if self._batch_statistics:
            made = self._together(state, [part.inputs for part in parts], counts, sizes)
        elif is_in_training(self.model):
            raise ModelError(
                "the program was exported in training mode, in which its batch norms use the "
                "statistics of what is run at once, and that is not a whole batch; export it after "
                "model.eval()"
            )
        else:
            made = [self._called(state, part.inputs) for part in parts]
        made = list(map(main_output, made)) if self._main else made
        return _Returned(made, counts, sizes)

    def _called(self, state: dict[str, Tensor], arguments: Any) -> object:
        if not self._batch_statistics:
            return super()._call(state, arguments)
        with BatchStatistics():
            return super()._call(state, arguments)

    def _together(
        self,
        state: dict[str, Tensor],
        parts: Sequence[Any],
        counts: Sequence[int],
        sizes: Sequence[int],
    ) -> list[Any]:
        program: Any = self.model

        def flat(part: Any) -> list[Any]:
            args, kwargs = part
            # What is given by name may come in another order than the program has it in.
            named = inspect.signature(program.forward).bind(*args, **kwargs)
            leaves = tree_leaves(copied(tuple(named.arguments.values())))
            return [self._in_dtype(leaf) for leaf in leaves]

        def tensor(name: str) -> Tensor | None:
            return state.get(self.places.get(name, name))

        return Together(program, tensor, counts, sizes).of(list(map(flat, parts)))


@dataclass(frozen=True)
class _Returned:
    """What a program returned for the parts of a batch.

    Attributes:
        outputs: of each part.
        counts: how many of the examples of each part count, the first ones.
        sizes: how many each part has.
    """

    outputs: Sequence[Any]
    counts: Sequence[int]
    sizes: Sequence[int]

    def between(self, start: int, stop: int) -> Any:
        """Return the outputs for some of the examples.

        Raises:
            ModelError: one has no axis of examples, or it is not known which one it is.
        """
        return tree_unflatten(
            [
                value if axis is None else value.narrow(axis, start, stop - start)
                for value, axis in self._whole
            ],
            tree_structure(self.outputs[0]),
        )

    @cached_property
    def _whole(self) -> list[tuple[Any, int | None]]:
        """The leaves of the outputs for all examples, and the axis of these in each."""
        found: list[tuple[Any, int | None]] = []
        for leaves in zip(*map(tree_leaves, self.outputs), strict=True):
            if not isinstance(leaves[0], Tensor):
                found.append((leaves[0], None))
                continue
            axis = self._axis(leaves)
            if axis is None:
                found.append((_alike(leaves), None))
                continue
            pairs = zip(leaves, self.counts, strict=True)
            counted = [leaf.narrow(axis, 0, count) for leaf, count in pairs]
            found.append((torch.cat(counted, axis), axis))
        return found

    def _axis(self, leaves: Sequence[Tensor]) -> int | None:
        """Return the axis of examples: the only one of their number, None if there is none.

        Raises:
            ModelError: there are several; of an only output it is the first one.
        """
        pairs = list(zip(leaves, self.sizes, strict=True))
        fitting = [
            axis
            for axis in range(leaves[0].ndim)
            if all(leaf.shape[axis] == size for leaf, size in pairs)
        ]
        tensors = [leaf for leaf in tree_leaves(self.outputs[0]) if isinstance(leaf, Tensor)]
        if len(fitting) > 1 and (0 not in fitting or len(tensors) > 1):
            raise ModelError(
                f"the program returns a tensor {list(leaves[0].shape)} of which several axes have "
                f"as many entries as there are examples, {self.sizes[0]}; export it with a dynamic "
                "batch (dynamic_shapes), or with a batch of another size"
            )
        return fitting[0] if fitting else None


def _alike(leaves: Sequence[Tensor]) -> Tensor:
    """Return an output that does not depend on the examples.

    Raises:
        ModelError: it does.
    """
    first, *others = leaves
    if others and all(torch.equal(first, other) for other in others):
        return first
    raise ModelError(
        f"the program returns a tensor {list(first.shape)} without an axis of examples, which "
        "cannot be put together from parts of a batch; export it with a dynamic batch "
        "(dynamic_shapes), or without that output"
    )
