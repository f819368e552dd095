"""Mean-and-realign rounds: the models of a collection are brought closer to their own mean."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, Literal

import torch
from torch import Tensor

from gpu_align._align._batches import batch_ranges, bytes_per_model
from gpu_align._align._common_evidence import CommonEvidence
from gpu_align._align._settings import Settings
from gpu_align._device import CPU, free_bytes
from gpu_align._problem import METRICS, AlignmentProblem, compute_dtype
from gpu_align._process import full_precision
from gpu_align._search import CoordinateDescent, Progress, ProgressCallback, Search, run_search
from gpu_align._status import Status
from gpu_align._symmetry import (
    Permutation,
    PermutationSpec,
    StateDict,
    Weights,
    apply_permutations,
    part_elements,
    part_ranges,
)

Method = Literal["batch", "one_by_one"]

Keep = Callable[[str, Callable[[], Any]], Any]
"""Called with the name of a search and with what makes it; returns what that made, now or before.

What is made are plain values and tensors on the CPU.
"""


def made_now(name: str, make: Callable[[], Any]) -> Any:
    """Keep nothing; see `Keep`."""
    return make()


_METRIC = METRICS["l2"]
"""The mean minimises this sum of squared distances, so no round can raise it."""
_NO_DECREASE = 1e-12


@dataclass(frozen=True)
class Standing:
    """Where the models of a collection stand.

    Attributes:
        permutations: of each model into the common frame.
        states: the models in it.
        mean: name -> mean of a parameter, float64 on the CPU.
        spread: mean squared distance of the models to it; less what their evidence is worth.
    """

    permutations: Sequence[Permutation]
    states: Sequence[StateDict]
    mean: Mapping[str, Tensor]
    spread: float


@dataclass(frozen=True)
class Target:
    """What models are brought closer to: the mean of some of them where these stand.

    Attributes:
        state: in the dtypes of the models.
        exact: its parameters in float64.
        models: the numbers of those whose mean it is.
    """

    state: StateDict
    exact: Mapping[str, Tensor]
    models: Sequence[int]


@dataclass(frozen=True)
class Rounds:
    """The rounds of one collection.

    Attributes:
        spec: of all models, which fit it and are finite.
        settings: search, engine, seed and progress; by default coordinate descent.
        method: "batch" brings all models to the mean of all at once, "one_by_one" each, in a
            random order, to the mean of the others.
        keep: where what each search finds is kept.
        evidence: what counts beside the weights where models are realigned one by one.
    """

    spec: PermutationSpec
    settings: Settings
    method: Method
    keep: Keep = made_now
    evidence: CommonEvidence | None = None

    def run(
        self, states: Sequence[StateDict], most: int, start: int | None
    ) -> tuple[Standing, list[float], Status]:
        """Realign until no round lowers the spread; an interrupted round leaves the one before.

        Args:
            states: the models.
            most: rounds.
            start: number of the model to which all are brought first; None begins with their mean.

        Returns:
            The last standing, the spread as given and after every round, and how it ended.
        """
        identity = Permutation.identity(self.spec)
        best = self._standing([identity] * len(states), states)
        spreads = [best.spread]
        if len(states) == 1:
            return best, spreads, Status.CONVERGED
        with full_precision():
            try:
                for number in range(most):
                    found = self._round(best, number, start)
                    if not found.spread < best.spread - _NO_DECREASE * abs(best.spread):
                        if start is None or number > 0:
                            return best, spreads, Status.CONVERGED
                        continue  # they were closer together than each is to the first
                    best = found
                    spreads.append(best.spread)
            except KeyboardInterrupt:
                return best, spreads, Status.INTERRUPTED
        return best, spreads, Status.SWEEP_BUDGET

    def _round(self, before: Standing, number: int, start: int | None) -> Standing:
        """Return where the models stand after one round.

        Raises:
            KeyboardInterrupt: a search of it was interrupted.
        """
        count = len(before.states)
        if number == 0 and start is not None:
            moved = self._to_one(before, start)
        elif self.method == "batch":
            mean = as_state(self.spec, before.mean, before.states[0])
            target = Target(mean, before.mean, range(count))
            moved = self._moved(before, range(count), target, number)
        else:
            moved = self._one_by_one(before, number)
        return self._standing(*moved)

    def _to_one(self, before: Standing, start: int) -> tuple[list[Permutation], list[StateDict]]:
        """Bring all models to one of them, which stays where it is."""
        state = before.states[start]
        target = Target(state, self._parameters(state), [start])
        count = len(before.states)
        if self.evidence is None:
            return self._moved(before, range(count), target, 0)
        permutations, states = list(before.permutations), list(before.states)
        for model in range(count):
            if model != start:
                [permutations[model]], [states[model]] = self._moved(
                    before, range(model, model + 1), target, 0
                )
        return permutations, states

    def _one_by_one(
        self, before: Standing, number: int
    ) -> tuple[list[Permutation], list[StateDict]]:
        """Bring each model to the mean of the others.

        Source: Git Re-Basin (Ainsworth et al., ICLR 2023), algorithm 3.
        """
        count, mean = len(before.states), dict(before.mean)
        permutations, states = list(before.permutations), list(before.states)
        generator = torch.Generator().manual_seed(self.settings.seed + number)
        for model in torch.randperm(count, generator=generator, device="cpu").tolist():
            own = self._parameters(states[model])
            exact = {name: (count * mean[name] - own[name]) / (count - 1) for name in mean}
            others = [other for other in range(count) if other != model]
            target = Target(as_state(self.spec, exact, states[0]), exact, others)
            now = Standing(permutations, states, mean, before.spread)
            [permutations[model]], [states[model]] = self._moved(
                now, range(model, model + 1), target, number
            )
            new = self._parameters(states[model])
            mean = {name: mean[name] + (new[name] - own[name]) / count for name in mean}
        return permutations, states

    def _moved(
        self,
        before: Standing,
        models: range,
        target: Target,
        number: int,
    ) -> tuple[list[Permutation], list[StateDict]]:
        """Bring some models closer to a target; those that come no closer stay.

        Args:
            before: where they stand.
            models: their numbers.
            target: what they are brought to.
            number: of the round.
        """
        permutations, states = [], []
        for batch in self._batches(before.states, models):
            old = before.states[batch.start : batch.stop]
            found, moved = self._search(before, target, number, batch)
            gains = self._distances(old, target.exact) - self._distances(moved, target.exact)
            for place, model in enumerate(batch):
                one = before.permutations[model]
                new = found[place].compose(one)
                closer = float(gains[place]) + self._agreed(before, model, new, target) > 0
                permutations.append(new if closer else one)
                states.append(moved[place] if closer else old[place])
        return permutations, states

    def _agreed(self, before: Standing, model: int, new: Permutation, target: Target) -> float:
        """Return by how much the distance of a model that is moved shrinks by evidence."""
        if self.evidence is None:
            return 0.0
        frame = list(before.permutations)
        old = self.evidence.agreement(model, frame, target.models)
        frame[model] = new
        return 2 * (self.evidence.agreement(model, frame, target.models) - old)

    def _search(
        self, before: Standing, target: Target, number: int, batch: range
    ) -> tuple[list[Permutation], list[dict[str, Tensor]]]:
        """Return the permutations of a batch of models, and these permuted by them.

        Raises:
            KeyboardInterrupt: the search was interrupted.
        """
        total = len(before.states)
        states = before.states[batch.start : batch.stop]
        weights = Weights(self.spec, states, self.settings.engine.device)

        def vectors() -> list[dict[str, Tensor]]:
            progress = self._named(number, total, batch)
            evidence = None
            if self.evidence is not None:
                [model] = batch
                evidence = self.evidence.towards(model, before.permutations, target.models)
            return self._vectors(weights, target.state, number, progress, evidence)

        perms, signs = self.keep(
            f"round {number + 1}, models {batch.start + 1} to {batch.stop} of {total}", vectors
        )
        found = Permutation.each(self.spec, perms, signs, len(states))
        placed = (
            {name: vector.to(weights.device) for name, vector in each.items()}
            for each in (perms, signs)
        )
        return found, apply_permutations(weights, *placed)

    def _vectors(
        self,
        weights: Weights,
        target: StateDict,
        number: int,
        progress: ProgressCallback | None,
        evidence: Mapping[str, Tensor] | None,
    ) -> list[dict[str, Tensor]]:
        """Look for the permutations of models; return vectors and signs of all, on the CPU.

        Raises:
            KeyboardInterrupt: the search was interrupted.
        """
        problem = AlignmentProblem.of_weights(
            weights,
            Weights(self.spec, [target], weights.device),
            metric=_METRIC,
            dtype=compute_dtype(self.spec, [*weights.states, target]),
            engine=self.settings.engine,
            evidence=evidence,
        )
        outcome = run_search(
            self._descent, problem, seed=self.settings.seed + number, progress=progress
        )
        if outcome.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        found = problem.group_vectors(outcome.best)
        return [{name: vector.cpu() for name, vector in each.items()} for each in found]

    @cached_property
    def _descent(self) -> Search:
        return self.settings.search or CoordinateDescent()

    def _named(self, number: int, total: int, batch: range) -> ProgressCallback | None:
        """Return the callback, told which round it is, and which models of it."""
        callback = self.settings.progress
        if callback is None:
            return None
        some = len(batch) < total
        models = f", models {batch.start + 1} to {batch.stop} of {total}" if some else ""

        def named(entry: Progress) -> None:
            callback(replace(entry, stage=f"round {number + 1}, {entry.stage}{models}"))

        return named

    def _batches(self, states: Sequence[StateDict], models: range) -> Iterator[range]:
        """Cut models into batches that fit the memory."""
        if len(models) == 1:
            yield models
            return
        dtype = compute_dtype(self.spec, [states[0]])
        need = bytes_per_model(self.spec, _METRIC, self._descent, dtype)
        for batch in batch_ranges(len(models), need, free_bytes(self.settings.engine.device)):
            yield models[batch.start : batch.stop]

    def _standing(
        self, permutations: Sequence[Permutation], states: Sequence[StateDict]
    ) -> Standing:
        mean = {
            name: reduce(torch.add, (part.sum(0) for part in self._parts(name, states)))
            / len(states)
            for name in self._counted(states[0])
        }
        spread = float(self._distances(states, mean).mean())
        if self.evidence is not None:
            count = len(states)
            agreed = sum(
                self.evidence.agreement(model, permutations, range(count)) for model in range(count)
            )
            # Of all pairs, in the proportion in which moving one model changes the spread.
            spread -= (count - 1) / count**2 * agreed
        return Standing(permutations, states, mean, spread)

    def _distances(self, states: Sequence[StateDict], mean: Mapping[str, Tensor]) -> Tensor:
        """Return the squared distance of each model to a mean, float64 [models]."""
        total = torch.zeros(len(states), dtype=torch.float64, device="cpu")
        for name, middle in mean.items():
            parts = [(p - middle).square().flatten(1).sum(1) for p in self._parts(name, states)]
            total += torch.cat(parts)
        return total

    def _parts(self, name: str, states: Sequence[StateDict]) -> Iterator[Tensor]:
        """Yield a tensor of all models in float64, stacked in parts that stay in the cache."""
        weights = Weights(self.spec, states, CPU.device)
        size = math.prod(self.spec.tensors[name].shape)
        for start, stop in part_ranges(len(states), size, part_elements(CPU.device)):
            yield weights.some(name, start, stop).to(torch.float64)

    def _counted(self, state: StateDict) -> list[str]:
        return [
            name
            for name, tensor in self.spec.tensors.items()
            if tensor.counted and self.spec.tensor_of(name, state).is_floating_point()
        ]

    def _parameters(self, state: StateDict) -> dict[str, Tensor]:
        return {
            name: self.spec.tensor_of(name, state).to("cpu", torch.float64)
            for name in self._counted(state)
        }


def as_state(
    spec: PermutationSpec, mean: Mapping[str, Tensor], first: StateDict
) -> dict[str, Tensor]:
    """Return means as a state dict with the names, dtypes and buffers of one of the models."""
    like = {name: spec.tensor_of(name, first) for name in mean}
    made = {name: mean[name].to(tensor.device, tensor.dtype) for name, tensor in like.items()}
    return {name: made.get(spec.ties.get(name, name), tensor) for name, tensor in first.items()}
