"""Task: networks that are merged, in one way or in several that are compared."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from gpu_align._align import Model, Settings
from gpu_align._checkpoint import Renamed, rename
from gpu_align._errors import InputError, ModelError
from gpu_align._merge._average import average, check_alike, shares_of, slerp
from gpu_align._merge._calibration import FIT, METHODS, Calibration
from gpu_align._merge._distill import MORE, PASSES, Distillation
from gpu_align._merge._match import group_matches
from gpu_align._merge._orders import EVIDENCE, NO_ROOM, Order, Orders
from gpu_align._merge._result import MergeResult, Trial
from gpu_align._merge._stages import StageStore, identity_of, stage
from gpu_align._network import Data, Examples, Loss, Score, Traces, evaluate_many, loss_function
from gpu_align._symmetry import PermutationSpec, StateDict, chain_spec

PLAIN = ("naive", "average", "slerp")
"""Ways that need no data; with data the statistics of batch norms are measured anew."""
DISTILL = "distill"
WAYS = ("auto", *PLAIN, *METHODS, DISTILL)
_FITS = ("refit", "refit-parents")
_FIRST = 750
"""Examples that the order of the units is chosen on."""


@dataclass(frozen=True)
class Merged:
    """A merged network under the names of the spec, and what is known of it."""

    state: StateDict
    order: Order
    trial: Trial


def silent(*told: object) -> None:
    """Say nothing of what is done."""


@dataclass(frozen=True)
class Task:
    """Networks that are merged, and with what; see `merge`.

    Attributes:
        given: their state dicts.
        model: what is run; None if there is none.
        known_spec: the symmetries; None to find them.
        names: of the networks.
        settings, data, weights, loss, examples, tell: as for `merge`; `tell` is its progress.
        store: where stages that are done are kept; None for nowhere.
    """

    given: Sequence[StateDict]
    settings: Settings
    model: Model | None
    known_spec: PermutationSpec | None
    data: Data | None
    names: Sequence[str]
    weights: Sequence[float] | None
    loss: str | Loss
    examples: int | None
    tell: Callable[[str], None] = field(default=silent)
    store: StageStore | None = None

    def run(self, method: str) -> MergeResult:
        """Merge.

        Raises:
            InputError, KeyboardInterrupt: see `merge`.
        """
        began = time.perf_counter()
        self._check(method)
        if self.store is not None:
            self.store.begin(self._identity(method))
        trials: list[Trial] = []
        if self.data is not None:
            self.tell("measuring the networks")
            scores = self._scores(self.states, self._held)
            trials += [
                _trial(name, "", score, None)
                for name, score in zip(self.names, scores, strict=True)
            ]
        found, left_out = self._auto() if method == "auto" else (self._one(method), ())
        best = min(found, key=_loss_of)
        trials += [one.trial for one in found]
        return MergeResult(
            state_dict=self._renamed[0].restore(dict(best.state)),
            chosen=best.trial,
            trials=tuple(trials),
            permutations=tuple(best.order.permutations),
            cycle_error=best.order.cycle_error,
            weights=tuple(self.shares),
            notes=(*self._notes(best.trial, trials), *left_out),
            groups=group_matches(
                *(self.spec, self.states, best.order.states, best.order.permutations, self.shares)
            ),
            seconds=time.perf_counter() - began,
            seed=self.settings.seed,
        )

    @cached_property
    def spec(self) -> PermutationSpec:
        """The symmetries of the networks."""
        if self.known_spec is not None:
            return self.known_spec
        return chain_spec(self.given[0]) if self.model is None else self.model.find_spec()

    @cached_property
    def states(self) -> list[StateDict]:
        """The state dicts under the names of the spec."""
        return [each.state for each in self._renamed]

    @cached_property
    def shares(self) -> list[float]:
        """The weights, summing to 1."""
        return shares_of(self.weights, len(self.given))

    @cached_property
    def _renamed(self) -> list[Renamed]:
        return [rename(state, self.spec.keys) for state in self.given]

    @cached_property
    def _held(self) -> Examples:
        assert self.data is not None
        return self.data.held.take(self._calibration.judged)

    @cached_property
    def _count(self) -> int:
        """How many examples are fitted on."""
        if self.examples is not None:
            return self.examples
        return FIT if self.data is None else self._calibration.count

    @cached_property
    def _calibration(self) -> Calibration:
        """With the examples that the order of the units is chosen on."""
        return Calibration(self._traces, self._fit(_FIRST))

    @cached_property
    def _traces(self) -> Traces:
        assert self.model is not None
        return Traces(self.model.network, self.model.outputs, self.settings.engine.device)

    @cached_property
    def _orders(self) -> Orders:
        examples, traces = (
            (None, None) if self.data is None else (self._fit(EVIDENCE), self._traces)
        )
        about = self.spec, self.states, self.settings, self.model
        return Orders(*about, examples, traces, self.tell, self.store)

    def _check(self, method: str) -> None:
        if method not in WAYS:
            raise InputError(f"expected a method among {', '.join(WAYS)}, got {method!r}")
        if len(self.given) < 2:
            raise InputError(
                f"expected at least two networks to merge, got {len(self.given)}; pass a list"
            )
        check_alike(self.given)
        if method == "slerp" and len(self.given) > 2:
            raise InputError(f"slerp lies between two networks, got {len(self.given)}")
        if self.data is None and method in (*METHODS, DISTILL):
            raise InputError(
                f"method={method!r} measures the networks on data, and none were given; pass data, "
                f"or a method among auto, {', '.join(PLAIN)}"
            )
        if self.data is not None and self.model is None:
            raise InputError(
                "data are of use only with a model that is run on them, and none was given; pass "
                "a module among the networks, or leave data out"
            )

    def _one(self, method: str) -> list[Merged]:
        """Merge in one way."""
        if method == "naive":
            order = self._orders.as_given()
        else:
            order = self._orders.aligned(next(iter(self._orders.alphas), None))
        start = (
            slerp(order.states[0], order.states[1], self.shares[1], self.spec)
            if method == "slerp"
            else None
        )
        if method == DISTILL:
            fits = self._set_right(order, _FITS, self._count)
            return [self._distilled(self._between(*fits))]
        finish = "norms" if method in PLAIN else method
        return self._set_right(order, [finish], self._count, start)

    def _auto(self) -> tuple[list[Merged], Sequence[str]]:
        """Merge in several ways: first for the order of the units, then to set the mean right.

        Returns:
            The merged networks, and why a way was left out.
        """
        if self.data is None:
            return self._one("average"), ()
        orders = [self._orders.as_given(), self._orders.aligned(None)]
        orders += map(self._orders.aligned, self._orders.alphas)
        looks = ["norms"] if self._calibration.has_batch_norms else ["norms", "repair"]
        found = [one for order in orders for one in self._set_right(order, looks, _FIRST)]
        best = min(found, key=_loss_of).order
        plain = min(found[: 2 * len(looks)], key=_loss_of).order
        # Of many networks the best without data, too: fits may turn round which order is better.
        starts = [best] if best is plain or len(self.given) == 2 else [best, plain]
        finished = [self._finished(order, looks) for order in starts]
        return found + [one for made, _ in finished for one in made], finished[0][1]

    def _finished(self, order: Order, seen: Sequence[str]) -> tuple[list[Merged], Sequence[str]]:
        """Set the mean of networks in one order right in more ways than those seen, see `_auto`."""
        refusal = Calibration(self._traces, self._fit(self._count)).refusal
        fits = () if refusal else _FITS
        ways = [way for way in ("repair", *fits) if way not in seen]
        found = self._set_right(order, ways, self._count) if ways else []
        if refusal:
            return found, [f"{', '.join(_FITS)} and {DISTILL} were left out: {refusal}"]
        found.append(self._between(*found[-2:]))
        if not self._calibration.is_cheap:
            return found, ()
        try:
            return [*found, self._distilled(found[-1])], ()
        except ModelError as error:
            return found, [f"{DISTILL} was left out: {error}"]

    def _between(self, first: Merged, second: Merged) -> Merged:
        """Return the mean of two merged networks, whose units are in one order."""
        state = average([first.state, second.state], spec=self.spec)
        [score] = self._scores([state], self._held)
        return Merged(
            state,
            first.order,
            _trial(
                first.order.name, "refit, mean", score, first.trial.distance, first.trial.fitted
            ),
        )

    def _identity(self, method: str) -> dict[str, str]:
        """Return all that the result depends on."""
        data = self.data
        parts = [] if data is None else [self._fit(max(MORE * self._count, EVIDENCE)), self._held]
        return identity_of(
            self.given,
            parts,
            {
                "the method": method,
                "the weights": self.shares,
                "the loss": getattr(self.loss, "__qualname__", self.loss),
                "the examples": self._count,
                "the search": self._orders.search,
                "the metric": self.settings.metric.name,
                "the device": self.settings.engine.device.type,
                "the seed": self.settings.seed,
                "the symmetries": replace(self.spec, origin="").to_json(),
            },
        )

    def _fit(self, count: int) -> Examples:
        assert self.data is not None
        return self._traces.enough(self.data.fit, count)

    def _set_right(
        self, order: Order, methods: Sequence[str], examples: int, start: StateDict | None = None
    ) -> list[Merged]:
        """Average networks, set the mean right by each method, and measure what comes out."""
        mean = average(order.states, self.shares, self.spec) if start is None else start
        distance = self._distance(order, mean)
        if self.data is None or self.model is None:
            return [Merged(mean, order, Trial(order.name, "none", distance=distance))]
        make = partial(self._mended, order, mean, methods, examples)
        return self._made(order, methods, distance, make)

    def _made(
        self,
        order: Order,
        methods: Sequence[str],
        distance: float | None,
        make: Callable[[], tuple[list[dict[str, Tensor]], int]],
    ) -> list[Merged]:
        """Make merged networks as a stage, and measure them.

        Args:
            order: of the units.
            methods: one for each network.
            distance: see `Trial`.
            make: returns the tensors that were changed, under the names of the spec, and the number
                of examples.
        """
        name = f"{order.name}: {', '.join(methods)}"
        self.tell(name)

        def measured() -> dict[str, Any]:
            states, fitted = make()
            scores = self._scores(states, self._held)
            trials = [
                asdict(_trial(order.name, method, score, distance, fitted))
                for method, score in zip(methods, scores, strict=True)
            ]
            return {"states": states, "trials": trials}

        done = stage(self.store, name, measured)
        return [
            Merged(state, order, Trial(**trial))
            for state, trial in zip(done["states"], done["trials"], strict=True)
        ]

    def _mended(
        self, order: Order, mean: StateDict, methods: Sequence[str], examples: int
    ) -> tuple[list[dict[str, Tensor]], int]:
        """Set a mean right by each method, see `_made`."""
        assert self.model is not None
        ways = [METHODS[method] for method in methods]
        calibration = Calibration(self._traces, self._fit(examples))
        calibration = calibration.fitting(len(order.states), ways)
        inside = [self.model.in_module(state) for state in (mean, *order.states)]
        made = calibration.mended([inside[0]] * len(ways), inside[1:], self.shares, ways)
        return [self._outside(mean, one) for one in made], len(calibration.examples)

    def _distilled(self, start: Merged) -> Merged:
        """Train a merged network on what its parents say."""
        make = partial(self._taught, start)
        [found] = self._made(start.order, [DISTILL], start.trial.distance, make)
        return found

    def _taught(self, start: Merged) -> tuple[list[dict[str, Tensor]], int]:
        """Train a merged network, see `_made`."""
        assert self.model is not None
        calibration = Calibration(self._traces, self._fit(self._count))
        fitted = len(calibration.fitting(len(self.states), []).examples)
        examples = self._fit(fitted if self.examples else MORE * fitted)
        epochs = PASSES * fitted // len(examples)
        about = self.model.module, self._traces, examples, epochs
        inside = [self.model.in_module(state) for state in (start.state, *self.states)]
        teaching = Distillation(*about, loss_function(self.loss), self.settings.seed)
        made = teaching.of(inside[0], inside[1:], self.shares)
        return [self._outside(start.state, made)], len(examples)

    def _outside(self, state: StateDict, changed: StateDict) -> dict[str, Tensor]:
        """Return a state with tensors of the module in it, under the names of the spec."""
        assert self.model is not None
        names = self.model.names
        return {**state, **{names.get(own, own): tensor for own, tensor in changed.items()}}

    def _scores(self, states: Sequence[StateDict], examples: Examples) -> list[Score]:
        assert self.model is not None
        return evaluate_many(
            *(self.model.module, list(map(self.model.in_module, states)), examples, self.loss),
            device=self.settings.engine.device,
        )

    def _distance(self, order: Order, mean: StateDict) -> float:
        """Return the squared distance of the networks to their mean, of what counts in it."""
        counted = [name for name, tensor in self.spec.tensors.items() if tensor.counted]
        total = 0.0
        for share, state in zip(self.shares, order.states, strict=True):
            for name in counted:
                pair = (self.spec.tensor_of(name, each).double() for each in (state, mean))
                a, b = pair
                total += share * float((a - b.to(a.device)).square().sum())
        return total

    def _notes(self, chosen: Trial, trials: Sequence[Trial]) -> Iterator[str]:
        if self._orders.lacks_room and any(one.order == "weights" for one in trials):
            yield NO_ROOM
        most = 0 if self.data is None else min(self._count, _FIRST, len(self.data.fit))
        least = min((one.fitted for one in trials if one.is_merged), default=most)
        if least < most:
            yield f"set right on as few as {least} examples: more do not fit the memory at once"
        if chosen.loss is None:
            yield (
                "no data were given: the loss of the merged network is not known, and a lower "
                "distance can be a higher loss"
            )
            return
        parents = [one for one in trials if not one.is_merged and one.loss is not None]
        better = min(parents, key=lambda one: one.loss or 0.0)
        if chosen.loss > (better.loss or 0.0):
            yield (
                f"the merged network is worse than {better.order} on the held-back data: loss "
                f"{chosen.loss:.4g} against {better.loss:.4g}; a network that was trained on these "
                "knows them by heart"
            )


def _loss_of(one: Merged) -> float:
    return math.inf if one.trial.loss is None or math.isnan(one.trial.loss) else one.trial.loss


def _trial(
    order: str, method: str, score: Score, distance: float | None = None, fitted: int = 0
) -> Trial:
    measured = score.loss, score.accuracy, score.ece
    return Trial(order, method, *measured, distance, score.examples, fitted)
