"""Calibration: merged networks made of parents in one order of units, set right on data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from gpu_align._device import free_bytes
from gpu_align._errors import InputError
from gpu_align._merge._average import average
from gpu_align._merge._distill import PASSES
from gpu_align._merge._recalibrate import (
    Candidate,
    Method,
    Norms,
    Part,
    Refit,
    Repair,
    has_batch_norms,
    recalibrate,
)
from gpu_align._network import Batch, Examples, Traces, Walk, live_bytes
from gpu_align._symmetry import StateDict

METHODS: dict[str, Method] = {
    "norms": Norms(),
    "repair": Repair(),
    "rescale": Repair(means=False),
    "refit": Refit(),
    "refit-parents": Refit(through=False),
}
"""How a merged network is set right, by the names of the command line."""

FIT = 1500
"""Examples that are fitted on by default."""

JUDGED = 750
"""Examples that choose by default."""

_CHEAP = 2**25
"""Bytes up to which both are raised, of the values of one network on all that are fitted on."""

_FIT_TIMES, _JUDGED_TIMES = 8, 4
"""By how much both are raised at most, for networks whose values are few."""

_PRODUCTS = 2**36
"""Weights times examples up to which a training takes seconds."""

BATCH = 125
"""Most examples of a batch of a walk."""

_RIDGE_SHARE = 6
"""One of so many batches chooses the strength of the ridge."""

_SHARE = 0.25
"""Of the free memory, for the values of all examples; as much is needed beside them."""


@dataclass(frozen=True)
class Calibration:
    """What merged networks are set right with.

    Attributes:
        traces: of the model, on the device where it is run.
        examples: what is measured and fitted on; all of them pass an op together.
        progress: called with the number of ops done, and of all.
    """

    traces: Traces
    examples: Examples
    progress: Callable[[int, int], None] | None = None

    @property
    def has_batch_norms(self) -> bool:
        """Whether what is run has batch norms with running statistics."""
        return has_batch_norms(self.traces.of(self._first(()))[0])

    @property
    def refusal(self) -> str | None:
        """Why layers cannot be fitted: no batch is left for the ridge. None if they can."""
        least = self.traces.limits.least
        if least == 1 or sum(len(lot) // least for lot in self.examples.lots) > 1:
            return None
        return (
            f"the program takes {self.traces.limits}, and layers are fitted on two batches or "
            f"more, which {len(self.examples)} examples are not; give more data, or export it with "
            "a smaller or a dynamic batch (dynamic_shapes)"
        )

    @property
    def count(self) -> int:
        """How many examples are fitted on by default: more where they cost little.

        Layers of such networks see an example at one place, a convolution at hundreds of them. A
        ridge needs several of the batches that a program takes.
        """
        most = round(FIT * min(max(self._room, 1.0), _FIT_TIMES))
        return max(most, _RIDGE_SHARE * self.traces.limits.least)

    @property
    def judged(self) -> int:
        """How many examples choose: parents know these by heart, so that differences are small."""
        return round(JUDGED * min(max(self._room, 1.0), _JUDGED_TIMES))

    @property
    def is_cheap(self) -> bool:
        """Whether networks are so small that to train one for a short while costs seconds."""
        weights = sum(map(Tensor.numel, self.traces.placed({}).values()))
        return self._room >= 1 and weights * PASSES * self.count <= _PRODUCTS

    @property
    def _room(self) -> float:
        """How many times `FIT` examples fit what costs little."""
        return _CHEAP / self._bytes(()) / FIT

    def fitting(self, parents: int, methods: Sequence[Method]) -> "Calibration":
        """Return a calibration on no more examples than fit the memory.

        Args:
            parents: how many networks are merged.
            methods: what is done beside each other.
        """
        networks = parents + len(methods)
        room = free_bytes(self.traces.device) * _SHARE / (self._bytes(methods) * networks)
        if room >= len(self.examples):
            return self
        count = max(int(room), 2 * self.traces.limits.least)
        return replace(self, examples=self.traces.enough(self.examples, count))

    def _bytes(self, methods: Sequence[Method]) -> float:
        """Return what the values of an example take in one network, at least a byte."""
        first = self._first(methods)
        return max(live_bytes(self.traces.of(first)[0]) / len(first), 1.0)

    def _first(self, methods: Sequence[Method]) -> Batch:
        return next(self.traces.batches(self.examples, self._size(methods), equal=True))

    def _size(self, methods: Sequence[Method]) -> int:
        """Return the most examples of a batch: a ridge needs several batches."""
        most = len(self.examples) // _RIDGE_SHARE if _need_ridge(methods) else BATCH
        return max(min(BATCH, most), 1)

    def merged(
        self, parents: Sequence[StateDict], weights: Sequence[float], methods: Sequence[Method]
    ) -> list[dict[str, Tensor]]:
        """Return the mean of networks, set right by each of some methods; all in one walk.

        Args:
            parents: state dicts of the model, their units in one order.
            weights: of the parents, summing to 1.
            methods: what is done.

        Raises:
            InputError: there are too few examples; ModelError: the model fails on them.
        """
        start = average(parents, weights)
        return self.mended([start] * len(methods), parents, weights, methods)

    def mended(
        self,
        starts: Sequence[StateDict],
        parents: Sequence[StateDict],
        weights: Sequence[float],
        methods: Sequence[Method],
    ) -> list[dict[str, Tensor]]:
        """Return networks that were merged already, each set right by its method; see `merged`."""
        if _need_ridge(methods) and self.refusal:
            raise InputError(self.refusal)
        batches = list(self.traces.batches(self.examples, self._size(methods), equal=True))
        models = [self.traces.of(batch)[0] for batch in batches]
        if all(isinstance(method, Norms) for method in methods):
            if not has_batch_norms(models[0]):
                return [dict(start) for start in starts]
            parents, weights = (), ()
        own = [_copied(self.traces.placed(start)) for start in starts]
        walk = Walk(
            models,
            [batch.inputs for batch in batches],
            [*map(self.traces.placed, parents), *own],
        )
        numbers = range(len(parents))
        candidates = [
            Candidate(len(parents) + number, numbers, weights, method)
            for number, method in enumerate(methods)
        ]
        recalibrate(walk, candidates, _part(len(batches)), self.progress)
        return [
            _like(start, walk.states[one.state])
            for one, start in zip(candidates, starts, strict=True)
        ]


def _need_ridge(methods: Sequence[Method]) -> bool:
    return any(isinstance(method, Refit) for method in methods)


def _part(batches: int) -> Part:
    """Return which batches are fitted, and which choose the strength of a ridge."""
    if batches == 1:
        return Part((0,), (0,))
    held = range(0, batches, _RIDGE_SHARE)
    return Part([number for number in range(batches) if number not in held], held)


def _copied(state: StateDict) -> dict[str, Tensor]:
    """Return a state dict in memory of its own; names that share a tensor share the copy."""
    copies: dict[object, Tensor] = {}
    for tensor in state.values():
        copies.setdefault(_memory(tensor), tensor.clone())
    return {name: copies[_memory(tensor)] for name, tensor in state.items()}


def _memory(tensor: Tensor) -> object:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _like(start: StateDict, state: StateDict) -> dict[str, Tensor]:
    """Return the tensors of a state dict in the dtypes and on the devices of another one."""
    return {name: state[name].to(own) if name in state else own for name, own in start.items()}
