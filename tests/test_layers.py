"""Layers as regressions: what they say of an op is what the op does."""

import pytest
import torch
from networks import randomised
from torch import Tensor, nn

from gpu_align._merge._layers import layer_of
from gpu_align._network import Walk
from gpu_align._symmetry import Op, trace_model

LAYERS = {
    "linear": (nn.Linear(5, 6), (4, 3, 5)),
    "linear without bias": (nn.Linear(5, 6, bias=False), (4, 5)),
    "conv1d in groups": (nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 8, (3, 2), (2, 1), "valid", (1, 2)), (2, 4, 9, 8)),
    "conv2d, same": (nn.Conv2d(4, 8, 3, padding="same"), (2, 4, 6, 5)),
    "conv2d, even and same": (nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 6, 5)),
    "conv2d by depth": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7)),
    "conv3d": (nn.Conv3d(2, 4, 2), (2, 2, 4, 5, 6)),
    "transposed in groups": (
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2),
        (2, 4, 5, 6),
    ),
    "transposed, dilated": (nn.ConvTranspose1d(4, 6, 4, stride=3, dilation=2), (2, 4, 5)),
    "transposed, much padding": (nn.ConvTranspose2d(3, 4, 2, padding=1), (2, 3, 5, 4)),
    "batch norm": (nn.BatchNorm2d(4), (3, 4, 5, 5)),
    "group norm": (nn.GroupNorm(2, 4), (3, 4, 5, 5)),
    "layer norm": (nn.LayerNorm((5, 6)), (3, 4, 5, 6)),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), (3, 4, 5, 5)),
    "rms norm": (nn.RMSNorm(6), (3, 4, 6)),
}


def inputs(*shape: int) -> Tensor:
    """Return standard normal inputs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_product_that_it_says(name: str) -> None:
    module, shape = LAYERS[name]
    model = randomised(module)
    x = inputs(*shape)
    walk = Walk([trace_model(model, x)], [x], [model.state_dict()])
    found = 0
    with torch.no_grad():
        for step in walk.steps():
            call, value = step.arguments(0, 0), step.values[0][0]
            layer = layer_of(Op(step.node).name, call, value)
            if layer is None:
                continue
            found += 1
            torch.testing.assert_close(layer.apply(layer.inputs(call)), layer.outputs(value))
            before = layer.outputs(value)
            scale = inputs(before.shape[0], before.shape[2])
            shift = None if layer.bias is None else scale.flip(0)
            layer.scale_outputs(scale, shift)
            step.run_again(0)
            expected = before * scale[:, None] + (0 if shift is None else shift[:, None])
            torch.testing.assert_close(layer.outputs(step.values[0][0]), expected)
            layer.write(layer.matrix(), None)
            again = step.values[0][0]
            step.run_again(0)
            torch.testing.assert_close(step.values[0][0], again)
    assert found == 1
