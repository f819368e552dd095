"""One equivariant linear layer on weights, forward and backward, beside the published one.

    GPU_ALIGN_DWSNETS=folder python -m bench.learn_layer [--record]

Batches of 64 networks, 32 channels in and out, on one thread. The folder is a clone of
https://github.com/AvivNavon/DWSNets: its layer with linear maps and means (`set_layer="ds"`,
`reduction="mean"`), which for these chains is the same space of maps. The two take turns. Without
the folder only ours is timed. Ours must commute with random symmetries before it is timed.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from bench.record import record
from bench.timing import quantiles
from gpu_align import PermutationSpec, chain_spec
from gpu_align.learn import EquivariantLinear, WeightSpace

CASES = {"2-16-16-1": (2, 16, 16, 1), "2-32-32-1": (2, 32, 32, 1)}
BATCH, CHANNELS, TURNS = 64, 32, 20
TOLERANCE = 1e-5
"""Largest relative error of the layer in float32 under a symmetry."""

Run = Callable[[], None]


def spec_of(widths: Sequence[int]) -> PermutationSpec:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return chain_spec(nn.Sequential(*layers).state_dict())


def gate(space: WeightSpace, layer: EquivariantLinear) -> None:
    """Stop where a symmetry before the layer and after it differ."""
    features = tuple(torch.randn(4, *c.sizes, c.fixed * CHANNELS) for c in space.cells)
    elements = space.random_elements(4, seed=0)
    with torch.no_grad():
        first = layer(space.act(elements, features, CHANNELS))
        then = space.act(elements, layer(features), CHANNELS)
    for x, y in zip(first, then, strict=True):
        error = float((x - y).abs().max() / y.abs().max())
        if error > TOLERANCE:
            raise SystemExit(f"the layer does not commute with the symmetries: {error:.1e}")


def ours(widths: Sequence[int]) -> Run:
    space = WeightSpace(spec_of(widths))
    layer = EquivariantLinear(space, CHANNELS, CHANNELS)
    gate(space, layer)
    inputs = [torch.randn(BATCH, *c.sizes, c.fixed * CHANNELS) for c in space.cells]
    for x in inputs:
        x.requires_grad_()
    return lambda: backward(layer(tuple(inputs)), layer, inputs)


def published(widths: Sequence[int], folder: str) -> Run:
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from nn.layers import DWSLayer  # of the clone

    shapes = tuple(itertools.pairwise(widths))
    layer = DWSLayer(
        weight_shapes=shapes,
        bias_shapes=tuple((width,) for width in widths[1:]),
        in_features=CHANNELS,
        out_features=CHANNELS,
        reduction="mean",
        set_layer="ds",
    )
    weights = tuple(torch.randn(BATCH, *shape, CHANNELS, requires_grad=True) for shape in shapes)
    biases = tuple(torch.randn(BATCH, w, CHANNELS, requires_grad=True) for w in widths[1:])

    def run() -> None:
        made = layer((weights, biases))
        backward([*made[0], *made[1]], layer, [*weights, *biases])

    return run


def backward(outputs: Sequence[Tensor], layer: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Differentiate by weights and inputs, from a gradient that costs nothing to make."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    ones = [torch.ones((), dtype=y.dtype).expand(y.shape) for y in outputs]
    torch.autograd.grad(outputs, [*parameters, *inputs], ones, allow_unused=True)


def timed(ways: dict[str, Run], turns: int) -> dict[str, list[float]]:
    """Return milliseconds of each way, all of which take turns; the first turn warms up."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            if turn:
                times[way].append(1e3 * (time.perf_counter() - started))
    return times


def measure(
    name: str, widths: Sequence[int], folder: str | None, turns: int = TURNS
) -> Iterator[dict]:
    """Yield a row of each way; the published one needs its folder."""
    ways = {"gpu-align": ours(widths)}
    if folder:
        ways["published"] = published(widths, folder)
    times = timed(ways, turns)
    for way, own in times.items():
        row = {"network": name, "way": way, "batch": BATCH, "channels": CHANNELS}
        row |= {"ms": quantiles(own)}
        if way == "published":
            pairs = zip(own, times["gpu-align"], strict=True)
            row |= {"times_as_long": quantiles([a / b for a, b in pairs])}
        yield row


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for name, widths in CASES.items():
        for row in measure(name, widths, os.environ.get("GPU_ALIGN_DWSNETS")):
            rows.append(row)
            print(row)
    if "--record" in sys.argv:
        record("learn_layer", rows)


if __name__ == "__main__":
    main()
