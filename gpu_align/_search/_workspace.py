"""A descent on the device: its batch at fixed places, each move a few launches prepared once.

The host only queues. What is needed to know of the hypotheses (who looks at a group now, what its
assignment gains, which groups are stale after it) stays on the device, and nothing is copied from
move to move.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpu_align._assignment import AssignmentProblem, Auction, AuctionAssignment
from gpu_align._problem import AlignmentProblem, Hypotheses, signed_matrix
from gpu_align._search._scale import tolerance

if TYPE_CHECKING:
    from gpu_align._search._executor import DeviceExecutor
    from gpu_align.kernels.moves import Accept, Move
    from gpu_align.kernels.row_distance import RowDistance

_SHARE = 0.25
"""Share of the free memory that the similarities of a move may take."""

_ENTRIES = 2**30
"""Most entries of the similarities of a move: so many keep any device busy."""


@dataclass(frozen=True, eq=False)
class _Step:
    """A move of one group for a range of hypotheses.

    Attributes:
        similarities: of the group's variables, to where `move` looks for them.
        unit_gains: float32 [c, n, n], what is assigned: the similarity, or room for it plus the
            magnitude of the signed one.
        assignment: of the unit gains.
        move: what is noted about it.
        accept: notes it.
    """

    similarities: list["RowDistance"]
    unit_gains: Tensor
    assignment: Auction
    move: "Move"
    accept: "Accept"


class Workspace:
    """The batch of a descent, and prepared moves of the groups that the kernels can move.

    A move selects who looks at the group, computes similarities, assigns, and accepts: four
    launches. An assignment starts from the last one, which the solver forgets by itself where the
    similarities have changed too much.

    Attributes:
        everyone: uint8 [b], what `move` is given where all hypotheses take the group.
    """

    def __init__(self, executor: "DeviceExecutor", queue: AuctionAssignment, batch: int) -> None:
        """Prepare the moves of batches of so many hypotheses; `load` fills one in.

        Args:
            executor: of the running search.
            queue: solves the assignments.
            batch: number of hypotheses.
        """
        from gpu_align.kernels.moves import Batch, Select

        problem, device = executor.problem, executor.problem.device
        self._shapes = {variable: (batch, size) for variable, size in problem.sizes.items()}
        entries = batch * sum(problem.sizes.values())
        self._perms = torch.empty(entries, dtype=torch.int64, device=device)
        self._duals = torch.empty(entries, dtype=torch.float64, device=device)
        self._model = problem.model_index(batch // problem.models)
        self._batch = Batch(
            objective=torch.empty(batch, dtype=torch.float64, device=device),
            tolerance=tolerance(problem, self._model),
            stale=torch.empty(batch, len(problem.order), dtype=torch.uint8, device=device),
            active=torch.zeros(batch, dtype=torch.int64, device=device),
            code=executor.worst_code,
        )
        self._views = _views(self._perms, self._shapes)
        self._dual_views = _views(self._duals, self._shapes)
        self.everyone = torch.ones(batch, dtype=torch.uint8, device=device)
        self._neighbours = executor.upload(_neighbours(problem))
        self._filled: tuple[Hypotheses, Tensor] | None = None
        self._steps = self._prepared(executor, queue, batch)
        self._select = Select(self._batch)
        self.forget()

    def load(self, hypotheses: Hypotheses, stale: Tensor) -> None:
        """Fill in a batch, and bool [b, groups], which of its groups are stale.

        What `copy` returned last is there already.
        """
        last = self._filled
        if last is not None and last[0] is hypotheses and last[1] is stale:
            return
        parts = [hypotheses.perms[variable].reshape(-1) for variable in self._shapes]
        torch.cat(parts, out=self._perms)
        self._batch.objective.copy_(hypotheses.objective)
        self._batch.stale.copy_(stale)

    def forget(self) -> None:
        """Let the next assignments start from nothing."""
        self._duals.fill_(torch.nan)

    def copy(self, before: Hypotheses) -> tuple[Hypotheses, Tensor]:
        """Return a copy of the batch, and bool [b, groups], which of its groups are stale.

        Args:
            before: the batch that was filled in, of which all is taken that no move changes.
        """
        perms = _views(self._perms.clone(), self._shapes)
        hypotheses = replace(before, perms=perms, objective=self._batch.objective.clone())
        self._filled = hypotheses, self._batch.stale.bool()
        return self._filled

    def can_move(self, number: int) -> bool:
        """Say whether the moves of a group are prepared."""
        return number in self._steps

    def move(self, number: int, chosen: Tensor) -> None:
        """Queue the move of a group to its best assignment.

        Args:
            number: of the group.
            chosen: uint8 [b] or more, who takes it now; of these, those in which it is stale.
        """
        self._filled = None
        self._select.launch(chosen, number, self._steps[number][0].unit_gains.shape[1])
        for step in self._steps[number]:
            for similarity in step.similarities:
                similarity.launch()
            if step.move.signed is not None:
                torch.abs(step.move.signed, out=step.unit_gains).add_(step.move.similarity)
            queued = step.assignment.launch()
            step.accept.launch(queued.col_ind, queued.col_dual, queued.status_codes)

    def _prepared(
        self, executor: "DeviceExecutor", queue: AuctionAssignment, batch: int
    ) -> dict[int, list[_Step]]:
        # The executor is not kept: it keeps this workspace, whose memory a cycle would hold.
        problem = executor.problem
        groups = {
            number: problem.families[group].variables
            for number, group in enumerate(problem.order)
            if problem.prepares(group)
        }
        if not groups:
            return {}
        each = max(
            problem.sizes[variables[0]] ** 2 * (1 if len(variables) == 1 else 3)
            for variables in groups.values()
        )
        fitting = executor.memory.fitting(each * problem.dtype.itemsize, _SHARE)
        fitting = min(fitting, max(_ENTRIES // each, 1))
        if fitting < batch:
            executor.splits["similarities"] = f"{fitting} of {batch} hypotheses at a time"
        room = torch.empty(min(fitting, batch) * each, device=problem.device)
        parts = [range(first, min(first + fitting, batch)) for first in range(0, batch, fitting)]
        return {
            number: [self._step(problem, queue, number, part, room) for part in parts]
            for number in groups
        }

    def _step(
        self,
        problem: AlignmentProblem,
        queue: AuctionAssignment,
        number: int,
        part: range,
        room: Tensor,
    ) -> _Step:
        """Prepare the move of a group for a range of hypotheses; all moves share the room."""
        from gpu_align.kernels.moves import Accept, Move

        group, here = problem.order[number], slice(part.start, part.stop)
        variables = problem.families[group].variables
        shape = (len(part), *[problem.sizes[variables[0]]] * 2)
        entries = math.prod(shape)
        first, *rest = (
            room[start : start + entries].view(shape)
            for start in range(0, entries * (1 if len(variables) == 1 else 3), entries)
        )
        out = [first, *rest[: len(variables) - 1]]
        perms = {variable: self._views[variable][here] for variable in problem.seen_from(group)}
        batch = self._batch.part(part.start, part.stop)
        similarities = [
            problem.prepared_similarity(variable, perms, self._model[here], batch.active, matrices)
            for variable, matrices in zip(variables, out, strict=True)
        ]
        move = Move(
            batch=batch,
            similarity=first,
            signed=rest[0] if rest else None,
            perm=perms[group],
            signed_perm=perms[signed_matrix(group)] if rest else None,
            col_dual=self._dual_views[group][here],
            neighbours=self._neighbours[number, : len(problem.neighbours(group))],
        )
        unit_gains = rest[1] if rest else first
        wanted = AssignmentProblem(unit_gains, maximize=True, sizes=batch.active)
        assignment = queue.prepare(wanted, (move.col_dual, move.perm))
        return _Step(similarities, unit_gains, assignment, move, Accept(move))


def _neighbours(problem: AlignmentProblem) -> Tensor:
    """Return the numbers of each group's neighbours, int64 [groups, k] on the host, filled up."""
    each = [[problem.order.index(n) for n in problem.neighbours(g)] for g in problem.order]
    width = max(map(len, each)) // 2 * 2 + 2  # even: rows are aligned
    rows = [row + [0] * (width - len(row)) for row in each]
    return torch.tensor(rows, dtype=torch.int64, device="cpu")


def _views(flat: Tensor, shapes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Return the variables' vectors [b, n], which lie one after another."""
    parts = flat.split([batch * size for batch, size in shapes.values()])
    return {m: part.view(shape) for (m, shape), part in zip(shapes.items(), parts, strict=True)}
