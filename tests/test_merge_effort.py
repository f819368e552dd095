"""How much `merge` measures: more where it costs little, and repairs where there are no norms."""

import pytest
import torch
from torch import nn

from gpu_align import merge
from gpu_align._merge._calibration import Calibration
from gpu_align._network import Examples, Traces


def effort(network: nn.Module, *shape: int) -> tuple[int, int, bool]:
    """Return how many examples are fitted on and judge, and whether training is cheap."""
    found = Calibration(Traces(network.eval()), Examples.of(torch.randn(8, *shape)))
    return found.count, found.judged, found.is_cheap


def test_examples_that_cost_little_are_taken_in_larger_numbers() -> None:
    assert effort(nn.Linear(4, 8), 4) == (12000, 3000, True)
    # One value of 2^12 numbers in 4 bytes each: 2^25 / 2^14 examples.
    assert effort(nn.Linear(4, 2**12), 4) == (2048, 1024, True)
    assert effort(nn.Linear(2**12, 2**12), 2**12) == (2048, 1024, False)
    assert effort(nn.Conv2d(1, 16, 3), 1, 64, 64) == (1500, 750, False)


def pair(norm: bool) -> list[nn.Module]:
    networks: list[nn.Module] = []
    for seed in range(2):
        torch.manual_seed(seed)
        between = [nn.BatchNorm1d(6)] if norm else []
        networks.append(nn.Sequential(nn.Linear(4, 6), *between, nn.ReLU(), nn.Linear(6, 3)).eval())
    return networks


@pytest.mark.parametrize("norm", [False, True])
def test_every_order_is_judged_with_the_statistics_of_its_units_restored(norm: bool) -> None:
    torch.manual_seed(0)
    data = torch.randn(200, 4), torch.randint(0, 3, (200,))
    found = merge(pair(norm), data, device="cpu")
    tried = {(trial.order, trial.method) for trial in found.trials if trial.is_merged}
    orders = {order for order, method in tried if method == "norms"}
    assert len(orders) == 4
    repaired = {order for order, method in tried if method == "repair"}
    if norm:
        assert len(repaired) == 1
    else:
        assert repaired == orders
    best = min(trial.loss or 0 for trial in found.trials if trial.is_merged)
    assert found.chosen.loss == best
    assert len(tried) == len([trial for trial in found.trials if trial.is_merged])
