"""A proof while it is made: its time, its progress, and the stages that are kept."""

import math
import time

from gpu_align._problem import AlignmentProblem
from gpu_align._proof._check import Judge, Known, rounding_of, without
from gpu_align._proof._proof import AnyStage
from gpu_align._proof._record import ProofStep
from gpu_align._proof._reduced import Reduced, supposed
from gpu_align._proof._stage import Stage
from gpu_align._search import Progress, ProgressCallback

_EXCLUDED = 0.1
"""Share of the candidates that a stage excludes at least to be kept for that."""

_SILENCE = 1.0
"""Seconds of silence after which progress is shown within a sweep."""

_MOST_BYTES = 2**28
"""Of stages that exclude one pair each."""


class OutOfTime(Exception):
    """The seconds are spent."""


class Effort:
    """What is proved so far, and the stages that prove it.

    Attributes:
        judge: says what stages prove.
        known: by the stages that are kept, whose excluded pairs are gone for good.
        now: with the best stage since.
        history: after every sweep.
    """

    def __init__(
        self, problem: AlignmentProblem, form: Reduced, distance: float, judge: Judge
    ) -> None:
        self._unit, self._distance, self.judge = problem.unit, distance, judge
        self.rounding = rounding_of(form)
        self.known = self.now = Known.nothing(form)
        self.stages: list[AnyStage] = []
        self._last: AnyStage | None = None
        self.history: list[ProofStep] = []
        self._started = self._shown = time.perf_counter()
        self._probed = 0
        self.limit = math.inf
        self.progress: ProgressCallback | None = None

    @property
    def seconds(self) -> float:
        """Time spent."""
        return time.perf_counter() - self._started

    @property
    def gap(self) -> float:
        """By how much a better permutation might be closer; none is left where it is 0."""
        gap = self._distance - self.now.bound
        return 0.0 if gap <= self.rounding else gap

    def take(self, stage: AnyStage) -> None:
        """Judge a stage; keep it if it is the best one or excludes many pairs."""
        # Half of the rounding is left to a check, whose sums may differ.
        threshold = self._distance - self.rounding / 2
        found = self.known.after(self.judge(stage, self.known.alive), threshold)
        few = (1 - _EXCLUDED) * self.known.candidates
        if found.bound >= threshold or found.candidates <= few:
            self.stages.append(stage)
            self.known = self.now = found
            self._last = None
        elif found.bound > self.now.bound:
            self.now, self._last = found, stage
        self.history.append(
            ProofStep(self.seconds, self._unit * self.now.bound, self.now.candidates)
        )
        self._show()

    @property
    def is_full(self) -> bool:
        """Whether stages that exclude one pair each have taken the memory that they may take."""
        return self._probed >= _MOST_BYTES

    def probe(self, stage: Stage) -> float:
        """Keep a stage that supposes a pair if it excludes this pair.

        Returns:
            By how much its bound is too low for that; at most 0 if it is kept.
        """
        assert stage.given is not None
        threshold = self._distance - self.rounding / 2
        bound = self.judge(stage, supposed(self.known.alive, *stage.given)).bound
        if bound >= threshold:
            self.stages.append(stage)
            self.known = without(self.known, *stage.given)
            self.now = without(self.now, *stage.given)
            self._probed += sum(dual.nbytes for _, dual in stage.tensors())
            self._show()
        return threshold - bound

    def heartbeat(self) -> None:
        """Show progress after a silence.

        Raises:
            OutOfTime: the seconds are spent.
        """
        if time.perf_counter() - self._shown >= _SILENCE:
            self._show()
        if self.seconds >= self.limit:
            raise OutOfTime

    def all_stages(self) -> tuple[AnyStage, ...]:
        """Return the stages in the order of their use."""
        return (*self.stages, *([] if self._last is None else [self._last]))

    def _show(self) -> None:
        self._shown = time.perf_counter()
        if self.progress is None:
            return
        bound, distance = self._unit * self.now.bound, self._unit * self._distance
        share = 100 * self.gap / self._distance if self._distance > 0 else 0.0
        part = f"bound {bound:.6g}, gap {share:.3g} %, {self.now.candidates} candidates left"
        left = max(self.limit - self.seconds, 0.0)
        self.progress(
            Progress("Proof", len(self.history), None, distance, self.seconds, left, part)
        )
