"""Git Re-Basin's figures: barrier against width, and during training; and where no order helps.

    python -m bench.reproduce.git_rebasin --small [--record]
    python -m bench.reproduce.git_rebasin --mnist FOLDER [--record]
    python -m bench.reproduce.git_rebasin --network resnet20 --cifar10 FOLDER [--record]

Two networks are trained by Adam from seeds 0 and 1, and the second is aligned to the first by its
weights, by its activations on training images, and of MLPs by the straight-through estimator of
the loss on these. Barriers are those of the loss on test images, at 11 points of the segment. The
small setting is MLPs of scikit-learn's digits, widths 8 to 128. ResNet20 (its widths are multiples
of 16), VGG16 and ResNet50, whose batch norms are measured anew along the segment, want a GPU and
the folder of CIFAR-10's batches.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from bench.large import resnet20, resnet50, vgg16
from bench.networks import mlp
from bench.record import record
from bench.reproduce.setting import (
    CpuSeconds,
    Setting,
    State,
    barrier,
    parser,
    show,
    training_run,
)
from gpu_align import (
    CoordinateDescent,
    PermutationSpec,
    StraightThrough,
    TaskLoss,
    align,
    discover,
)
from gpu_align._network import Data

POINTS = 11
PUBLISHED = (
    "Ainsworth et al., Git Re-Basin (ICLR 2023): MNIST MLP 3x512 barrier zero by weight matching, "
    "activation matching and the straight-through estimator (section 5.1); ResNet20 on CIFAR-10 "
    "barrier zero at 32 times the width, none at once the width (5.3); barriers of narrow networks "
    "and early in training stay (5.2, A.1, A.4); ResNet50 on ImageNet 51 % of images right at the "
    "midpoint with batch norms measured anew (A.7.1)",
)


@dataclass(frozen=True)
class Sweep:
    """Networks of several widths, and their training.

    Attributes:
        network: one of `NETWORKS`.
        widths: see `NETWORKS`.
        epochs, batch: of Adam.
        stages: epochs after which the barrier is measured, of the width in the middle.
        finish: the method of `merge` that sets networks between two right; "" leaves them.
    """

    network: str
    widths: tuple[int, ...]
    epochs: int
    batch: int
    stages: tuple[int, ...]
    finish: str = ""


NETWORKS: dict[str, tuple[Callable[[int, int], nn.Module], tuple[int, ...] | None]] = {
    "mlp": (lambda inputs, width: mlp([inputs, width, width, width, 10]), None),
    "resnet20": (lambda _, times: resnet20(times), (3, 32, 32)),
    "vgg16": (lambda _, __: vgg16(), (3, 32, 32)),
    "resnet50": (lambda _, __: resnet50(10), (3, 32, 32)),
}
"""Name -> what makes it for a number of inputs and a width, and its images; None for flat ones."""

SMALL = Sweep("mlp", (8, 16, 32, 64, 128), 40, 64, (1, 2, 5, 10, 20, 40))
MNIST = Sweep("mlp", (32, 64, 128, 256, 512), 10, 256, (1, 2, 5, 10))
CIFAR = {
    "resnet20": Sweep("resnet20", (1, 2, 4, 8), 60, 128, (1, 5, 20, 60)),
    "vgg16": Sweep("vgg16", (1,), 60, 128, (1, 5, 20, 60)),
    "resnet50": Sweep("resnet50", (1,), 60, 128, (1, 5, 20, 60), "norms"),
}


def measure(
    setting: Setting,
    spec: PermutationSpec,
    states: Sequence[State],
    finish: str = "",
    *,
    learned: bool,
) -> dict:
    """Return the barriers of a pair as given and aligned, and the losses of both.

    Args:
        setting: the model and the data.
        spec: of the pair.
        states: target and source.
        finish: see `Sweep`.
        learned: whether an order is sought by the loss, too.
    """
    first, second = states
    setting.module.load_state_dict(dict(first))
    options = {"spec": spec, "device": setting.device}
    by_activations = {"evidence": "activations", "data": setting.training}
    ways: dict[str, dict] = {
        "weights": {"search": CoordinateDescent()},
        "activations": {"search": CoordinateDescent(), **by_activations},
    }
    if learned:
        task = TaskLoss(setting.module, setting.training)
        ways["straight-through"] = {"search": StraightThrough(task)}
    found = {"as given": second}
    with CpuSeconds() as clock:
        for name, way in ways.items():
            found[name] = align(second, setting.module, **way, **options).state_dict
    losses = {name: setting.losses([first, state], finish, POINTS) for name, state in found.items()}
    row: dict = {"losses of both": [losses["as given"][0], losses["as given"][-1]]}
    row["accuracies"] = [score.accuracy for score in setting.test(states)]
    row |= {f"barrier, {name}": barrier(curve) for name, curve in losses.items()}
    return row | {"CPU seconds, aligning": clock.spent, "curves": losses}


def run(sweep: Sweep, source: object, device: str) -> list[dict]:
    """Train pairs of all widths; return a row of each, and of each stage of the middle width."""
    make, shape = NETWORKS[sweep.network]
    data = Data.of(source)
    inputs = data.fit.lots[0].inputs[0].numel()
    shape = (inputs,) if shape is None else shape
    middle = sweep.widths[len(sweep.widths) // 2]
    rows = []
    for width in sweep.widths:
        setting = Setting.of(make(inputs, width), data, (2, *shape), device)
        spec = discover(setting.module.eval(), torch.randn(2, *shape))
        runs = (
            training_run(
                *(partial(make, inputs, width), setting.data.fit, sweep.epochs, seed),
                *(setting.device, sweep.batch),
            )
            for seed in range(2)
        )
        for epoch, states in enumerate(zip(*runs, strict=True), 1):
            wanted = width == middle and epoch in sweep.stages
            if wanted or epoch == sweep.epochs:
                row = {"network": sweep.network, "width": width, "epoch": epoch}
                learned = sweep.network == "mlp"
                rows.append(row | measure(setting, spec, states, sweep.finish, learned=learned))
    return rows


def counter_example() -> dict:
    """Return the smallest barrier over all orders of two networks that compute XOR exactly.

    Both are MLPs 2-2-1 with zero loss: |x - y|, and x + y above 0 less twice what is above 1. No
    order of the two units connects them, so connectivity is not a property of the architecture.

    Source: Ainsworth et al., Git Re-Basin (ICLR 2023), section 4, which has another example.
    """
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    goal = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    first = {"w": [[1.0, -1.0], [-1.0, 1.0]], "b": [0.0, 0.0], "v": [[1.0, 1.0]]}
    second = {"w": [[1.0, 1.0], [1.0, 1.0]], "b": [0.0, -1.0], "v": [[1.0, -2.0]]}
    a, b = ({name: torch.tensor(value) for name, value in one.items()} for one in (first, second))

    def loss(state: dict[str, torch.Tensor]) -> float:
        hidden = F.relu(F.linear(points, state["w"], state["b"]))
        return float(F.mse_loss(F.linear(hidden, state["v"]), goal))

    barriers = []
    for order in itertools.permutations(range(2)):
        moved = {"w": b["w"][list(order)], "b": b["b"][list(order)], "v": b["v"][:, list(order)]}
        steps = torch.linspace(0, 1, 101).tolist()
        curve = [loss({name: torch.lerp(a[name], moved[name], t) for name in a}) for t in steps]
        barriers.append(barrier(curve))
    row = {"network": "MLP 2-2-1, XOR", "losses of both": [loss(a), loss(b)]}
    return row | {"barrier, best of all orders": min(barriers), "orders": len(barriers)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--network", choices=list(NETWORKS), default="mlp")
    options.add_argument("--cifar10", help="folder with CIFAR-10's batches")
    chosen = options.parse_args()
    if chosen.small:
        sweep, source, name = SMALL, "digits", "small"
    elif chosen.network != "mlp" and chosen.cifar10:
        sweep, source, name = CIFAR[chosen.network], f"cifar10:{chosen.cifar10}", chosen.network
    elif chosen.network == "mlp" and chosen.mnist:
        sweep, source, name = MNIST, f"mnist:{chosen.mnist}", "mnist"
    else:
        options.error("name a folder by --mnist, or by --cifar10 with --network, or take --small")
    torch.set_num_threads(1)
    rows = [counter_example(), *run(sweep, source, chosen.device)]
    show("Barriers", rows)
    if chosen.record:
        heading = {"published": PUBLISHED, "setting": asdict(sweep), "seeds": [0, 1]}
        record(f"reproduce_git_rebasin_{name}", [heading | {"points": POINTS}, *rows])


if __name__ == "__main__":
    main()
