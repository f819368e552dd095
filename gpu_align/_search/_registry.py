"""The searches by their names on the command line, with the one setting that it offers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gpu_align._search._annealing import Annealing
from gpu_align._search._beam import BeamDescent
from gpu_align._search._candidates import KBest
from gpu_align._search._descent import CoordinateDescent
from gpu_align._search._frank_wolfe import FrankWolfe
from gpu_align._search._layerwise import LayerwiseBeam
from gpu_align._search._learned import Learned
from gpu_align._search._portfolio import Portfolio
from gpu_align._search._recombination import Recombination
from gpu_align._search._search import Search
from gpu_align._search._sinkhorn import Sinkhorn
from gpu_align._search._straight_through import StraightThrough

_MOST_CANDIDATES = 8  # of each hypothesis in the layer-wise beam; further ones rarely survive


@dataclass(frozen=True)
class Entry:
    """A search that is offered by name.

    Attributes:
        kind: its class.
        setting: what may be chosen: hypotheses that are kept ("width") or begun from ("starts").
        make: returns the search, with its own default or with a value of the setting; None where
            it is made to fit the problem. One that needs data is made of its `TaskLoss`, one that
            needs an aligner of that and of the search that goes on, if there is one.
        needs_data: whether it follows a loss on data.
        needs_aligner: whether it goes by learned scores.
    """

    kind: type[Search]
    setting: Literal["width", "starts"] | None
    make: Callable[..., Search | None]
    needs_data: bool = False
    needs_aligner: bool = False


def _layerwise(width: int = 4) -> Search:
    # A beam of one is the greedy pass, for which the best candidate is enough.
    return LayerwiseBeam(width, KBest(min(width, _MOST_CANDIDATES)), lookahead=True)


def _descent(starts: int = 1) -> Search:
    return CoordinateDescent(starts, initial="random")


SEARCHES: Mapping[str, Entry] = {
    "portfolio": Entry(Portfolio, None, lambda: None),
    "layerwise": Entry(LayerwiseBeam, "width", _layerwise),
    "beam": Entry(BeamDescent, "width", BeamDescent),
    "recombination": Entry(Recombination, "width", Recombination),
    "descent": Entry(CoordinateDescent, "starts", _descent),
    "frank-wolfe": Entry(FrankWolfe, "starts", FrankWolfe),
    "annealing": Entry(Annealing, "starts", Annealing),
    "learned": Entry(Learned, None, Learned, needs_aligner=True),
    "ste": Entry(StraightThrough, None, StraightThrough, needs_data=True),
    "sinkhorn": Entry(Sinkhorn, None, Sinkhorn, needs_data=True),
}
"""Every search of this package, the default first."""
