"""What a search is."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic

from gpu_align._problem import Hypotheses
from gpu_align._search._run import Run
from gpu_align._search._state import M, State


class Search(ABC, Generic[M]):
    """A way to look for a good permutation; it is stateless, all state is in a `State`."""

    name: ClassVar[str]

    @property
    def hypotheses_per_model(self) -> int:
        """How many hypotheses of each model it holds at most; batches are cut to fit them.

        A search that does not say so counts as one of 32.
        """
        return 32

    @abstractmethod
    def init(self, run: Run, start: Hypotheses | None) -> State[M]:
        """Return the state before the first step; `start` are hypotheses to begin from."""

    @abstractmethod
    def step(self, run: Run, state: State[M]) -> State[M]:
        """Return the state after one more step; the caller counts it."""
