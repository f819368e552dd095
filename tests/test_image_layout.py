"""A walk lays images out as is fastest, and computes what the module does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_align._network import Walk
from gpu_align._network._image_layout import LastLayout
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


class Layouts(TorchDispatchMode):
    """Notes of what layouts ops are called with: whether the channels lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
            is_last = args[0].is_contiguous(memory_format=torch.channels_last)
            self.last[func.overloadpacket.__name__] = is_last and args[0].stride(1) == 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [3, 8, 20])
@pytest.mark.parametrize("pool", [F.max_pool2d, torch.max_pool2d, nn.MaxPool2d(3, 2, padding=1)])
def test_pooling_gives_the_same_bits_in_the_same_layout(channels: int, pool: Any) -> None:
    x = torch.randn(2, channels, 9, 9)
    arguments = () if isinstance(pool, nn.Module) else (3, 2, 1)
    expected = pool(x, *arguments)
    with Layouts() as seen, LastLayout():
        found = pool(x, *arguments)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    assert seen.last["max_pool2d_with_indices"] == (channels >= 8)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_convolution_of_one_channel_gives_the_same_in_the_same_layout(channels: int) -> None:
    x, layer = torch.randn(3, channels, 9, 9), nn.Conv2d(channels, 6, 3).double()
    expected = layer(x.double())
    with Layouts() as seen, LastLayout():
        found = layer(x.double())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.stride() == expected.stride()
    assert seen.last["convolution"] == (channels == 1)


def test_pooling_of_other_forms_is_left_alone() -> None:
    x = torch.randn(2, 8, 9, 9)
    last = x.contiguous(memory_format=torch.channels_last)
    with LastLayout():
        values, places = nn.MaxPool2d(3, return_indices=True)(x)
        assert F.max_pool2d(last, 3).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(F.max_pool2d(input=x, kernel_size=3), values)
        assert torch.equal(F.max_pool2d(x[0], 3), values[0])
    assert torch.equal(x.flatten(2).gather(2, places.flatten(2)), values.flatten(2))
