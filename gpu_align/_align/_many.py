"""From state dicts of one spec to results: many models in batches that fit the memory."""

import gc
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from gpu_align._align._batches import batch_ranges, bytes_per_model, largest_elements
from gpu_align._align._certificate import certificates, cost_matrix
from gpu_align._align._evidence import Correlations, guided
from gpu_align._align._facts import common_facts, winners_of
from gpu_align._align._networks import Model
from gpu_align._align._phased import Phased, compare_rounded
from gpu_align._align._phases import PhaseSearch, shifted_sources, uses_phases
from gpu_align._align._proving import proved, with_proof
from gpu_align._align._result import PICTURED, AlignmentFailure, AlignmentResult
from gpu_align._align._settings import Settings
from gpu_align._device import CPU, free_bytes
from gpu_align._errors import AssignmentError, GpuAlignError, ModelError
from gpu_align._problem import (
    AlignmentProblem,
    Hypotheses,
    check_weights,
    compute_dtype,
    unusable,
)
from gpu_align._process import full_precision, torch_threads
from gpu_align._proof import Proof
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
from gpu_align._symmetry import (
    PermutationSpec,
    StateDict,
    Weights,
    apply_permutations,
    part_ranges,
)

CERTIFIED_ON_HOST, CERTIFIED_ON_DEVICE = 2**20, 2**27
"""Elements of the largest tensor or similarity of the models that are certified together.

On the host the memory of one part serves the next, which is faster than fresh memory for all; on a
device it is all that counts.
"""
_CHECKED = "outputs of the source before and after, {precision}, on the example inputs"
_WORK_OF_THREADS = 2**25  # multiply-adds of the largest similarity of one model
_SWEEPS = 16  # of each hypothesis of a search, at least
_PHASE_STARTS = 16  # at most, and no more than a search has hypotheses
Aligned = AlignmentResult | AlignmentFailure


def align_state_dicts(
    sources: Sequence[StateDict],
    target: StateDict,
    spec: PermutationSpec,
    settings: Settings,
    *,
    models: Sequence[Model | None],
    correlations: Sequence[Correlations] | None = None,
    store: SearchStore | None = None,
) -> list[Aligned]:
    """Align state dicts whose spec is known; the outputs of `models` are compared with each.

    The search of a single source may be kept in a `store`, and resumed from it. Where the settings
    name evidence, each source has its `correlations`.

    A source that cannot be aligned gives a failure in its place; what is wrong with the target or
    with an argument is raised.
    """
    with torch_threads.held(single=_is_small(spec)), full_precision():
        spec.validate(target, "target")
        check_weights(spec, target, "target")
        found: dict[int, Aligned] = {
            number: AlignmentFailure(number, None, error, Status.UNUSABLE)
            for number, error in unusable(spec, sources).items()
        }
        usable = [number for number in range(len(sources)) if number not in found]
        if usable:
            task = _Task(
                [sources[number] for number in usable],
                target,
                spec,
                settings,
                [models[number] for number in usable],
                None if correlations is None else [correlations[number] for number in usable],
                store if len(sources) == 1 else None,
            )
            for index, outcome in task.run().items():
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


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Do without garbage collections while many objects are made, none of which is garbage.

    Each full collection walks over all objects that there are, and they come the more often the
    more are made.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class _Task:
    """Sources that fit the spec and are finite, and how they are to be aligned."""

    sources: Sequence[StateDict]
    target: StateDict
    spec: PermutationSpec
    settings: Settings
    models: Sequence[Model | None]
    correlations: Sequence[Correlations] | None
    store: SearchStore | None

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the search computes in."""
        return compute_dtype(self.spec, [*self.sources, self.target])

    def run(self) -> dict[int, Aligned]:
        """Return what became of each source.

        A batch in which an assignment fails, or for which the memory of the device does not
        suffice, is halved, until what fails is alone.
        """
        search = self.settings.search
        if len(self.sources) == 1:
            pending = [range(1)]
        else:
            search = search or self._default_search(self._one_problem())
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

    def _one_problem(self) -> AlignmentProblem:
        """Return a problem of one model on the host; all of them have its shape."""
        one, target = (Weights(self.spec, [s], CPU.device) for s in (self.sources[0], self.target))
        return AlignmentProblem.of_weights(
            one, target, metric=self.settings.metric, dtype=self.dtype, engine=CPU
        )

    def _problem(self, weights: Weights, dtype: torch.dtype) -> AlignmentProblem:
        return AlignmentProblem.of_weights(
            weights,
            self._target,
            metric=self.settings.metric,
            dtype=dtype,
            engine=self.settings.engine,
        )

    @cached_property
    def _target(self) -> Weights:
        return Weights(self.spec, [self.target], self.settings.engine.device)

    def _default_search(self, problem: AlignmentProblem) -> Search:
        budget = self.settings.budget
        patient = budget is not None and budget.seconds is not None
        return Portfolio.for_problem(problem, patient=patient)

    def _batches(self, search: Search) -> list[range]:
        need = bytes_per_model(self.spec, self.settings.metric, search, self.dtype)
        free = free_bytes(self.settings.engine.device)
        if self.settings.engine.device.type == "cpu":  # where the results will lie
            free -= sum(t.nbytes for source in self.sources for t in source.values())
        return batch_ranges(len(self.sources), need, max(free, 0))

    def _align(self, batch: range, search: Search | None) -> dict[int, Aligned]:
        weights = Weights(self.spec, [self.sources[n] for n in batch], self.settings.engine.device)
        problem = self._searched(batch, weights)
        search = search or self._default_search(problem)
        phased = None
        if uses_phases(self.spec, self.settings, search):
            phased, outcome = self._with_phases(batch, weights, search)
            weights = phased.shifted
        else:
            outcome = self._found(batch, search, problem, self.store)
        del problem  # that in float64 would not fit beside it
        with _collector_paused():
            results = list(self._results(search, outcome, weights, phased))
        return dict(zip(batch, map(self._checked, batch, results), strict=True))

    def _found(
        self,
        batch: range,
        search: Search,
        problem: AlignmentProblem,
        store: SearchStore | None,
        share: float = 1.0,
    ) -> Outcome:
        """Search a batch with a share of its budget of seconds."""
        return run_search(
            search,
            problem,
            seed=self.settings.seed,
            budget=self._share(len(batch) * share),
            progress=self._named(batch),
            store=store,
        )

    def _with_phases(
        self, batch: range, weights: Weights, search: Search
    ) -> tuple[Phased, Outcome]:
        """Search a batch over phases too."""
        settings, searches = self.settings, itertools.count()

        def find(problem: AlignmentProblem, share: float) -> Outcome:
            if next(searches) and self.store is not None:
                self.store.next()
            return self._found(batch, search, problem, self.store, share)

        task = PhaseSearch(
            weights,
            self._target,
            settings.metric,
            lambda sources, target: AlignmentProblem.of_weights(
                sources, target, metric=settings.metric, dtype=self.dtype, engine=settings.engine
            ),
            find,
            min(search.hypotheses_per_model, _PHASE_STARTS),
            settings.seed,
        )
        best, outcome = task.run()
        shifted = shifted_sources(weights, best)
        return Phased(weights, self._target, shifted, best.phases), outcome

    def _searched(self, batch: range, weights: Weights) -> AlignmentProblem:
        """Return what is minimised: the distance of the weights, less twice the evidence."""
        problem, evidence = self._problem(weights, self.dtype), self.settings.evidence
        if evidence is None or self.correlations is None:
            return problem
        correlations = [self.correlations[number] for number in batch]
        seed, progress = self.settings.seed, self._named(batch)
        return guided(problem, evidence, correlations, seed=seed, progress=progress)

    def _share(self, models: float) -> Budget | None:
        """Return the budget, of its seconds the share of so many models."""
        budget = self.settings.budget
        if budget is None or budget.seconds is None:
            return budget
        return replace(budget, seconds=budget.seconds * models / len(self.sources))

    def _named(self, batch: range) -> ProgressCallback | None:
        """Return the callback; where there are several batches, it is told which one."""
        callback, total = self.settings.progress, len(self.sources)
        if callback is None or len(batch) == total:
            return callback

        def named(entry: Progress) -> None:
            models = f"models {batch.start + 1} to {batch.stop} of {total}"
            callback(replace(entry, stage=f"{entry.stage}, {models}"))

        return named

    def _results(
        self, search: Search, outcome: Outcome, weights: Weights, phased: Phased | None
    ) -> Iterator[AlignmentResult]:
        """Yield the results of a batch, whose functions are not checked yet.

        What was found is certified in float64 where it was found, in parts that stay in the cache
        of the CPU or keep a device busy.
        """
        winners = winners_of(search, outcome)
        common = common_facts(self.settings, self.spec, outcome, len(weights))
        on_host = self.settings.engine.device.type == "cpu"
        most = CERTIFIED_ON_HOST if on_host else CERTIFIED_ON_DEVICE
        for start, stop in part_ranges(len(weights), largest_elements(self.spec), most):
            exact = self._problem(weights.part(start, stop), torch.float64)
            part = outcome.best.select(torch.arange(start, stop, device=outcome.best.model.device))
            part = replace(part, model=part.model - start, models=stop - start)
            proofs: list[Proof | None] = [None] * len(part)
            if self.settings.prove is not None and outcome.status is not Status.INTERRUPTED:
                part, proofs = proved(exact, part, self.settings)
            some = None if phased is None else phased.part(start, stop)
            certified = self._certified(exact, part, search_work(search, exact), some)
            for model, (known, proof) in enumerate(zip(certified, proofs, strict=True)):
                result = AlignmentResult(**known, **common, search=winners[start + model])
                yield result if proof is None else with_proof(result, proof)

    def _certified(
        self, exact: AlignmentProblem, part: Hypotheses, work: float, phased: Phased | None
    ) -> Iterator[dict[str, Any]]:
        """Yield what results say about the best hypotheses of some models of a batch."""
        permutations = exact.permutations(part)
        moved = apply_permutations(exact.sources, *exact.group_vectors(part))
        pictured = len(self.sources) <= PICTURED
        if phased is None:
            known = certificates(exact, part, work=work)
        else:
            known = phased.certificates(exact, part, work)
            permutations = phased.permutations(permutations)
        found = zip(permutations, moved, known, strict=True)
        for model, (permutation, state, certificate) in enumerate(found):
            groups = certificate.groups
            yield {
                "permutation": permutation,
                "state_dict": state,
                "distance": certificate.distance,
                "distance_before": certificate.distance_before,
                "lower_bound": certificate.lower_bound,
                "groups": groups,
                "shifted": None if phased is None else permutation.shifted(),
                "cost_matrix": cost_matrix(exact, permutation, groups, model) if pictured else None,
            }

    def _checked(self, number: int, result: AlignmentResult) -> Aligned:
        """Return the result with what its function check says."""
        model = self.models[number]
        if model is None:
            return result
        try:
            found, more = compare_rounded(model, self.sources[number], result)
        except ModelError as error:
            return AlignmentFailure(number, None, error, Status.UNUSABLE)
        note = _CHECKED.format(precision=found.precision) + more
        return replace(
            result,
            function_difference=found.difference,
            function_limit=found.limit,
            function_note=note,
        )


def search_work(search: Search, problem: AlignmentProblem) -> float:
    """Return about how many multiply-adds a search spends on the assignments of a model.

    The bound may cost as much: a cheap search keeps a cheap bound.
    """
    cubes = sum(size**3 for size in problem.sizes.values())
    return _SWEEPS * search.hypotheses_per_model * cubes


def _not_begun(number: int) -> AlignmentFailure:
    error = GpuAlignError("interrupted before this source was begun; align it again")
    return AlignmentFailure(number, None, error, Status.INTERRUPTED)
