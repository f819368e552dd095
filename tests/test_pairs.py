"""Trained pairs: the best known distances are reached. Needs GPU_ALIGN_PAIRS, a folder of files.

The folder holds NAME_0.safetensors and NAME_1.safetensors (coursework_1 and _2 for the coursework
pair); the first is the source, the second the target.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import CNN, ResNet, mlp
from safetensors.torch import load_file
from torch import nn

from gpu_align import AlignmentResult, CoordinateDescent, LayerwiseBeam, Search, align

pytestmark = [
    pytest.mark.pairs,
    pytest.mark.skipif(
        "GPU_ALIGN_PAIRS" not in os.environ,
        reason="GPU_ALIGN_PAIRS does not name the folder of the trained pairs",
    ),
]

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mnist_mlp_128x3": (lambda: mlp([784, 128, 128, 128, 10]), (2, 784)),
    "mnist_mlp_512x3": (lambda: mlp([784, 512, 512, 512, 10]), (2, 784)),
    "mnist_cnn_bn": (lambda: CNN(24), (2, 1, 28, 28)),
    "mnist_resnet_w16": (lambda: ResNet(16), (2, 1, 14, 14)),
}
NAIVE = {
    "mnist_mlp_128x3": 630.523,
    "mnist_mlp_512x3": 1911.987,
    "mnist_cnn_bn": 229.029,
    "mnist_resnet_w16": 455.461,
}
BEST_KNOWN = {
    "mnist_mlp_128x3": 404.928,
    "mnist_mlp_512x3": 1382.849,
    "mnist_cnn_bn": 182.071,
    "mnist_resnet_w16": 382.715,
}
# Weight matching from the identity over random orders: best and worst of 20, 3 for the last.
DESCENT = {
    "mnist_mlp_128x3": (406.966, 410.585),
    "mnist_cnn_bn": (184.447, 187.45),
    "mnist_resnet_w16": (392.658, 397.619),
    "mnist_mlp_512x3": (1385.623, 1387.623),
}
REACHED = 2e-4
"""How far above the best known distance the default may end, relative."""
SPREAD = 3e-3
"""How far outside the range seen in a few orders another order may end, relative."""


def files(name: str, first: int = 0) -> tuple[Path, Path]:
    folder = Path(os.environ["GPU_ALIGN_PAIRS"])
    return tuple(folder / f"{name}_{first + n}.safetensors" for n in range(2))


def align_pair(name: str, search: Search | None = None) -> AlignmentResult:
    source, target = files(name)
    build, shape = NETWORKS[name]
    model, inputs = build(), torch.randn(shape)
    model.load_state_dict(load_file(target))
    return align(source, model, example_inputs=inputs, search=search)


@pytest.mark.parametrize("name", NETWORKS)
def test_default_reaches_the_best_known_distance(name: str) -> None:
    result = align_pair(name)
    assert result.distance_before == pytest.approx(NAIVE[name], abs=1e-3)
    assert result.distance <= BEST_KNOWN[name] * (1 + REACHED)
    assert result.function_preserved
    assert result.lower_bound <= result.distance


@pytest.mark.parametrize("name", DESCENT)
def test_coordinate_descent_ends_in_its_known_range(name: str) -> None:
    best, worst = DESCENT[name]
    result = align_pair(name, CoordinateDescent())
    assert best * (1 - SPREAD) <= result.distance <= worst * (1 + SPREAD)


def coursework(search: Search | None, metric: str) -> AlignmentResult:
    return align(*files("coursework", first=1), search=search, metric=metric)


@pytest.mark.parametrize(("row_distance", "expected"), [("euclidean", 6.3208), ("squared", 6.2540)])
def test_greedy_pass_on_the_coursework_pair(row_distance: str, expected: float) -> None:
    search = LayerwiseBeam(row_distance=row_distance, rule="incoming", cost_metric="standardized")
    result = coursework(search, "normalized")
    assert result.distance_before == pytest.approx(10.336357, abs=1e-6)
    assert result.distance == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("metric", "best"), [("l2", 837.9370), ("normalized", 4.487216)])
def test_default_on_the_coursework_pair(metric: str, best: float) -> None:
    assert coursework(None, metric).distance <= best * (1 + 1e-6)
