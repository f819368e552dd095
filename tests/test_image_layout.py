"""A walk lays images out as is fastest, and computes what the module does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_align._network import Walk
from gpu_align._network._image_layout import PoolingLastLayout
from gpu_align._symmetry import trace_model


class Viewed(nn.Module):
    """Flattens by `view`, which takes one layout alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(27, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x.view(len(x), -1))


class Written(Viewed):
    """Writes into a value by a view of it, and reads the value."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x.view(len(x), -1).mul_(2)
        return self.head(torch.flatten(x, 1))


def walked(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the output of a walk, and all images on the way."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    walk = Walk([trace_model(model, x)], [x], [state])
    with torch.no_grad():
        values = [step.values[0][0] for step in walk.steps()]
    images = [v for v in values if isinstance(v, Tensor) and v.ndim == 4]
    [output] = walk.outputs()[0][0].values()
    return output, images


@pytest.mark.parametrize("make", [Viewed, Written])
def test_a_walk_computes_what_the_module_does(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().double().eval()
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(walked(model, x)[0], expected, rtol=1e-12, atol=1e-12)


def test_channels_lie_last_from_the_first_convolution_on() -> None:
    images = walked(Viewed().eval(), torch.randn(5, 2, 8, 8))[1]
    assert images
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in images)


@pytest.mark.parametrize("channels", [3, 8, 20])
@pytest.mark.parametrize("pool", [F.max_pool2d, torch.max_pool2d, nn.MaxPool2d(3, 2, padding=1)])
def test_pooling_gives_the_same_bits_in_the_same_layout(channels: int, pool: Any) -> None:
    x = torch.randn(2, channels, 9, 9)
    arguments = () if isinstance(pool, nn.Module) else (3, 2, 1)
    expected = pool(x, *arguments)
    with PoolingLastLayout():
        found = pool(x, *arguments)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


def test_pooling_of_other_forms_is_left_alone() -> None:
    x = torch.randn(2, 8, 9, 9)
    last = x.contiguous(memory_format=torch.channels_last)
    with PoolingLastLayout():
        values, places = nn.MaxPool2d(3, return_indices=True)(x)
        assert F.max_pool2d(last, 3).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(F.max_pool2d(input=x, kernel_size=3), values)
        assert torch.equal(F.max_pool2d(x[0], 3), values[0])
    assert torch.equal(x.flatten(2).gather(2, places.flatten(2)), values.flatten(2))
