"""What the benches of searches share: the devices to run on, and the check of every answer."""

from gpu_align import AlignmentProblem, Permutation, SpecError, UnavailableError
from gpu_align._device._backend import CPU, Engine, choose_engine
from gpu_align._search import Outcome

EXCESS = 1e-5
"""Accepted difference of a claimed distance from float64, in units of both networks' norms."""


def engines() -> list[Engine]:
    """Return the CPU and, where there is one, the CUDA device; say so where there is none."""
    try:
        return [CPU, choose_engine("cuda")]
    except UnavailableError as error:
        print(f"device figures are not yet measured: {error}")
        return [CPU]


def result_name(name: str, found: list[Engine]) -> str:
    """Return the name of a recorded run: a run without a device leaves a device's alone."""
    return name if len(found) > 1 else f"{name}_cpu"


def gate(problem: AlignmentProblem, outcome: Outcome) -> tuple[Permutation, float]:
    """Return the best permutation and its distance from the checkpoints in float64.

    Raises:
        AssertionError: it is no permutation, or not as close as the search says.
    """
    try:
        permutation = problem.permutation(outcome.best)  # which checks itself
    except SpecError as error:
        raise AssertionError(f"no permutation: {error}") from error
    exact, claimed = problem.distance(permutation), float(outcome.best.objective[0])
    excess = abs(exact - claimed) / float(problem.constant[0])
    assert excess <= EXCESS, f"the distance is {exact}, not {claimed}"
    return permutation, exact
