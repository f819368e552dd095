"""What is the same for all networks of one call."""

from dataclasses import dataclass

from gpu_align._device import CPU, Engine
from gpu_align._problem import METRICS, Metric
from gpu_align._search import Budget, ProgressCallback, Search


@dataclass(frozen=True)
class Settings:
    """How networks are aligned.

    Attributes:
        search: how to look; None takes the portfolio that fits the problem.
        metric: what the distance is made of.
        engine: what to compute with.
        seed: of the search.
        budget: of steps or seconds; several batches share the seconds.
        progress: called after every step of the search.
    """

    search: Search | None = None
    metric: Metric = METRICS["l2"]
    engine: Engine = CPU
    seed: int = 0
    budget: Budget | None = None
    progress: ProgressCallback | None = None
