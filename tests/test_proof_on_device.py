"""Proofs where the problem is: a device proves what the host proves."""

import pytest
import torch
from marks import slow
from networks import planted_in, random_pair
from pretend_device import DEVICE, ENGINE, PretendDevice, solve_elsewhere
from test_proof import KINDS

from gpu_align import AlignmentProblem, CoordinateDescent, check_proof, prove, run_search


@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize("kind", slow(["places", "signs", "recurrent"], but=["signs"]))
def test_a_device_proves_as_the_host_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solve_elsewhere(monkeypatch)
    networks, _ = planted_in(random_pair(KINDS[kind], 3), 0.5, 3)
    given = networks.source, networks.target, networks.spec
    host = AlignmentProblem(*given, dtype=torch.float64)
    best = host.permutation(run_search(CoordinateDescent(starts=4, initial="random"), host).best)
    expected = prove(host, best, seconds=60)
    with PretendDevice():
        there = AlignmentProblem(*given, dtype=torch.float64, engine=ENGINE)
        found = prove(there, best, seconds=60)
        assert {stage_device(found)} <= {DEVICE}
        assert check_proof(there, found) == pytest.approx(found.lower_bound)
    assert found.lower_bound == pytest.approx(expected.lower_bound, rel=1e-3)
    assert found.lower_bound <= found.distance
    assert check_proof(host, found) == pytest.approx(found.lower_bound)


def stage_device(proof: object) -> torch.device:
    return next(iter(proof.stages[0].tensors()))[1].device
