"""Planted copies of every kind of network: the barrier is gone once they are aligned."""

from collections.abc import Callable
from typing import Any

import architectures
import pytest
import sequence_architectures
import torch
from networks import ResNet, randomised
from torch import nn

from gpu_align import Permutation, barrier, discover
from gpu_align._network import Data, Examples
from gpu_align._symmetry import as_arguments, output_tensors

Example = tuple[nn.Module, Any]


def resnet() -> Example:
    return randomised(ResNet(4)), torch.randn(4, 1, 16, 16, dtype=torch.float64)


def gpt2() -> Example:
    pytest.importorskip("transformers")
    import hf_architectures

    return hf_architectures.gpt2("sdpa")


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        resnet,
        gpt2,
        sequence_architectures.lstm,
        architectures.depthwise_separable,
        architectures.group_norm_resnet,
    ],
    ids=lambda make: make.__name__,
)
def test_planted_copies_have_a_barrier_of_0(make: Callable[[], Example]) -> None:
    model, inputs = make()
    model = model.double().eval()
    args, kwargs = as_arguments(inputs)
    with torch.no_grad():
        outputs = next(iter(output_tensors(model(*args, **kwargs)).values()))
    data = Data(*(2 * [Examples.of(inputs, outputs)]))
    spec = discover(model, inputs)
    planted = Permutation.random(spec, seed=3)
    other = planted.apply(model.state_dict())
    found = barrier(
        *(model, other, data),
        loss="mse",
        points=3,
        align=planted.inverse(),
        example_inputs=inputs,
        in_double=True,
        device="cpu",
    )
    assert found.barrier_before > 1e-6
    assert all(curve.barrier <= 1e-12 for curve in found.curves if curve.aligned)
