"""From state dicts of one spec to results: many models in batches that fit the memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from gpu_align._backend import CPU, Engine, versions
from gpu_align._batches import batch_ranges, bytes_per_model
from gpu_align._certificate import certificates, cost_matrix
from gpu_align._errors import AssignmentError, GpuAlignError, ModelError
from gpu_align._memory import free_bytes
from gpu_align._permutation import apply_each
from gpu_align._problem import AlignmentProblem, Metric, check_weights, compute_dtype, unusable
from gpu_align._problem._metric import as_metric
from gpu_align._process import torch_threads
from gpu_align._result import PICTURED, AlignmentFailure, AlignmentResult
from gpu_align._search import (
    Budget,
    Outcome,
    Portfolio,
    Progress,
    ProgressCallback,
    Search,
    SearchStore,
    run_search,
)
from gpu_align._status import Status
from gpu_align._symmetry import PermutationSpec
from gpu_align._symmetry._spec import StateDict

FunctionCheck = Callable[[StateDict, StateDict], float]
_WORK_OF_THREADS = 2**25  # multiply-adds of the largest similarity of one model
Aligned = AlignmentResult | AlignmentFailure


def align_state_dicts(
    sources: Sequence[StateDict],
    target: StateDict,
    spec: PermutationSpec,
    *,
    search: Search | None,
    metric: str | Metric,
    engine: Engine,
    seed: int,
    budget: Budget | None,
    progress: ProgressCallback | None,
    checks: Sequence[FunctionCheck | None],
    store: SearchStore | None = None,
) -> list[Aligned]:
    """Align state dicts whose spec is known; `checks` compare each source before and after.

    The search of a single source may be kept in a `store`, and resumed from it.

    A source that cannot be aligned gives a failure in its place; what is wrong with the target or
    with an argument is raised.
    """
    with torch_threads.held(single=_is_small(spec)):
        spec.validate(target, "target")
        check_weights(spec, target, "target")
        found: dict[int, Aligned] = {
            number: AlignmentFailure(number, None, error, Status.UNUSABLE)
            for number, error in unusable(spec, sources).items()
        }
        usable = [number for number in range(len(sources)) if number not in found]
        if usable:
            states = [sources[number] for number in usable]
            task = _Task(
                states,
                target,
                spec,
                as_metric(metric),
                compute_dtype(spec, [*states, target]),
                engine,
                seed,
                budget,
                progress,
                [checks[number] for number in usable],
                store if len(sources) == 1 else None,
            )
            for index, outcome in task.run(search).items():
                at = usable[index]
                if isinstance(outcome, AlignmentFailure):
                    outcome = replace(outcome, index=at)
                found[at] = outcome
    return [found[number] for number in range(len(sources))]


def _is_small(spec: PermutationSpec) -> bool:
    """Whether one torch thread suffices, as in `run_search`, for what is around it too.

    Products of small matrices are shorter than a thread's wake-up, however many there are.
    """
    work = max(
        (
            math.prod(tensor.shape) * max(map(spec.units, tensor.groups), default=1)
            for tensor in spec.tensors.values()
        ),
        default=0,
    )
    return work <= _WORK_OF_THREADS


@dataclass(frozen=True)
class _Task:
    """Sources that fit the spec and are finite, and how they are to be aligned."""

    sources: Sequence[StateDict]
    target: StateDict
    spec: PermutationSpec
    metric: Metric
    dtype: torch.dtype
    engine: Engine
    seed: int
    budget: Budget | None
    progress: ProgressCallback | None
    checks: Sequence[FunctionCheck | None]
    store: SearchStore | None

    def run(self, search: Search | None) -> dict[int, Aligned]:
        """Return what became of each source.

        A batch in which an assignment fails, or for which the memory of the device does not
        suffice, is halved, until what fails is alone.
        """
        if len(self.sources) == 1:
            pending = [range(1)]
        else:
            search = search or self._default_search(self._problem([0], self.dtype, CPU))
            pending = self._batches(search)
        found: dict[int, Aligned] = {}
        while pending:
            batch = pending.pop(0)
            refused = None
            try:
                found |= self._align(batch, search)
            except (AssignmentError, torch.OutOfMemoryError) as error:
                refused = error.with_traceback(None)  # its frames keep the batch in memory
            if refused is None:
                if any(found[number].status is Status.INTERRUPTED for number in batch):
                    found |= {n: _not_begun(n) for rest in pending for n in rest}
                    break
            elif len(batch) > 1:
                middle = len(batch) // 2
                pending[:0] = [batch[:middle], batch[middle:]]
            elif isinstance(refused, AssignmentError):
                found[batch[0]] = AlignmentFailure(batch[0], None, refused, refused.status)
            else:
                raise refused
        return found

    def _problem(
        self, numbers: Sequence[int], dtype: torch.dtype, engine: Engine
    ) -> AlignmentProblem:
        return AlignmentProblem(
            [self.sources[number] for number in numbers],
            self.target,
            self.spec,
            metric=self.metric,
            dtype=dtype,
            engine=engine,
        )

    def _default_search(self, problem: AlignmentProblem) -> Search:
        patient = self.budget is not None and self.budget.seconds is not None
        return Portfolio.for_problem(problem, patient=patient)

    def _batches(self, search: Search) -> list[range]:
        need = bytes_per_model(self.spec, self.metric, search, self.dtype)
        free = free_bytes(self.engine.device)
        if self.engine.device.type == "cpu":  # where the results will lie
            free -= sum(t.nbytes for source in self.sources for t in source.values())
        return batch_ranges(len(self.sources), need, max(free, 0))

    def _align(self, batch: range, search: Search | None) -> dict[int, Aligned]:
        problem = self._problem(batch, self.dtype, self.engine)
        search = search or self._default_search(problem)
        outcome = run_search(
            search,
            problem,
            seed=self.seed,
            budget=self._share(batch),
            progress=self._named(batch),
            store=self.store,
        )
        # What was found, wherever it was, is certified in float64 on the host.
        if self.dtype != torch.float64 or problem.device.type != "cpu":
            del problem  # both would not fit
            problem = self._problem(batch, torch.float64, CPU)
        outcome = replace(outcome, best=outcome.best.to(torch.device("cpu")))
        results = self._results(search, outcome, problem, batch)
        return dict(zip(batch, map(self._checked, batch, results), strict=True))

    def _share(self, batch: range) -> Budget | None:
        """Return the budget, of its seconds the batch's share."""
        if self.budget is None or self.budget.seconds is None:
            return self.budget
        return replace(self.budget, seconds=self.budget.seconds * len(batch) / len(self.sources))

    def _named(self, batch: range) -> ProgressCallback | None:
        """Return the callback; where there are several batches, it is told which one."""
        callback, total = self.progress, len(self.sources)
        if callback is None or len(batch) == total:
            return callback

        def named(entry: Progress) -> None:
            models = f"models {batch.start + 1} to {batch.stop} of {total}"
            callback(replace(entry, stage=f"{entry.stage}, {models}"))

        return named

    def _results(
        self, search: Search, outcome: Outcome, exact: AlignmentProblem, batch: range
    ) -> Iterator[AlignmentResult]:
        """Yield the results of a batch, whose functions are not checked yet."""
        certified = certificates(exact, outcome.best)
        permutations = exact.permutations(outcome.best)
        moved = apply_each(permutations, [self.sources[number] for number in batch])
        found, log10_symmetries = versions(), self.spec.log10_symmetries
        pictured = len(self.sources) <= PICTURED
        for model, (certificate, permutation) in enumerate(
            zip(certified, permutations, strict=True)
        ):
            groups = certificate.groups
            yield AlignmentResult(
                permutation=permutation,
                state_dict=moved[model],
                metric=self.metric.name,
                distance=certificate.distance,
                distance_before=certificate.distance_before,
                lower_bound=certificate.lower_bound,
                groups=groups,
                function_difference=None,
                function_note=_function_note(None),
                cost_matrix=cost_matrix(exact, permutation, groups, model) if pictured else None,
                history=outcome.history,
                search=_winner(search, outcome, model),
                status=outcome.status,
                seconds=outcome.seconds,
                assignments=outcome.assignments,
                seed=self.seed,
                device=str(self.engine),
                versions=found,
                log10_symmetries=log10_symmetries,
                origin=self.spec.origin,
                batch_size=len(batch),
                splits=outcome.splits,
            )

    def _checked(self, number: int, result: AlignmentResult) -> Aligned:
        """Return the result with what its function check says."""
        check = self.checks[number]
        if check is None:
            return result
        try:
            difference = check(self.sources[number], result.state_dict)
        except ModelError as error:
            return AlignmentFailure(number, None, error, Status.UNUSABLE)
        return replace(result, function_difference=difference, function_note=_function_note(check))


def _not_begun(number: int) -> AlignmentFailure:
    error = GpuAlignError("interrupted before this source was begun; align it again")
    return AlignmentFailure(number, None, error, Status.INTERRUPTED)


def _function_note(check: FunctionCheck | None) -> str:
    if check is None:
        return "not checked: no model with example inputs was given"
    return "outputs of the source before and after, float64, on the example inputs"


def _winner(search: Search, outcome: Outcome, model: int) -> str:
    """Name the search that the best hypothesis descends from, and the stage that finished it."""
    if not isinstance(search, Portfolio):
        return search.name
    origin = search.describe(int(outcome.best.origin[model]))
    if len(outcome.best) > 1:
        return origin  # the history is that of all models together
    best = outcome.history[-1].best_distance
    last = next((e.stage for e in outcome.history if e.best_distance <= best * (1 + 1e-6)), origin)
    return origin if last in (origin, search.name) else f"{origin}, refined by {last}"
