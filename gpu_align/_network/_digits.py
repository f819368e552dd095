"""The digits that come with scikit-learn: 1,797 images of 8 x 8 pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._errors import UnavailableError

_TEST_SHARE = 4  # every 4th image is for testing


@dataclass(frozen=True)
class Digits:
    """Images [n, 1, 8, 8] in [0, 1] and labels [n], for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """Return scikit-learn's digits; every 4th image is for testing.

    Raises:
        UnavailableError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise UnavailableError(
            "the digits come with scikit-learn, which is not installed; install it with: "
            "pip install 'gpu-align[demo]'"
        ) from error
    data = load()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    labels = torch.from_numpy(data.target).long()
    test = torch.arange(len(labels), device="cpu") % _TEST_SHARE == 0
    return Digits(images[~test], labels[~test], images[test], labels[test])
