"""Small networks trained on the digits that come with scikit-learn."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpu_align._network import load_digits


def mlp(width: int) -> nn.Sequential:
    """Return a perceptron 64-width-width-10."""
    return nn.Sequential(
        *(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, 10),
    )


def flat_digits() -> tuple[Tensor, Tensor]:
    """Return training images [n, 64] and labels [n]."""
    digits = load_digits()
    return digits.train_images.flatten(1), digits.train_labels


def trained(make: Callable[[], nn.Module], seed: int, epochs: int = 30) -> nn.Module:
    """Return a network trained on the digits by Adam from its own seed."""
    torch.manual_seed(seed)
    model, (images, labels) = make(), flat_digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    return model.eval()
