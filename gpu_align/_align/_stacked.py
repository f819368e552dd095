"""Stacks of models aligned to one target without an object for each: for very many small ones."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_align._align._batches import bytes_per_model, largest_elements
from gpu_align._align._certificate import CertificateTable, certificate_table
from gpu_align._align._many import CERTIFIED_ON_DEVICE, CERTIFIED_ON_HOST, search_work
from gpu_align._align._networks import Model
from gpu_align._align._settings import Settings
from gpu_align._device import CPU, free_bytes
from gpu_align._errors import AssignmentError, GpuAlignError
from gpu_align._problem import (
    AlignmentProblem,
    Hypotheses,
    check_weights,
    compute_dtype,
    unusable_of_stack,
)
from gpu_align._process import full_precision, torch_threads
from gpu_align._search import CoordinateDescent, Portfolio, Search, run_search
from gpu_align._status import Status
from gpu_align._symmetry import (
    PermutationSpec,
    Stack,
    StateDict,
    Weights,
    compare_stacks,
    part_ranges,
    permuted_stack,
)

_BATCH_BYTES = 2**28
"""Memory for a batch on the host, where further processes have batches of their own."""
_MOST = 1024
"""Models of a batch on the host: what more of them save is lost in the caches."""
_DEVICE_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class AlignedStack:
    """Models that were aligned together, in the order of the stack; what failed is left out.

    Attributes:
        numbers: of the k models in the stack that they came in.
        states: the models with their units reordered, name -> [k, *shape].
        perms, signs: group -> int64 [k, units]; as those of `Permutation`.
        table: their certificates.
        function_difference: of each, see `AlignmentResult`, float64 [k]; None if not compared.
        failures: number -> why a model is left out.
        status: of the search of each, k of them.
    """

    numbers: tuple[int, ...]
    states: Mapping[str, Tensor]
    perms: Mapping[str, Tensor]
    signs: Mapping[str, Tensor]
    table: CertificateTable
    function_difference: Tensor | None
    failures: Mapping[int, GpuAlignError]
    status: tuple[Status, ...]

    def without(self, places: Collection[int]) -> "AlignedStack":
        """Return what is left without the models at some places, of the k."""
        kept = [place for place in range(len(self.numbers)) if place not in places]
        rows = torch.tensor(kept, dtype=torch.int64, device="cpu")
        difference = self.function_difference

        def chosen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.index_select(0, rows.to(t.device)) for name, t in tensors.items()}

        return replace(
            self,
            numbers=tuple(self.numbers[place] for place in kept),
            states=chosen(self.states),
            perms=chosen(self.perms),
            signs=chosen(self.signs),
            table=self.table.select(rows),
            function_difference=None if difference is None else difference[rows],
            status=tuple(self.status[place] for place in kept),
        )


def align_stack(
    stack: Stack,
    target: StateDict,
    spec: PermutationSpec,
    settings: Settings,
    *,
    model: Model | None = None,
) -> Iterator[AlignedStack]:
    """Align the models of a stack, batch after batch; yields what is found for each batch.

    The same permutations as `align` of one model after another. It is done by one thread, so that
    one process a core keeps all of them busy, and no answer depends on how many there are.

    Args:
        stack: m models with the names of the spec.
        target: the network that stays, with these names.
        spec: the symmetries of all.
        settings: how; proofs, evidence and budgets of seconds are not looked at.
        model: what is run with the example inputs to compare functions; None for no comparison.

    Raises:
        InputError: names or shapes do not fit the spec, or the target cannot be used.
        KeyboardInterrupt: Ctrl-C; what was yielded is whole.
    """
    with torch_threads.held(single=True), full_precision():
        spec.validate(target, "target")
        check_weights(spec, target, "target")
        task = _Task(target, spec, settings, model)
        for start, stop in part_ranges(len(stack), 1, task.fitting(stack)):
            some = stack[start:stop]
            unusable = unusable_of_stack(spec, some)
            if unusable:
                yield task.nothing({start + n: error for n, error in unusable.items()})
            usable = [n for n in range(stop - start) if n not in unusable]
            if usable:
                yield from task.run(some.select(usable), [start + n for n in usable])


def move_stack(
    stack: Stack,
    target: StateDict,
    spec: PermutationSpec,
    settings: Settings,
    perms: Mapping[str, Tensor],
    signs: Mapping[str, Tensor],
    *,
    model: Model | None = None,
) -> Iterator[AlignedStack]:
    """Give the models of a stack permutations that are known, and certify them as `align_stack`.

    Args:
        stack, target, spec, settings, model: as there; nothing is searched for.
        perms, signs: group -> int64 [m, units], for each model.

    Raises:
        InputError: as there.
    """
    with torch_threads.held(single=True), full_precision():
        task = _Task(target, spec, settings, model)
        for start, stop in part_ranges(len(stack), 1, task.fitting(stack)):
            some = stack[start:stop]
            unusable = unusable_of_stack(spec, some)
            if unusable:
                yield task.nothing({start + n: error for n, error in unusable.items()})
            usable = [n for n in range(stop - start) if n not in unusable]
            if usable:
                numbers = [start + n for n in usable]
                rows = torch.tensor(numbers, dtype=torch.int64, device="cpu")
                own = ({g: v[rows] for g, v in found.items()} for found in (perms, signs))
                yield task.moved(some.select(usable), numbers, *own)


@dataclass(frozen=True, eq=False)
class _Task:
    target: StateDict
    spec: PermutationSpec
    settings: Settings
    model: Model | None

    def fitting(self, stack: Stack) -> int:
        """Return how many models are aligned together."""
        engine, dtype = self.settings.engine, compute_dtype(self.spec, stack)
        search = self.settings.search or self._default(stack[:1], dtype)
        need = bytes_per_model(self.spec, self.settings.metric, search, dtype)
        if engine.device.type == "cpu":
            return max(min(_BATCH_BYTES // need, _MOST), 1)
        return max(int(_DEVICE_SHARE * free_bytes(engine.device)) // need, 1)

    def run(self, batch: Stack, numbers: Sequence[int]) -> Iterator[AlignedStack]:
        """Align models that can be used; where an assignment fails they are halved."""
        try:
            found = self._aligned(batch, numbers)
        except AssignmentError as error:
            if len(batch) == 1:
                yield self.nothing({numbers[0]: error})
                return
            middle = len(batch) // 2
            yield from self.run(batch[:middle], numbers[:middle])
            yield from self.run(batch[middle:], numbers[middle:])
        else:
            yield self._checked(found, batch)

    def nothing(self, failures: Mapping[int, GpuAlignError]) -> AlignedStack:
        """Return a batch of failures only."""
        none = torch.empty(0, dtype=torch.float64, device="cpu")
        table = CertificateTable(none, none, none, ())
        return AlignedStack((), {}, {}, {}, table, None, failures, ())

    def _aligned(self, batch: Stack, numbers: Sequence[int]) -> AlignedStack:
        weights = Weights(self.spec, batch, self.settings.engine.device)
        dtype = compute_dtype(self.spec, batch)
        problem = self._problem(weights, dtype)
        search = self.settings.search or self._default(batch[:1], dtype)
        outcome = run_search(
            search,
            problem,
            seed=self.settings.seed,
            budget=self.settings.budget,
            progress=self.settings.progress,
        )
        if outcome.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        perms, signs = problem.group_vectors(outcome.best)
        states = permuted_stack(weights, perms, signs)
        del problem  # that in float64 is another one
        table = self._certified(search, weights, outcome.best, found=True)
        perms, signs = ({g: v.cpu() for g, v in found.items()} for found in (perms, signs))
        status = (outcome.status,) * len(batch)
        return AlignedStack(tuple(numbers), states, perms, signs, table, None, {}, status)

    def moved(
        self,
        batch: Stack,
        numbers: Sequence[int],
        perms: Mapping[str, Tensor],
        signs: Mapping[str, Tensor],
    ) -> AlignedStack:
        """Move models that can be used as they are told."""
        device = self.settings.engine.device
        weights = Weights(self.spec, batch, device)
        problem = self._problem(weights, torch.float64)
        there = ({g: v.to(device) for g, v in found.items()} for found in (perms, signs))
        best = problem.hypotheses(problem.matrices(*there), problem.model_index(1))
        best = replace(best, models=len(batch))
        states = permuted_stack(weights, *problem.group_vectors(best))
        table = self._certified(CoordinateDescent(), weights, best, found=False)
        status = (Status.COMPLETED,) * len(batch)
        found = AlignedStack(tuple(numbers), states, perms, signs, table, None, {}, status)
        return self._checked(found, batch)

    def _certified(
        self, search: Search, weights: Weights, best: Hypotheses, *, found: bool
    ) -> CertificateTable:
        on_host = self.settings.engine.device.type == "cpu"
        most = CERTIFIED_ON_HOST if on_host else CERTIFIED_ON_DEVICE
        tables = []
        for start, stop in part_ranges(len(weights), largest_elements(self.spec), most):
            exact = self._problem(weights.part(start, stop), torch.float64)
            part = best.select(torch.arange(start, stop, device=best.model.device))
            part = replace(part, model=part.model - start, models=stop - start)
            work = search_work(search, exact)
            tables.append(certificate_table(exact, part, work=work, found=found))
        return CertificateTable.joined(tables)

    def _checked(self, found: AlignedStack, batch: Stack) -> AlignedStack:
        """Return the batch with the differences of the functions; changed ones are failures."""
        if self.model is None or self.model.inputs is None:
            return found
        before = Stack(self.model.in_module(batch.tensors), len(batch))
        after = Stack(self.model.in_module(found.states), len(batch))
        difference, limit = compare_stacks(
            self.model.module, self.model.inputs, before, after, outputs=self.model.outputs
        )
        found = replace(found, function_difference=difference)
        changed = (~(difference <= limit)).nonzero()[:, 0].tolist()
        if not changed:
            return found
        failures = {
            found.numbers[n]: GpuAlignError(
                f"the reordered network computes another function: its outputs differ by "
                f"{float(difference[n]):.3g} relative (accepted: {limit:g}); the spec is of "
                "another model"
            )
            for n in changed
        }
        return replace(found.without(set(changed)), failures=failures)

    def _problem(self, weights: Weights, dtype: torch.dtype) -> AlignmentProblem:
        engine, metric = self.settings.engine, self.settings.metric
        target = Weights(self.spec, [self.target], engine.device)
        return AlignmentProblem.of_weights(
            weights, target, metric=metric, dtype=dtype, engine=engine
        )

    def _default(self, one: Stack, dtype: torch.dtype) -> Search:
        """Return the portfolio for the problem of one model; all of them have its shape."""
        sources, target = Weights(self.spec, one, CPU.device), [self.target]
        problem = AlignmentProblem.of_weights(
            sources,
            Weights(self.spec, target, CPU.device),
            metric=self.settings.metric,
            dtype=dtype,
            engine=CPU,
        )
        return Portfolio.for_problem(problem, drops_settled=True)
