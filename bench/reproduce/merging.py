"""Ways of merging side by side on the trained pairs: loss, accuracy, barrier, processor seconds.

    GPU_ALIGN_PAIRS=FOLDER python -m bench.reproduce.merging --mnist FOLDER [--record] [PAIR ...]
    python -m bench.reproduce.merging --small [--record]

NAME_1 is the target, NAME_0 the source. Orders of units and ways to set a mean right are chosen on
training images, and the statistics are theirs; test images are only reported on. The barrier of
the best permutation is that of `--points` points on the segment, each set right; of the others what
the midpoint has. The small setting trains a pair on scikit-learn's digits. Processor seconds are on
one thread; `--default` adds the default search of `align`, which takes minutes, `--learned`
searches by a task loss.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench.networks import mlp
from bench.pairs import ARCHITECTURES, PAIRS, load_pair
from bench.record import record
from bench.reproduce.setting import (
    MEASURED,
    CpuSeconds,
    Setting,
    State,
    barrier,
    default_search,
    numbers,
    parser,
    show,
    target,
    trained,
    training_run,
)
from gpu_align import (
    CoordinateDescent,
    PermutationSpec,
    Sinkhorn,
    StraightThrough,
    TaskLoss,
    align,
    discover,
    merge,
)
from gpu_align._network import MOST, Data

SEEDS = range(5)
"""Of weight matching, of which the median is taken by the loss on held-back images."""

DRAWS = range(10)
"""Seeds of the other searches, and of the images that they get; the best is taken by that loss."""

REFERENCE = {
    "mnist_mlp_128x3": {
        "naive": "1.408/62.1/1.325",
        "weight matching": "0.1365/96.5/0.054, + REPAIR 0.0977/96.9/0.016",
        "weight matching, lowest distance": "0.1148/96.8/0.033, + REPAIR 0.0937/97.1/0.0115",
        "activation matching": "0.1356/95.5/0.054",
        "ZipIt": "0.1369/95.5",
        "PLeaS": "0.0833/97.4",
    },
    "mnist_mlp_512x3": {
        "naive": "1.642/86.9/1.567",
        "weight matching": "0.0682/98.0/0, + REPAIR 0.0610/98.2/0",
        "weight matching, lowest distance": "0.0681/98.1/0, + REPAIR 0.0606/98.2/0",
        "activation matching": "0.0735/97.7/0",
        "PLeaS": "0.0583/98.3",
    },
    "mnist_cnn_bn": {
        "naive": "2.145/33.8/2.09, + norms 1.542/69.3/1.49",
        "weight matching": "+ norms 0.232/94.0/0.178, + REPAIR 0.167/94.9/0.113",
        "weight matching, lowest distance": "+ norms 0.166/96.3/0.112, + REPAIR 0.107/97.0/0.053",
        "activation matching": "+ norms 0.104/97.8/0.049, + REPAIR 0.085/97.7/0.031",
        "ZipIt": "+ norms 0.130/97.4",
        "PLeaS": "0.0507/98.4",
    },
    "mnist_resnet_w16": {
        "naive": "2.469/9.7/2.40, + norms 2.012/27.5/2.01",
        "weight matching": "+ norms 1.704/43.5/1.63, + REPAIR 1.689/44.9/1.62",
        "weight matching, lowest distance": "+ norms 2.521/28.9/2.45, + REPAIR 2.623/28.9/2.55",
        "activation matching": "+ norms 0.309/90.8/0.237, + REPAIR 0.313/90.1/0.241",
        "ZipIt": "+ norms 0.736/76.4",
        "PLeaS": "0.114/96.5",
    },
}
"""Of these very pairs by the programs and formulas that were published: loss/accuracy/barrier."""

LEARNED = ("StraightThrough", "Sinkhorn")
"""Searches by the loss on training data, where --learned asks for them."""

LIMITS = {
    "mnist_mlp_128x3": {"barrier": 0.0115, "loss": 0.083, "CPU seconds": 10}
    | {"StraightThrough": 0.019, "Sinkhorn": 0.018},
    "mnist_mlp_512x3": {"barrier": 0.0, "midpoint": 0.0606, "loss": 0.058, "CPU seconds": 20},
    "mnist_cnn_bn": {"barrier": 0.022, "loss": 0.0507, "CPU seconds": 10},
    "mnist_resnet_w16": {"barrier": 0.223, "loss": 0.110, "CPU seconds": 15},
}
"""What is to be reached: the barrier of the best permutation with norms or REPAIR, and `merge`."""


@dataclass(frozen=True)
class Pair:
    """Two networks, what is measured of them, and the rows so far.

    Attributes:
        name: of the pair.
        setting: its model, and its data.
        source, target: the network that is aligned, and the one that stays.
        spec: their symmetries.
        ends: test losses of target and source.
    """

    name: str
    setting: Setting
    source: State
    target: State
    spec: PermutationSpec
    ends: tuple[float, float]
    rows: list[dict] = field(default_factory=list)

    @property
    def plain(self) -> str:
        """What sets a mean right at least: of batch norms always the statistics."""
        has_norms = any(isinstance(each, _BatchNorm) for each in self.setting.module.modules())
        return "norms" if has_norms else ""

    def add(self, order: str, state: State, method: str, align: float, mend: float) -> dict:
        """Add the row of a merged network."""
        [score], [held] = self.setting.test([state]), self.setting.held([state])
        row = {"pair": self.name, "order": order, "set right by": method, **numbers(score)}
        row |= {"barrier at the midpoint": max(score.loss - sum(self.ends) / 2, 0.0)}
        row |= {"held loss": held.loss}
        row |= {"CPU seconds, order": align, "CPU seconds, set right": mend}
        self.rows.append(row)
        return row

    def mend(self, order: str, source: State, seconds: float, methods: Sequence[str]) -> list[dict]:
        """Add a row of the mean with an aligned source for each way to set it right."""
        found = []
        for method in methods:
            with CpuSeconds() as clock:
                mean = self.setting.mean([self.target, source], method)
            found.append(self.add(order, mean, method, seconds, clock.spent))
        return found


def aligned(pair: Pair, **options: object) -> tuple[State, float]:
    """Align the source, and return it with the processor seconds."""
    module = pair.setting.module
    module.load_state_dict(dict(pair.target))
    with CpuSeconds() as clock:
        result = align(pair.source, module, spec=pair.spec, device=pair.setting.device, **options)
    return result.state_dict, clock.spent


def held_losses(pair: Pair, sources: Sequence[tuple[State, float]], method: str) -> list[float]:
    """Return the losses on held-back images of means with aligned sources, each set right."""
    means = [pair.setting.mean([pair.target, source], method) for source, _ in sources]
    return [score.loss for score in pair.setting.held(means)]


def best_of_draws(pair: Pair, **options: object) -> tuple[State, float]:
    """Align the source for each draw; return the best, with the processor seconds of all."""
    found = []
    for seed in DRAWS:
        data = {"data": drawn(pair.setting.training, seed)} if "evidence" in options else {}
        found.append(aligned(pair, seed=seed, **data, **options))
    losses = held_losses(pair, found, pair.plain or "repair")
    source, _ = found[losses.index(min(losses))]
    return source, sum(seconds for _, seconds in found)


def drawn(data: Data, seed: int) -> Data:
    """Return data of which some of the examples that are fitted on were drawn."""
    order = torch.randperm(len(data.fit), generator=torch.Generator().manual_seed(seed))
    return Data(data.fit.subset(order[:MOST]), data.held)


def orders(pair: Pair, *, default: bool, learned: bool) -> dict[str, tuple[State, float]]:
    """Return the source in the orders to be compared, each with its processor seconds."""
    by_weights = [aligned(pair, search=CoordinateDescent(), seed=seed) for seed in SEEDS]
    losses = held_losses(pair, by_weights, pair.plain)
    median = losses.index(statistics.median_low(losses))
    found = {"weight matching, median of 5": by_weights[median]}
    search = default_search(max(map(pair.spec.units, pair.spec.groups)))
    if default:
        found["weights, default search"] = aligned(pair)
    found["weights, best of 10"] = best_of_draws(pair, search=search)
    found["activations, best of 10"] = best_of_draws(pair, search=search, evidence="activations")
    for alpha in (0.3, 1.0):
        name = f"weights and activations, {alpha:g}, best of 10"
        found[name] = best_of_draws(pair, search=search, evidence="both", alpha=alpha)
    if learned:
        task = TaskLoss(pair.setting.module, pair.setting.training)
        for each in (StraightThrough(task), Sinkhorn(task)):
            found[each.name] = aligned(pair, search=each)
    return found


def measure(pair: Pair, points: int, *, default: bool = False, learned: bool = False) -> list[dict]:
    """Measure all ways of a pair; return their rows."""
    for name, state in (("target", pair.target), ("source", pair.source)):
        pair.add(name, state, "", 0.0, 0.0)
    known = sorted({"", pair.plain, "repair"})
    pair.mend("as given", pair.source, 0.0, known)
    sources = orders(pair, default=default, learned=learned)
    ways = [
        row
        for order, (source, seconds) in sources.items()
        for row in pair.mend(
            order, source, seconds, [way for way in known if way or not pair.plain]
        )
    ]
    chosen = min(ways, key=lambda row: row["held loss"])
    chosen["best"] = True
    for row in ways:
        if row is chosen or (row["order"] in LEARNED and row["set right by"] == pair.plain):
            parents = [pair.target, sources[row["order"]][0]]
            losses = pair.setting.losses(parents, row["set right by"], points)
            row |= {"points": points, "barrier": barrier(losses), "losses": losses}
    source, seconds = sources[chosen["order"]]
    pair.mend(chosen["order"], source, seconds, ["refit", "refit-parents"])
    for method in ("auto", "distill"):
        merged(pair, method)
    return pair.rows


def merged(pair: Pair, method: str) -> dict:
    """Add the row of `merge` by a method; the symmetries are found in its time."""
    pair.setting.module.load_state_dict(dict(pair.target))
    networks = [pair.setting.module, pair.source]
    with CpuSeconds() as clock:
        found = merge(networks, pair.setting.training, method=method, device=pair.setting.device)
    row = pair.add(f"merge {method}", found.state_dict, "", clock.spent, 0.0)
    row["set right by"] = f"{found.chosen.order}, {found.chosen.method}"
    return row


def targets(name: str, rows: Sequence[dict], limits: Mapping[str, float]) -> list[dict]:
    """Return what is to be reached beside what was."""
    [best] = (row for row in rows if row.get("best"))
    [auto] = (row for row in rows if row["order"] == "merge auto")
    of_naive = min(row["loss"] for row in rows if row["order"] == "as given")
    of_weights = min(
        row["loss"]
        for row in rows
        if row["order"].startswith("weight matching")
        and not row["set right by"].startswith("refit")
    )
    found = [
        target(f"{name}: merge auto no worse than as given", auto["loss"], of_naive),
        target(f"{name}: merge auto no worse than weight matching", auto["loss"], of_weights),
    ]
    for what, limit in limits.items():
        learned = [row for row in rows if row["order"] == what and "barrier" in row]
        learned = [row for row in learned if row["set right by"] != "repair"]
        if what in LEARNED:
            found += [target(f"{name}: barrier of {what}", r["barrier"], limit) for r in learned]
            continue
        row, key, of = {
            "barrier": (best, "barrier", "best permutation"),
            "midpoint": (best, "loss", "best permutation"),
            "loss": (auto, "loss", "merge auto"),
            "CPU seconds": (auto, "CPU seconds, order", "merge auto"),
        }[what]
        found.append(target(f"{name}: {what} of {of}", row[key], limit))
    return found


def pair_of(
    name: str,
    module: nn.Module,
    shape: Sequence[int],
    data: Data,
    states: Sequence[State],
    device: str,
) -> Pair:
    """Return a pair (source, target) that is ready to be measured."""
    setting = Setting.of(module.eval(), data, shape, device)
    source, goal = states
    ends = setting.test([goal, source])
    spec = discover(module, torch.randn(tuple(shape)))
    return Pair(name, setting, source, goal, spec, (ends[0].loss, ends[1].loss))


def small_pair(device: str, epochs: int = 40) -> Pair:
    """Train a pair of narrow MLPs on scikit-learn's digits."""
    widths = [64, 32, 32, 10]
    make, data = partial(mlp, widths), Data.of("digits")
    inside = Setting.of(make(), data, (2, 64), device)
    states = [
        trained(None, partial(training_run, make, inside.data.fit, epochs, seed, inside.device, 64))
        for seed in range(2)
    ]
    return pair_of("digits_mlp_32x2", make(), (2, 64), data, states, device)


def given_pair(name: str, data: Data, device: str) -> Pair | None:
    """Return a pair of the user's folder, or None where there is none."""
    states = load_pair(name)
    factory, shape = ARCHITECTURES[name]
    return None if states is None else pair_of(name, factory(), shape, data, states, device)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("pairs", nargs="*", help=f"of {', '.join(ARCHITECTURES)}; default all")
    options.add_argument("--points", type=int, default=25, help="of a segment; default 25")
    options.add_argument("--default", action="store_true", help="also the default search")
    options.add_argument("--learned", action="store_true", help=f"also {' and '.join(LEARNED)}")
    chosen = options.parse_args()
    if not (chosen.small or chosen.mnist):
        options.error("name the folder with the files of MNIST by --mnist, or take --small")
    torch.set_num_threads(1)
    # Made in any case: what is loaded for a first trace is no part of a merge.
    trained_here = small_pair(chosen.device)
    judged = []
    data = None if chosen.small else Data.of(f"mnist:{chosen.mnist}")
    for name in chosen.pairs or ARCHITECTURES:
        pair = trained_here if data is None else given_pair(name, data, chosen.device)
        if pair is None:
            options.error(f"set {PAIRS} to the folder of pairs, or take --small")
        found = measure(pair, chosen.points, default=chosen.default, learned=chosen.learned)
        reached = targets(pair.name, found, LIMITS.get(pair.name, {}))
        judged += reached
        show(pair.name, found)
        if chosen.record:
            heading = {"reference": REFERENCE.get(pair.name), "set right on": MEASURED}
            heading |= {"threads": 1, "seeds of weight matching": list(SEEDS), "draws": list(DRAWS)}
            record(f"reproduce_merging_{pair.name}", [heading, *found, *reached])
        if chosen.small:
            break
    show("Targets", judged)


if __name__ == "__main__":
    main()
