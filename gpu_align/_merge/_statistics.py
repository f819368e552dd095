"""Statistics of batch norms, measured anew for networks between two trained ones."""

from functools import cached_property

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gpu_align._align import Model
from gpu_align._merge._recalibrate import Candidate, Norms, Part, has_batch_norms, recalibrate
from gpu_align._network import Batch, Examples, Traces, Walk
from gpu_align._process import MODULES
from gpu_align._symmetry import StateDict, double, duplicate, unwrapped


class Statistics:
    """What batch norms are given on examples, which is not what they were trained with.

    The statistics of averaged layers are not the average of their statistics (Jordan et al.,
    REPAIR, ICLR 2023).

    Attributes:
        examples: how many are measured on.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        count: int,
        device: torch.device,
        *,
        in_double: bool = False,
    ) -> None:
        """Take what is traced when it is first needed.

        Args:
            model: left as it was.
            examples: batches of one size are made of each lot; what is over is left out.
            count: how many of them are measured on, the first ones; those of a batch at least.
            device: where it is run.
            in_double: whether to run in float64.
        """
        network = model.network
        if in_double:
            with MODULES:
                network = duplicate(unwrapped(model.module)).double()
        self._traces = Traces(network, model.outputs, device)
        placed = self._traces.batches(self._traces.enough(examples, count), equal=True)
        self._batches = [_in_double(batch) if in_double else batch for batch in placed]
        self.examples = sum(map(len, self._batches))

    @cached_property
    def are_needed(self) -> bool:
        """Whether the network has batch norms with statistics.

        Raises:
            ModelError: it cannot be traced.
        """
        return has_batch_norms(self._traces.of(self._batches[0])[0])

    def measured(self, state: StateDict) -> dict[str, Tensor]:
        """Return a state dict of the module with its statistics measured anew."""
        models = [self._traces.of(batch)[0] for batch in self._batches]
        own = {name: tensor.clone() for name, tensor in self._traces.placed(state).items()}
        walk = Walk(models, [batch.inputs for batch in self._batches], [own])
        alone = Candidate(0, (), (), Norms())
        recalibrate(walk, [alone], Part(range(len(models)), ()))
        return walk.states[0]


def _in_double(batch: Batch) -> Batch:
    return Batch(tree_map(double, batch.inputs), batch.targets)
