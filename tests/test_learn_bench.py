"""The benches of learning on weights run; a layer that is wrong gets no time."""

import pytest
import torch

from bench import learn_layer
from gpu_align.learn import WeightSpace


def test_each_way_has_a_row() -> None:
    rows = list(learn_layer.measure("2-3-1", (2, 3, 1), folder=None, turns=2))
    assert [(row["network"], row["way"]) for row in rows] == [("2-3-1", "gpu-align")]
    assert rows[0]["ms"]["repetitions"] == 2


def test_a_layer_that_is_wrong_gets_no_time() -> None:
    class Wrong(learn_layer.EquivariantLinear):
        def forward(self, features: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return tuple(y.cumsum(1) for y in super().forward(features))

    space = WeightSpace(learn_layer.spec_of((2, 3, 1)))
    with pytest.raises(SystemExit, match="does not commute"):
        learn_layer.gate(space, Wrong(space, learn_layer.CHANNELS, learn_layer.CHANNELS))
