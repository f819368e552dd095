"""The searches by their names on the command line."""

from gpu_align._errors import InputError
from gpu_align._network import TaskLoss
from gpu_align._search import SEARCHES, Search

NAMES = tuple(SEARCHES)


def make_search(
    name: str, width: int | None, starts: int | None, loss: TaskLoss | None = None
) -> Search | None:
    """Return the search of this name; None for the portfolio, which is made to fit the problem.

    Args:
        name: one of `NAMES`.
        width: hypotheses that are kept, for searches with a beam or a population.
        starts: hypotheses to begin from, for the others.
        loss: on data, for searches that follow one.

    Raises:
        InputError: no search has this name, it has no such setting, or it needs data.
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
    if not entry.needs_data:
        return entry.make(*chosen.values())
    if loss is None:
        raise InputError(
            f"--search {name} follows the loss of the networks on data, and needs these; from "
            f"Python call align(search={entry.kind.__name__}(TaskLoss(module, data)))"
        )
    return entry.make(loss)
