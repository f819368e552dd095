"""The searches by their names on the command line."""

from gpu_align._cli._options import BUNDLED
from gpu_align._errors import InputError
from gpu_align._network import TaskLoss
from gpu_align._search import SEARCHES, Learned, Portfolio, Search

NAMES = tuple(SEARCHES)


def follows_loss(name: str) -> bool:
    """Whether a search of this name, if there is one, follows a loss on data."""
    return name in SEARCHES and SEARCHES[name].needs_data


def make_search(
    name: str,
    width: int | None,
    starts: int | None,
    loss: TaskLoss | None = None,
    aligner: str | None = None,
) -> Search | None:
    """Return the search of this name; None for the portfolio, which is made to fit the problem.

    Args:
        name: one of `NAMES`.
        width: hypotheses that are kept, for searches with a beam or a population.
        starts: hypotheses to begin from, for the others.
        loss: on data, for searches that follow one.
        aligner: path of a trained one, or `BUNDLED`, from whose answer the search begins.

    Raises:
        InputError: no search has this name, it has no such setting, or it needs data;
        CheckpointError: the aligner cannot be read.
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
    if entry.needs_aligner:
        return _learned(aligner or BUNDLED, None)
    if not entry.needs_data:
        search = entry.make(*chosen.values())
        return search if aligner is None else _learned(aligner, search or Portfolio())
    if loss is None:
        raise InputError(
            f"--search {name} follows the loss of the networks on data, and needs these; add "
            "--data, --model and --input-shape, or choose another search"
        )
    search = entry.make(loss)
    return search if aligner is None else _learned(aligner, search)


def _learned(aligner: str, then: Search | None) -> Search:
    # Few searches need it, and its layers take a moment to import.
    from gpu_align.learn import Aligner

    return Learned(Aligner.bundled() if aligner == BUNDLED else Aligner.load(aligner), then)
