"""The beam-width study: what a wider beam buys, and what it costs."""

from collections.abc import Sequence

from gpu_align._errors import InputError
from gpu_align._problem import AlignmentProblem
from gpu_align._search import KBest, LayerwiseBeam, run_search

_MOST_CANDIDATES = 10


def beam_width_study(
    problem: AlignmentProblem,
    widths: Sequence[int] = (1, 2, 5, 10, 20),
    *,
    seed: int = 0,
    patience: float = 5.0,
) -> list[dict[str, float]]:
    """Run the layer-wise beam at several widths.

    A hypothesis is expanded by its `min(width, 10)` best assignments, so that width 1 is the
    greedy pass. Candidates from noise or rounding depend on luck as much as on the width; the
    exact best ones let the curve show the width alone.

    Args:
        problem: what is solved; its objective is the distance, the mean over several models.
        widths: hypotheses per model kept after each group.
        seed: of the searches.
        patience: seconds; a width that takes longer is the last one.

    Returns:
        One dict per width with "width", "distance" and "seconds", for `studies["beam_width"]` of
        a result; empty if the problem has no groups.

    Raises:
        InputError: a width is below 1.
    """
    if any(width < 1 for width in widths):
        raise InputError(f"expected widths of at least 1, got {list(widths)}")
    if not problem.order:
        return []
    # One pass that is not timed: threads and libraries start with the first one.
    run_search(LayerwiseBeam(), problem, seed=seed)
    rows: list[dict[str, float]] = []
    for width in widths:
        search = LayerwiseBeam(width, KBest(min(width, _MOST_CANDIDATES)))
        outcome = run_search(search, problem, seed=seed)
        distance = problem.unit * float(outcome.best.objective.mean())
        rows.append({"width": width, "distance": distance, "seconds": outcome.seconds})
        if outcome.seconds > patience:
            break
    return rows
