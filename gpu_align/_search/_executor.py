"""Where the host may look at values and where it only queues: what an engine means for a search.

A search is written once. On the host all values are at hand, so nothing is done for those
hypotheses that need it not. A device works through a queue: the host plans from what it knows,
queues, and looks once after a step, at `check`.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, final

import torch
from torch import Tensor

from gpu_align._assignment import (
    STATUS_OF_CODE,
    AbstractAssignmentSolver,
    AssignmentProblem,
    solve,
    thread_count,
)
from gpu_align._device import FreeMemory, Replay
from gpu_align._errors import AssignmentError
from gpu_align._problem import AlignmentProblem, Hypotheses
from gpu_align._search._parts import PART_ENTRIES, for_each_part, parts_of
from gpu_align._search._similarity_cache import SimilarityCache
from gpu_align._search._workspace import Workspace

T = TypeVar("T")
Heartbeat = Callable[[str], None]
Look = Callable[[Heartbeat], None]
Move = Callable[[], None]
Part = Callable[[slice, Heartbeat], T]


class Executor(Protocol):
    """How the host works together with what computes."""

    def upload(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the host on the problem's device, without waiting for it."""

    def assign(self, similarity: Tensor, wanted: Tensor | None) -> Tensor:
        """Return the best assignment of each matrix; see `Run.assign`."""

    def read(self, *tensors: Tensor) -> list[Tensor]:
        """Return tensors on the host, float64 where they come from a device; waits for it once.

        Raises:
            AssignmentError: an assignment problem has failed; see `check`.
        """

    def look(self, hypotheses: Hypotheses, stale: Tensor) -> Tensor:
        """Return who of a batch has stale groups, bool [b] on the host; `objective` is then known.

        Args:
            hypotheses: the batch.
            stale: bool [b, groups].
        """

    def objective(self, hypotheses: Hypotheses) -> Tensor:
        """Return the objective of a batch on the host, float64 [b]; waits where it is not known."""

    def check(self) -> None:
        """Raise if an assignment problem has failed; waits for the device.

        Raises:
            AssignmentError: with the reason of one of them.
        """

    def movers(self, chosen: Tensor, stale: Tensor, alive: Tensor) -> Tensor:
        """Return which of the chosen hypotheses are moved, as far as the host knows.

        Args:
            chosen: int64 [c] on the host.
            stale: bool [b], whose group may move.
            alive: bool [b] on the host, who had a stale group when the host last looked.
        """

    def forget(self) -> None:
        """Drop what is kept from sweep to sweep: another descent begins, or one has ended."""

    def similarities(
        self, group: str, chosen: Tensor, part: Hypotheses, batch: int
    ) -> Mapping[str, Tensor]:
        """Return the similarities of a family for some hypotheses, variable -> [c, n, n].

        Args:
            group: root of the family.
            chosen: int64 [c], which hypotheses.
            part: these hypotheses.
            batch: number of all hypotheses.
        """

    def workspace(self, batch: int) -> Workspace | None:
        """Return prepared moves of so many hypotheses; None where no group has any."""

    def in_place(self, look: Look, move: Move) -> tuple[Look, Move]:
        """Return a step in place as what may be interrupted and what is done as a whole.

        Args:
            look: computes where to; changes nothing that the step is about.
            move: moves there.
        """

    def exchange(self, present: dict[str, Tensor], other: dict[str, Tensor], name: str) -> None:
        """Give a tensor the values of another, which may get any.

        Args:
            present, other: name -> tensor.
            name: which.
        """

    def in_parts(self, count: int, do: Part[T], heartbeat: Heartbeat) -> list[T]:
        """Do something for a batch of which no hypothesis minds the others.

        Args:
            count: hypotheses of the batch.
            do: takes which hypotheses, and whom to give signs of life; writes to these only. What
                it does in parts of its own is not cut again.
            heartbeat: takes signs of life.

        Returns:
            What was returned for each part, in order.
        """

    def keeps(self, group: str, batch: int) -> bool:
        """Say whether the similarities of a family are kept from sweep to sweep, of all at once."""


@final
class HostExecutor:
    """Computes on the host: values are at hand.

    Attributes:
        cache: of the similarities of a descent.
        part_entries: of the largest tensor of the parts of a batch, at most.
    """

    def __init__(
        self, problem: AlignmentProblem, solver: AbstractAssignmentSolver, memory: FreeMemory
    ) -> None:
        """Take what is solved, by what, and where."""
        self._problem, self._solver = problem, solver
        self._entries = max((size**2 for size in problem.sizes.values()), default=0)
        self.cache = SimilarityCache(problem, memory)
        self.part_entries = PART_ENTRIES

    def upload(self, tensor: Tensor) -> Tensor:
        """See `Executor.upload`."""
        return tensor.to(self._problem.device)

    def assign(self, similarity: Tensor, wanted: Tensor | None) -> Tensor:
        """See `Executor.assign`; all are solved, as only wanted ones are asked for here."""
        return _solved(similarity, self._solver)

    def read(self, *tensors: Tensor) -> list[Tensor]:
        """See `Executor.read`."""
        return list(tensors)

    def look(self, hypotheses: Hypotheses, stale: Tensor) -> Tensor:
        """See `Executor.look`."""
        return stale.any(1)

    def objective(self, hypotheses: Hypotheses) -> Tensor:
        """See `Executor.objective`."""
        return hypotheses.objective

    def check(self) -> None:
        """See `Executor.check`; failures have been raised where they came up."""

    def movers(self, chosen: Tensor, stale: Tensor, alive: Tensor) -> Tensor:
        """See `Executor.movers`: exactly those that may move."""
        return chosen[stale[chosen]]

    def forget(self) -> None:
        """See `Executor.forget`."""
        self.cache.clear()

    def similarities(
        self, group: str, chosen: Tensor, part: Hypotheses, batch: int
    ) -> Mapping[str, Tensor]:
        """See `Executor.similarities`; large ones are updated where the others moved."""
        return self.cache.similarities(group, chosen, part, batch)

    def workspace(self, batch: int) -> Workspace | None:
        """See `Executor.workspace`: there is nothing to prepare."""
        return None

    def in_place(self, look: Look, move: Move) -> tuple[Look, Move]:
        """See `Executor.in_place`."""
        return look, move

    def exchange(self, present: dict[str, Tensor], other: dict[str, Tensor], name: str) -> None:
        """See `Executor.exchange`: they change places."""
        present[name], other[name] = other[name], present[name]

    def in_parts(self, count: int, do: Part[T], heartbeat: Heartbeat) -> list[T]:
        """See `Executor.in_parts`: where torch has one thread, cut for the caches of all cores."""
        parts = parts_of(count, self._entries, thread_count(None), self.part_entries)
        if len(parts) == 1 or torch.get_num_threads() > 1:
            return [do(slice(None), heartbeat)]
        return for_each_part(parts, lambda part: do(part, no_heartbeat), heartbeat)

    def keeps(self, group: str, batch: int) -> bool:
        """See `Executor.keeps`."""
        return self.cache.holds(group, batch)


@final
class DeviceExecutor:
    """Queues work on a device, and reads nothing back before `check`.

    Attributes:
        problem: what is solved.
        memory: of its device.
        splits: what did not fit into memory at once -> in what parts it was computed.
        queue: the solver that works on the device; None where one of the host was asked for.
        worst_code: int64 [1] on the device. Of all assignments there: 0, or why one has failed.
    """

    def __init__(
        self,
        problem: AlignmentProblem,
        solver: AbstractAssignmentSolver,
        memory: FreeMemory,
        splits: dict[str, str],
    ) -> None:
        """Take what is solved, by what, and where."""
        self.problem, self.memory, self.splits = problem, memory, splits
        self.queue, self._solver = solver.device_solver(), solver
        self.worst_code = torch.zeros(1, dtype=torch.int64, device=problem.device)
        self._workspaces: dict[int, Workspace] = {}
        self._known: tuple[Hypotheses, Tensor] | None = None

    def upload(self, tensor: Tensor) -> Tensor:
        """See `Executor.upload`."""
        if self.problem.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.problem.device, non_blocking=True)

    def assign(self, similarity: Tensor, wanted: Tensor | None) -> Tensor:
        """See `Executor.assign`; those not wanted are skipped as problems of size 0."""
        if self.queue is None:
            return _solved(similarity, self._solver)
        sizes = None
        if wanted is not None:
            each = len(similarity) // max(len(wanted), 1)
            sizes = (wanted.long() * similarity.shape[1])[:, None].expand(-1, each).flatten()
        queued = self.queue.enqueue(AssignmentProblem(similarity, maximize=True, sizes=sizes))
        codes = torch.cat([self.worst_code, queued.status_codes])
        self.worst_code.copy_(codes.amax(0, keepdim=True))
        return queued.col_ind

    def read(self, *tensors: Tensor) -> list[Tensor]:
        """See `Executor.read`."""
        told = torch.cat([*(tensor.flatten() for tensor in tensors), self.worst_code]).cpu()
        *parts, code = told.split([*(tensor.numel() for tensor in tensors), 1])
        if int(code):
            status = STATUS_OF_CODE[int(code)]
            raise AssignmentError(f"an assignment problem failed: {status.value}", status)
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def look(self, hypotheses: Hypotheses, stale: Tensor) -> Tensor:
        """See `Executor.look`."""
        objective, told = self.read(hypotheses.objective, stale)
        self._known = hypotheses, objective
        return told.any(1)

    def objective(self, hypotheses: Hypotheses) -> Tensor:
        """See `Executor.objective`."""
        if self._known is not None and self._known[0] is hypotheses:
            return self._known[1]
        (objective,) = self.read(hypotheses.objective)
        self._known = hypotheses, objective
        return objective

    def check(self) -> None:
        """See `Executor.check`."""
        self.read()

    def movers(self, chosen: Tensor, stale: Tensor, alive: Tensor) -> Tensor:
        """See `Executor.movers`: `stale` lies on the device, so those that were alive."""
        return chosen[alive[chosen]]

    def forget(self) -> None:
        """See `Executor.forget`."""
        for workspace in self._workspaces.values():
            workspace.forget()

    def similarities(
        self, group: str, chosen: Tensor, part: Hypotheses, batch: int
    ) -> Mapping[str, Tensor]:
        """See `Executor.similarities`: on an H200 an update was no faster than computing anew."""
        return self.problem.similarities(group, part.perms, part.model)

    def workspace(self, batch: int) -> Workspace | None:
        """See `Executor.workspace`; those of the last size are kept."""
        if self.queue is None or not self.problem.prepares_any:
            return None
        if batch not in self._workspaces:
            self._workspaces = {batch: Workspace(self, self.queue, batch)}
        return self._workspaces[batch]

    def in_place(self, look: Look, move: Move) -> tuple[Look, Move]:
        """See `Executor.in_place`: both are queued at once, from the third time on as a graph."""

        def both() -> None:
            look(no_heartbeat)
            move()

        return _no_look, Replay(both, self.problem.device)

    def exchange(self, present: dict[str, Tensor], other: dict[str, Tensor], name: str) -> None:
        """See `Executor.exchange`: what is recorded knows where they lie."""
        present[name].copy_(other[name])

    def in_parts(self, count: int, do: Part[T], heartbeat: Heartbeat) -> list[T]:
        """See `Executor.in_parts`: a device takes the batch as a whole."""
        return [do(slice(None), heartbeat)]

    def keeps(self, group: str, batch: int) -> bool:
        """See `Executor.keeps`."""
        return False


def _solved(similarity: Tensor, solver: AbstractAssignmentSolver) -> Tensor:
    problem = AssignmentProblem(similarity, maximize=True)
    return solve(problem, solver).col_ind.to(similarity.device)


def no_heartbeat(part: str) -> None:
    """Give no sign of life: what is queued may be a capture, what is done as a whole is short."""


def _no_look(heartbeat: Heartbeat) -> None:
    """Leave the look to the move."""
