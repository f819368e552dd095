"""The searches by their names on the command line."""

from collections.abc import Callable

from gpu_align._errors import InputError
from gpu_align._search import (
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    KBest,
    LayerwiseBeam,
    Recombination,
    Search,
)

_MOST_CANDIDATES = 8  # of each hypothesis in the layer-wise beam; further ones rarely survive


def _layerwise(width: int = 4) -> Search:
    # A beam of one is the greedy pass, for which the best candidate is enough.
    return LayerwiseBeam(width, KBest(min(width, _MOST_CANDIDATES)), lookahead=True)


def _descent(starts: int = 1) -> Search:
    return CoordinateDescent(starts, initial="random")


_BY_WIDTH: dict[str, Callable[..., Search]] = {
    "layerwise": _layerwise,
    "beam": BeamDescent,
    "recombination": Recombination,
}
_BY_STARTS: dict[str, Callable[..., Search]] = {
    "descent": _descent,
    "frank-wolfe": FrankWolfe,
    "annealing": Annealing,
}
NAMES = ("portfolio", *_BY_WIDTH, *_BY_STARTS)


def make_search(name: str, width: int | None, starts: int | None) -> Search | None:
    """Return the search of this name; None for the portfolio, which is made to fit the problem.

    Args:
        name: one of `NAMES`.
        width: hypotheses that are kept, for searches with a beam or a population.
        starts: hypotheses to begin from, for the others.

    Raises:
        InputError: no search has this name, or it has no such setting.
    """
    if name not in NAMES:
        raise InputError(f"--search: expected one of {', '.join(NAMES)}, got {name!r}")
    for option, value, kinds in (("width", width, _BY_WIDTH), ("starts", starts, _BY_STARTS)):
        if value is not None and name not in kinds:
            raise InputError(
                f"--{option} is not a setting of --search {name}, but of {', '.join(kinds)}; "
                "leave it out or choose one of them"
            )
    if name == "portfolio":
        return None
    settings = [value for value in (width, starts) if value is not None]
    return {**_BY_WIDTH, **_BY_STARTS}[name](*settings)
