"""Work where speed is the point: what is updated is not computed anew, rounds stay few.

And what several batches may spend together.
"""

import re
from collections.abc import Mapping

import pytest
import torch
from networks import mlp, pair, randomised
from test_many import FORWARD, with_memory, zoo
from test_problem import problem_of
from test_similarity_cache import swapped
from torch import Tensor

from gpu_align import (
    METRICS,
    AlignmentProblem,
    Annealing,
    BeamDescent,
    Budget,
    CoordinateDescent,
    FrankWolfe,
    KBest,
    LayerwiseBeam,
    Portfolio,
    Progress,
    Recombination,
    Search,
    align,
    chain_spec,
    run_search,
)
from gpu_align._align._batches import bytes_per_model
from gpu_align._device import RandomStream
from gpu_align._search import Run
from gpu_align._search._loop import run_to_end


class Counted(AlignmentProblem):
    """A problem that counts the similarities computed in full, and those updated."""

    full = updated = 0

    def similarity(self, variable: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        self.full += 1
        return super().similarity(variable, perms, model)

    def updated_similarity(self, *arguments: object) -> Tensor:
        self.updated += 1
        return super().updated_similarity(*arguments)


def counted(name: str) -> Counted:
    networks = pair(name)
    return Counted(networks.source, networks.target, networks.spec)


@pytest.mark.parametrize("name", ["deep", "cnn", "trilinear", "recurrent", "signed"])
def test_a_small_change_is_an_update_and_a_large_one_is_not(
    name: str, stream: RandomStream
) -> None:
    problem = counted(name)
    perms = problem.random(2, stream).perms
    turned = {name: perm.roll(1, 1) for name, perm in perms.items()}
    model = torch.zeros(2, dtype=torch.int64)
    for variable, size in problem.sizes.items():
        old = torch.zeros(2, size, size, dtype=torch.float64)
        unchanged = problem.updated_similarity(variable, old, perms, perms, model)
        assert torch.equal(unchanged, old)
    assert problem.full == 0
    for variable, size in problem.sizes.items():
        old = torch.zeros(2, size, size, dtype=torch.float64)
        problem.updated_similarity(variable, old, perms, turned, model)
    assert problem.full == sum(bool(problem.terms_of(variable)) for variable in problem.sizes)


def test_a_swap_of_two_units_among_many_is_an_update(stream: RandomStream) -> None:
    problem = counted("deep")
    perms = problem.random(2, stream).perms
    after = swapped(perms, stream, 0.23)
    assert all((after[name] != perm).sum() == 4 for name, perm in perms.items())
    model = torch.zeros(2, dtype=torch.int64)
    for variable, size in problem.sizes.items():
        old = torch.zeros(2, size, size, dtype=torch.float64)
        problem.updated_similarity(variable, old, perms, after, model)
    assert problem.full == 0


def test_a_descent_updates_what_it_has_seen() -> None:
    """Each group is looked at in full once, and again only where much has moved since."""
    states = [randomised(mlp([4, 12, 12, 12, 3]), seed).state_dict() for seed in (0, 1)]
    problem = Counted(*states, chain_spec(states[0]))
    run = Run(problem, RandomStream(0))
    run.executor.cache.least_work = 0
    outcome = run_to_end(run, CoordinateDescent(order="forward"))
    groups, looks = len(problem.order), outcome.assignments
    assert looks > groups
    assert problem.updated == looks - groups
    assert problem.full < looks


def test_a_group_whose_neighbours_rest_is_not_looked_at_again() -> None:
    """The last sweep of a descent finds nothing: no sweep after it solves anything."""
    problem = problem_of(pair("mlp"))
    first = run_search(CoordinateDescent(order="forward"), problem)
    again = run_search(CoordinateDescent(order="forward"), problem, start=first.best)
    assert again.assignments == len(problem.order)
    assert len(again.history) == 1


@pytest.mark.parametrize("fitting", [1, 2, 3])
def test_batches_share_a_budget_of_seconds(fitting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its share of the sources' seconds, counted from its own beginning."""
    spec, sources, target = zoo("mlp", 5)
    with_memory(monkeypatch, fitting, sources, spec)
    shares: dict[int, float] = {}

    def note(entry: Progress) -> None:
        first, last = map(int, re.findall(r"models (\d+) to (\d+) of 5", entry.stage)[0])
        assert entry.seconds_left is not None
        share = entry.seconds + entry.seconds_left
        assert share == pytest.approx(1000 * (last - first + 1), abs=1)
        shares[first] = share

    budget = Budget(seconds=5000)
    align(sources, target, spec=spec, search=FORWARD, budget=budget, progress=note)
    assert len(shares) == -(-5 // fitting)
    assert sum(shares.values()) == pytest.approx(5000, abs=5)


def test_batches_leave_room_for_the_results_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free is planned with, and on the host the results are not free."""
    spec, sources, target = zoo("mlp", 4)
    for missing, size in ((0, 2), (2, 1)):
        with_memory(monkeypatch, 2, sources, spec, missing=missing)
        results = align(sources, target, spec=spec, search=FORWARD)
        assert [result.batch_size for result in results] == [size] * 4


@pytest.mark.parametrize("name", ["mlp", "heads"])
def test_a_model_needs_more_memory_the_more_hypotheses_there_are(name: str) -> None:
    def need(search: Search) -> int:
        return bytes_per_model(pair(name).spec, METRICS["l2"], search, torch.float32)

    for few, many_more in (
        (LayerwiseBeam(3, KBest(1)), LayerwiseBeam(3, KBest(20))),
        (LayerwiseBeam(3, KBest(4)), LayerwiseBeam(9, KBest(4))),
        (CoordinateDescent(), CoordinateDescent(starts=5)),
        (FrankWolfe(), FrankWolfe(starts=5)),
        (Annealing(starts=1), Annealing(starts=5)),
        (Recombination(population=8), Recombination(population=20)),
        (Recombination(children=8), Recombination(children=20)),
        (BeamDescent(width=2), BeamDescent(width=8)),
        (BeamDescent(expansions=2), BeamDescent(expansions=8)),
        (Portfolio(width=2), Portfolio(width=20)),
    ):
        assert need(few) < need(many_more)
