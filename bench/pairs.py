"""Pairs of trained checkpoints that the user gives, and the architectures they belong to."""

import os
from pathlib import Path

import torch
from torch import Tensor

from bench.networks import CNN, ResNet, mlp
from gpu_align import PermutationSpec, discover, load_checkpoint

PAIRS = "GPU_ALIGN_PAIRS"
"""Environment variable: a folder with NAME_0.safetensors and NAME_1.safetensors."""


ARCHITECTURES = {
    "mnist_mlp_128x3": (lambda: mlp([784, 128, 128, 128, 10]), (2, 784)),
    "mnist_mlp_512x3": (lambda: mlp([784, 512, 512, 512, 10]), (2, 784)),
    "mnist_cnn_bn": (lambda: CNN(24), (2, 1, 28, 28)),
    "mnist_resnet_w16": (lambda: ResNet(16), (2, 1, 14, 14)),
}
"""Pair -> how its model is made, and the shape of its inputs."""


COURSEWORK = (lambda: mlp([784, 64, 24, 10]), (2, 784))
"""The same of the pair `coursework`, which has its own bench."""


def spec_of(name: str) -> PermutationSpec:
    """Return the discovered spec of a pair's architecture."""
    factory, shape = ARCHITECTURES[name]
    return discover(factory(), torch.randn(shape))


def load_pair(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Return source (NAME_0) and target (NAME_1), or None where the user gave no pairs."""
    folder = os.environ.get(PAIRS)
    if not folder:
        return None
    first, second = ("1", "2") if name == "coursework" else ("0", "1")
    source, target = (
        dict(load_checkpoint(Path(folder) / f"{name}_{number}.safetensors").tensors)
        for number in (first, second)
    )
    return source, target


def random_pair(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return two networks with random weights: the shapes of a pair without its training."""
    factory, _ = ARCHITECTURES.get(name, COURSEWORK)
    states = []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            states.append(dict(factory().state_dict()))
    return states[0], states[1]
