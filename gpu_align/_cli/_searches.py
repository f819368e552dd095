"""The searches by their names on the command line."""

from gpu_align._errors import InputError
from gpu_align._search import SEARCHES, Search

NAMES = tuple(SEARCHES)


def make_search(name: str, width: int | None, starts: int | None) -> Search | None:
    """Return the search of this name; None for the portfolio, which is made to fit the problem.

    Args:
        name: one of `NAMES`.
        width: hypotheses that are kept, for searches with a beam or a population.
        starts: hypotheses to begin from, for the others.

    Raises:
        InputError: no search has this name, or it has no such setting.
    """
    if name not in SEARCHES:
        raise InputError(f"--search: expected one of {', '.join(NAMES)}, got {name!r}")
    entry = SEARCHES[name]
    chosen = {k: v for k, v in (("width", width), ("starts", starts)) if v is not None}
    for option in chosen:
        if option != entry.setting:
            others = [other for other, its in SEARCHES.items() if its.setting == option]
            raise InputError(
                f"--{option} is not a setting of --search {name}, but of {', '.join(others)}; "
                "leave it out or choose one of them"
            )
    return entry.make(*chosen.values())
