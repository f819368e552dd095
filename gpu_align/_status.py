"""Every way in which a search or an assignment can end, with its cause and remedy."""

from enum import Enum


class Status(Enum):
    """How a computation ended; the value is a sentence for people."""

    OPTIMAL = "optimal, certified by its duality gap"
    SOLVED = "solved exactly by the solver; ask for potentials to have a certificate"
    NOT_FINITE = (
        "the cost matrix has NaN or infinite entries; check the weights for NaN or overflow"
    )
    ROUND_LIMIT = "the solver's bound on rounds was spent; allow more, or choose ScipyAssignment()"
    INEXACT = "the solver's own certificate failed, which is a bug; choose ScipyAssignment()"
    WRONG_SIZE = "the problem's size isn't within 0 .. n; pad the cost matrices to the largest size"
    UNUSABLE = "the source cannot be read or used, so it was left out; its error says what to mend"
    PROVED_OPTIMAL = "proved optimal: no permutation is closer, up to rounding"
    CONVERGED = "no better order of a group was found with the others fixed"
    COMPLETED = "the search has run its course"
    SWEEP_BUDGET = "the budget of sweeps was spent; allow more for a better optimum"
    TIME_BUDGET = "the budget of seconds was spent; allow more for a better optimum"
    INTERRUPTED = "interrupted; this is the best permutation found until then"
    TRIVIAL = "nothing to search: no group has more than one unit, or both networks are equal"

    def __str__(self) -> str:
        return self.name.lower()
