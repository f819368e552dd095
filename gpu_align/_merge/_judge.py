"""Judge: what says how good networks between two trained ones are."""

from dataclasses import dataclass, field
from typing import Self

import torch

from gpu_align._align import Model
from gpu_align._device import choose_engine
from gpu_align._errors import InputError
from gpu_align._merge._statistics import Statistics
from gpu_align._network import BATCH_SIZE, Data, Examples, Loss, Score, evaluate, loss_function
from gpu_align._symmetry import StateDict

_BATCHES = 20
"""The least batches that a standard error is taken from, where there are so many examples."""

STATISTICS = 2000
"""Examples on which the statistics of batch norms are measured."""


@dataclass(frozen=True)
class Judge:
    """Scores state dicts of a model on test data, or on what is held back.

    Attributes:
        model: what is run.
        examples: what it is scored on.
        part: which part of the data these are: "test" or "held".
        loss: see `loss_function`.
        device: what it is run on.
        statistics: measures batch norms anew, on the part that is fitted on.
        in_double: whether it is run in float64.
    """

    model: Model
    examples: Examples
    part: str
    loss: str | Loss
    device: torch.device
    statistics: Statistics = field(repr=False)
    in_double: bool = False

    @classmethod
    def of(
        cls,
        model: Model,
        data: Data,
        loss: str | Loss = "auto",
        *,
        device: str | torch.device = "auto",
        statistics: int = STATISTICS,
        in_double: bool = False,
    ) -> Self:
        """Make one of data.

        Raises:
            InputError: there are no targets, no such loss, or too few examples for statistics.
        """
        loss_function(loss)
        data = model.fitted(data)
        examples = data.held if data.test is None else data.test
        if not examples.have_targets:
            raise InputError("a barrier needs targets, and the data have none; give pairs (x, y)")
        if statistics < 2:
            raise InputError(f"expected at least 2 examples for statistics, got {statistics}")
        place = choose_engine(device).device
        measured = Statistics(model, data.fit, statistics, place, in_double=in_double)
        part = "held" if data.test is None else "test"
        return cls(model, examples, part, loss, place, measured, in_double)

    @property
    def loss_name(self) -> str:
        """What the loss is called."""
        return self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", "own")

    def score(self, state: StateDict, *, reestimated: bool = False) -> Score:
        """Return the score of a state dict of the module.

        Args:
            state: what is run.
            reestimated: whether its batch norms get the statistics of the data before.
        """
        return self.score_on(
            self.examples, self.statistics.measured(state) if reestimated else state
        )

    def score_on(self, examples: Examples, state: StateDict) -> Score:
        """Return the score of a state dict on other examples."""
        return evaluate(
            *(self.model.module, state, examples, self.loss),
            batch_size=min(BATCH_SIZE, -(-len(examples) // _BATCHES)),
            device=self.device,
            in_double=self.in_double,
        )
