"""A walk lays images out as is fastest, and computes what the module does."""

import pytest
import torch
from torch import Tensor, nn

from gpu_align._network import Walk
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
