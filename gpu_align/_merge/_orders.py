"""Orders: networks whose units are brought into one order, in several ways."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from gpu_align._align import (
    ALPHAS,
    CommonEvidence,
    Correlations,
    Correlator,
    Evidence,
    Model,
    Settings,
    align_networks,
    common_frame,
    pairs_bytes,
)
from gpu_align._device import free_bytes
from gpu_align._merge._calibration import BATCH
from gpu_align._merge._stages import StageStore, stage
from gpu_align._network import Examples, Traces
from gpu_align._search import Annealing, CoordinateDescent, Search
from gpu_align._status import Status
from gpu_align._symmetry import Permutation, PermutationSpec, StateDict

NO_ROOM = (
    "orders by weights and data were left out: how the units of so many networks correlate does "
    "not fit the memory"
)
_OF_MANY = 0.3
"""How much activations count beside weights of three or more networks: 1 gained nothing more."""
EVIDENCE = 1000
"""Examples that correlations are taken over."""
_ROUNDS = 100
"""Most rounds in which several networks are brought into one order by weights."""
_ROUNDS_BY_DATA = 10
"""The same by weights and data, of which later ones hardly change what is merged."""
_SHARE = 0.5
"""Of the free memory, for the correlations of several networks."""
_WIDE = 256
"""Units of a group from which annealing costs more than it gains."""


@dataclass(frozen=True)
class Order:
    """Networks whose units were brought into one order.

    Attributes:
        name: how.
        states: of the networks.
        permutations: what brought them there.
        cycle_error: see `MergeResult`.
    """

    name: str
    states: Sequence[StateDict]
    permutations: Sequence[Permutation]
    cycle_error: float | None = None


@dataclass(frozen=True)
class Orders:
    """Brings the units of networks into one order.

    Attributes:
        spec: the symmetries of the networks.
        states: the networks, under the names of the spec.
        settings: of the searches.
        model: what is run; None if there is none.
        examples: what correlations are taken over; None without data.
        traces: of the model; None without data.
        tell: called with a few words before each alignment.
        store: where what was found is kept; None for nowhere.
    """

    spec: PermutationSpec
    states: Sequence[StateDict]
    settings: Settings
    model: Model | None
    examples: Examples | None
    traces: Traces | None
    tell: Callable[[str], None]
    store: StageStore | None

    def as_given(self) -> Order:
        """Return the networks as they are."""
        still = [Permutation.identity(self.spec) for _ in self.states]
        return Order("as given", self.states, still)

    @property
    def search(self) -> Search:
        """What looks for the permutations."""
        if self.settings.search is not None:
            return self.settings.search
        widest = max(map(self.spec.units, self.spec.groups), default=0)
        alone = len(self.states) == 2 and widest <= _WIDE
        return Annealing() if alone else CoordinateDescent()

    @property
    def lacks_room(self) -> bool:
        """Whether there are data, but no room in memory for them to count."""
        return self.examples is not None and not self.alphas

    @cached_property
    def alphas(self) -> tuple[float, ...]:
        """How much data may count; none without data, or if they do not fit the memory.

        Of three or more networks the correlations of all pairs are in memory at once.
        """
        if self.examples is None:
            return ()
        if len(self.states) == 2:
            return ALPHAS
        need = pairs_bytes(self.spec, len(self.states))
        fits = need <= _SHARE * free_bytes(self.settings.engine.device)
        return (_OF_MANY,) if fits else ()

    def aligned(self, alpha: float | None) -> Order:
        """Align to the first network; by weights alone without an alpha."""
        return self._by_weights if alpha is None else self._aligned(alpha)

    @cached_property
    def _by_weights(self) -> Order:
        return self._aligned(None)

    def _aligned(self, alpha: float | None) -> Order:
        """See `aligned`."""
        name = "weights" if alpha is None else f"weights and data, {alpha:g}"
        if len(self.states) == 2:
            find = partial(self._pair, alpha)
        elif alpha is None:
            find = partial(self._in_one_frame, name, None)
        else:
            evidence = partial(self._common_evidence, alpha, self._by_weights)
            find = partial(self._in_one_frame, name, evidence)
        self.tell(f"aligning by {name}")
        found = stage(self.store, f"aligning by {name}", find)
        moves = [Permutation(self.spec, *vectors) for vectors in found["permutations"]]
        pairs = zip(moves, self.states[1:], strict=True)
        states = [self.states[0], *(move.apply(state) for move, state in pairs)]
        still = Permutation.identity(self.spec)
        return Order(name, states, [still, *moves], found["cycle_error"])

    def _pair(self, alpha: float | None) -> dict[str, Any]:
        """Align two networks; see `aligned`."""
        settings = replace(self.settings, search=self.search)
        if alpha is not None:
            assert self.examples is not None
            known = [self._correlations]
            evidence = Evidence("both", alpha, self.examples, known=known)
            settings = replace(settings, evidence=evidence)
        first, second = self.states
        [found] = align_networks(
            *([second], first, settings),
            spec=self.spec,
            model=self.model,
            throw=True,
            store=None if self.store is None else self.store.search_store(),
        )
        result = found.unwrap()
        if result.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return _found([result.permutation], None)

    @cached_property
    def _correlations(self) -> Correlations:
        """How the units of two networks correlate, the same for every alpha."""
        [found] = self._pairs.values()
        return found

    @cached_property
    def _pairs(self) -> dict[tuple[int, int], Correlations]:
        """How the units of every two networks correlate."""
        assert self.examples is not None
        device = self.settings.engine.device
        found: dict[tuple[int, int], Correlations] = {}
        for first, second in itertools.combinations(range(len(self.states)), 2):
            about = self.model, self.spec, self.states[first], self.examples, device
            correlator = Correlator(*about, traces=self.traces, batch_size=BATCH)
            found[first, second] = correlator.of(self.states[second])
        return found

    def _common_evidence(self, alpha: float, by_weights: Order) -> CommonEvidence:
        """Return what correlations say, scaled by what weights are worth in their own order."""
        frame = by_weights.states, by_weights.permutations
        return CommonEvidence.of(self._pairs, alpha, self.spec, self.settings, *frame)

    def _in_one_frame(
        self, name: str, evidence: Callable[[], CommonEvidence] | None
    ) -> dict[str, Any]:
        """Align several networks to the first one, so that cycles close."""

        def keep(search: str, make: Callable[[], Any]) -> Any:
            return stage(self.store, f"{name}: {search}", make)

        found = common_frame(
            self.states,
            self.spec,
            replace(self.settings, search=self.search),
            method="one_by_one",
            rounds=_ROUNDS if evidence is None else _ROUNDS_BY_DATA,
            start=None if evidence is None else 0,
            frame=0,
            names=[None] * len(self.states),
            keep=keep,
            evidence=None if evidence is None else evidence(),
        )
        if found.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return _found(found.permutations[1:], found.cycle_error())


def _found(permutations: Sequence[Permutation], cycle_error: float | None) -> dict[str, Any]:
    """Return what an alignment came to, as a stage."""
    vectors = [(dict(each.perms), dict(each.signs)) for each in permutations]
    return {"permutations": vectors, "cycle_error": cycle_error}
