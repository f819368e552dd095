"""alpha="auto": how much activations count is chosen by what a midpoint loses on held-back data."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_align._align._evidence import ALPHAS, NO_MODEL, Correlations
from gpu_align._align._many import Aligned
from gpu_align._align._networks import Model
from gpu_align._align._result import AlignmentFailure, AlphaTrial
from gpu_align._align._settings import Settings
from gpu_align._errors import InputError
from gpu_align._network import Data, TaskLoss
from gpu_align._search import Budget, Progress, ProgressCallback, SearchStore
from gpu_align._status import Status
from gpu_align._symmetry import StateDict

Find = Callable[[Settings, Sequence[Correlations] | None], list[Aligned]]
"""Aligns all sources, with correlations or by the weights alone."""


class Midpoints:
    """What is lost half-way from a network to a target, on examples that are held back.

    Batch norms use the statistics of each batch, which is their re-estimation.

    Args:
        model: of all networks; None if there is none.
        target: a state dict under the names of the spec.
        data: with targets.
        device: where the midpoints are run.

    Raises:
        InputError: there is no model, or the data do not fit it; ModelError: its forward fails.
    """

    def __init__(
        self, model: Model | None, target: StateDict, data: Data, device: torch.device
    ) -> None:
        if model is None:
            raise InputError(NO_MODEL)
        self._model, self._target, self._device = model, target, device
        self._loss = TaskLoss(model.module, model.fitted(data)).to(device)
        self.loss(target)  # so that what cannot be judged is known before anything is sought

    def loss(self, source: StateDict) -> float | None:
        """Return the loss of a network's midpoint, None where it is not finite.

        Raises:
            ModelError: the forward fails; InputError: outputs and targets do not fit.
        """
        middle = {name: self._between(a, source[name]) for name, a in self._target.items()}
        lost = float(self._loss.held_loss(self._model.in_module(middle)))
        return lost if math.isfinite(lost) else None

    def _between(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.to(self._device), b.to(self._device)
        if not a.is_floating_point() and not a.is_complex():
            return a
        return a + 0.5 * torch.where(a == b, 0.0, b.to(a.dtype) - a)  # masks have infinite entries


@dataclass(frozen=True)
class AlphaChoice:
    """Aligns by the weights alone and with each of `ALPHAS`, and chooses for each source.

    Attributes:
        settings: whose evidence names the data that choose; each alignment gets its share of the
            seconds for the search and for the proof.
        correlations: of each source.
        find: aligns.
        midpoints: what is lost half-way.
        store: where the searches of a single source are kept; None for nowhere.
    """

    settings: Settings
    correlations: Sequence[Correlations]
    find: Find
    midpoints: Midpoints
    store: SearchStore | None

    def run(self) -> list[Aligned]:
        """Return for each source the result whose midpoint loses least, on a tie the first.

        Ctrl-C ends it with what has been found.

        Raises:
            KeyboardInterrupt: nothing has.
        """
        alphas = (0.0, *ALPHAS)
        found: list[list[Aligned]] = []
        tried: list[list[AlphaTrial | None]] = []
        for alpha in alphas:
            if found and self.store is not None:
                self.store.next()
            try:
                outcomes = self._aligned(alpha)
                trials = [self._trial(alpha, outcome) for outcome in outcomes]
            except KeyboardInterrupt:
                if not found:
                    raise
                if self.store is not None:
                    self.store.flush()  # a search does so itself, and this was between two
                break
            found.append(outcomes)
            tried.append(trials)
            if any(outcome.status is Status.INTERRUPTED for outcome in outcomes):
                break
        is_whole = len(found) == len(alphas)
        return [
            _best(outcomes, trials, is_whole=is_whole)
            for outcomes, trials in zip(
                zip(*found, strict=True), zip(*tried, strict=True), strict=True
            )
        ]

    def _aligned(self, alpha: float) -> list[Aligned]:
        evidence = self.settings.evidence
        assert evidence is not None
        share = 1 / (1 + len(ALPHAS))
        settings = replace(
            self.settings,
            evidence=replace(evidence, alpha=alpha, judge=None) if alpha else None,
            budget=_shared(self.settings.budget, share),
            prove=None if self.settings.prove is None else self.settings.prove * share,
            progress=_named(self.settings.progress, alpha),
        )
        return self.find(settings, self.correlations if alpha else None)

    def _trial(self, alpha: float, outcome: Aligned) -> AlphaTrial | None:
        if isinstance(outcome, AlignmentFailure):
            return None
        return AlphaTrial(alpha, self.midpoints.loss(outcome.state_dict), outcome.distance)


def _best(
    outcomes: Sequence[Aligned], trials: Sequence[AlphaTrial | None], *, is_whole: bool
) -> Aligned:
    """Return the result whose midpoint loses least; the first failure if there is none."""
    found = [
        (math.inf if trial.loss is None else trial.loss, number)
        for number, trial in enumerate(trials)
        if trial is not None
    ]
    if not found:
        return outcomes[0]
    best = outcomes[min(found)[1]].unwrap()
    is_whole = is_whole and all(each.status is not Status.INTERRUPTED for each in outcomes)
    return replace(
        best,
        alphas=tuple(trial for trial in trials if trial is not None),
        status=best.status if is_whole else Status.INTERRUPTED,
    )


def _shared(budget: Budget | None, share: float) -> Budget | None:
    if budget is None or budget.seconds is None:
        return budget
    return replace(budget, seconds=budget.seconds * share)


def _named(callback: ProgressCallback | None, alpha: float) -> ProgressCallback | None:
    if callback is None:
        return None

    def named(entry: Progress) -> None:
        callback(replace(entry, stage=f"alpha {alpha:g}, {entry.stage}"))

    return named
