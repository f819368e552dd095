"""What a search needs while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpu_align._assignment import AbstractAssignmentSolver, AutoAssignment
from gpu_align._device import FreeMemory, RandomStream
from gpu_align._problem import AlignmentProblem
from gpu_align._search._clock import Clock, OutOfTime
from gpu_align._search._executor import DeviceExecutor, Executor, HostExecutor
from gpu_align._search._scale import tolerance

T = TypeVar("T")

_BYTES = 32
"""Free memory that a move wants for each entry of a similarity: copies in several precisions."""


@dataclass
class Run:
    """What a search needs while it runs.

    Attributes:
        problem: what is solved.
        random: the one source of random numbers.
        solver: solves the assignment problems.
        assignments: number of assignment problems given to the solver so far.
        splits: what did not fit into memory at once -> in what parts it was computed.
        clock: the time, and who is told of it.
        memory: of the problem's device.
        executor: how the host works together with what computes.
    """

    problem: AlignmentProblem
    random: RandomStream
    solver: AbstractAssignmentSolver = field(default_factory=AutoAssignment)
    assignments: int = 0
    splits: dict[str, str] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    _prepared: tuple[object, Any] = (None, None)
    _counting: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.memory = FreeMemory(self.problem.device)
        parts = self.problem, self.solver, self.memory
        self.executor: Executor = (
            HostExecutor(*parts)
            if self.problem.engine.waits
            else DeviceExecutor(*parts, self.splits)
        )

    def heartbeat(self, part: str) -> None:
        """Give a sign of life within a long step; it ends here if its time is spent.

        Args:
            part: what is being done, such as "product 3 of 8".

        Raises:
            OutOfTime: the budget of seconds is spent. The search ends with the state before the
                step.
        """
        self.clock.heartbeat(part)
        if self.clock.late():
            raise OutOfTime

    def assign(self, similarity: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Return the best assignment of each matrix.

        Args:
            similarity: [b, n, n], to be maximised.
            wanted: bool [w], which are wanted, each of as many matrices in a row as there are for
                it; the others may get any permutation. Default all.

        Returns:
            int64 [b, n].
        """
        with self._counting:  # parts of a batch are assigned on several threads
            self.assignments += len(similarity)
        return self.executor.assign(similarity, wanted)

    def match(self, similarity: Tensor, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the best assignments [b, n] and their values [b]; see `assign`."""
        columns = self.assign(similarity, wanted)
        return columns, similarity.gather(2, columns[..., None]).sum((1, 2))

    def parts(self, group: str, chosen: Tensor) -> Iterator[Tensor]:
        """Cut hypotheses into parts whose similarities fit into memory; the split is noted.

        Args:
            group: root of the family that is moved.
            chosen: int64 [c] on the host.
        """
        variables = self.problem.families[group].variables
        entries = sum(self.problem.sizes[variable] ** 2 for variable in variables)
        most = self.memory.fitting(_BYTES * entries)
        if len(chosen) > most:
            self.splits[group] = f"{most} of {len(chosen)} hypotheses at a time"
        yield from chosen.split(most) if len(chosen) else ()

    def waves(self, count: int) -> Iterator[Tensor]:
        """Cut hypotheses per model into waves whose soft matrices fit into memory.

        Yields:
            int64 [k] on the device, the owners of the random numbers of a wave.
        """
        entries = self.problem.models * sum(size**2 for size in self.problem.sizes.values())
        most = self.memory.fitting(_BYTES * entries)
        if count > most:
            self.splits["soft matrices"] = f"{most} of {count} hypotheses of each model at a time"
        yield from torch.arange(count, device=self.problem.device).split(most)

    def owners(self, batch: int) -> Tensor:
        """Return whose random numbers each hypothesis of a batch gets, int64 [b].

        Hypotheses of different models share them, so that no model depends on what else is in
        the batch.
        """
        models = self.problem.models
        return torch.arange(batch // models, device=self.problem.device).repeat(models)

    def normal(self, owners: Tensor, *shape: int) -> Tensor:
        """Draw standard normal numbers in the problem's dtype, [b, *shape]."""
        return self.random.normal(owners, *shape, dtype=self.problem.dtype)

    def tolerance(self, model: Tensor) -> Tensor:
        """Return the decrease of D below which a move is rounding noise, float64 [b]."""
        return tolerance(self.problem, model)

    @contextmanager
    def about(self, models: Tensor | None) -> Iterator["Run"]:
        """Give a run of some of the models, which shares all but the problem with this one.

        Args:
            models: int64 [k] on the host; None for all of them, which is this run itself.
        """
        if models is None:
            yield self
            return
        inside = self.prepared(models, lambda: self._part(models))
        inside.assignments = 0
        yield inside
        self.assignments += inside.assignments

    def _part(self, models: Tensor) -> "Run":
        problem = self.problem.of_sources(models.tolist())
        return Run(problem, self.random, self.solver, splits=self.splits, clock=self.clock)

    def prepared(self, of: object, make: Callable[[], T]) -> T:
        """Return what was made of an object in an earlier step, or make it now.

        States are stored, so they hold nothing that can be made anew: the run does, the last one
        only, until it is released.
        """
        if self._prepared[0] is not of:
            self.release()
            self._prepared = of, make()
        made: T = self._prepared[1]
        return made

    def release(self) -> None:
        """Give back the memory of what was prepared."""
        self._prepared = None, None
