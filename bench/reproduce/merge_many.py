"""Git Re-Basin's MergeMany and its networks of split data, beside REPAIR, refits and `merge`.

    python -m bench.reproduce.merge_many --mnist FOLDER [--models FOLDER] [--record]
    python -m bench.reproduce.merge_many --small [--record]
    python -m bench.reproduce.merge_many --mnist FOLDER --every-image [--record]

Five MLPs are trained here by Adam; then two, of which each sees 80 % of one half of the digits and
20 % of the other. `--models` names a folder where what is trained stays for later runs. Images that
choose are new to the networks, but with `--every-image`. The small setting is scikit-learn's digits
and narrower networks. Orders and ways are chosen on training images; test images are only reported
on. Processor seconds are on one thread.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bench.networks import mlp
from bench.record import record
from bench.reproduce.setting import (
    CpuSeconds,
    Setting,
    State,
    default_search,
    ensemble,
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
    align,
    barycentre,
    cycle_error,
    discover,
    merge,
)
from gpu_align._network import Data, Examples

PUBLISHED = {
    "source": "Ainsworth et al., Git Re-Basin (ICLR 2023), table 3: five MLPs 784-512-512-512-10",
    "parents": [0.1153, 0.1531, 0.1229, 0.1108, 0.1443],
    "MergeMany": 0.0727,
}
SHARE = 0.8
"""Of one half of the digits; of the other half the rest."""


@dataclass(frozen=True)
class Case:
    """Networks and their training.

    Attributes:
        widths: of the MLPs.
        epochs: of Adam, in batches of `batch`.
        many: how many networks are merged.
    """

    widths: tuple[int, ...]
    epochs: int
    batch: int = 256
    many: int = 5

    def make(self) -> nn.Module:
        return mlp(list(self.widths))


SMALL = Case((64, 64, 64, 64, 10), epochs=40, batch=64)
FULL = Case((784, 512, 512, 512, 10), epochs=3)
LIMITS = {"merged loss": 0.0610, "split ECE": 0.014}
"""What the full setting is to reach."""


def networks(
    case: Case, parts: Sequence[Examples], name: str, folder: Path | None, device: torch.device
) -> list[State]:
    """Train a network on each part, with the number of the part as its seed."""
    shape = "-".join(map(str, case.widths))
    found = []
    for seed, part in enumerate(parts):
        run = partial(training_run, case.make, part, case.epochs, seed, device, case.batch)
        file = f"{name}_{shape}_{case.epochs}_epochs_{seed}.safetensors"
        found.append(trained(folder / file if folder else None, run))
    return found


def split_by_class(examples: Examples, seed: int = 0) -> tuple[Examples, Examples]:
    """Split examples: 80 % of classes 0 to 4 and 20 % of classes 5 to 9, and the others."""
    [lot] = examples.lots
    assert lot.targets is not None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lot), generator=generator)
    first = []
    for label in range(10):
        of_label = order[lot.targets[order] == label]
        first.append(of_label[: round((SHARE if label < 5 else 1 - SHARE) * len(of_label))])
    chosen = torch.cat(first)
    rest = torch.ones(len(lot), dtype=torch.bool)
    rest[chosen] = False
    return examples.subset(chosen), examples.subset(rest.nonzero()[:, 0])


def set_right(
    setting: Setting, case: str, order: str, states: Sequence[State], seconds: float
) -> list[dict]:
    """Return a row of the mean of networks in one order for each way to set it right."""
    rows = []
    for method in ("", "repair", "refit", "refit-parents"):
        with CpuSeconds() as clock:
            mean = setting.mean(states, method)
        [score], [held] = setting.test([mean]), setting.held([mean])
        rows.append({"networks": case, "order": order, "set right by": method, **numbers(score)})
        rows[-1] |= {"held loss": held.loss, "CPU seconds": seconds + clock.spent}
    return rows


def parent_rows(
    setting: Setting, case: str, make: Callable[[], nn.Module], states: Sequence[State]
) -> list[dict]:
    """Return a row of each network, and of all asked together."""
    rows = [
        {"networks": case, "order": f"network {number}", "set right by": "", **numbers(score)}
        for number, score in enumerate(setting.test(states))
    ]
    together = numbers(ensemble(setting, make, states))
    return [*rows, {"networks": case, "order": "ensemble", "set right by": "", **together}]


def auto_row(
    setting: Setting, case: str, make: Callable[[], nn.Module], states: Sequence[State]
) -> dict:
    """Return the row of `merge` by its default."""
    first = make()
    first.load_state_dict(dict(states[0]))
    with CpuSeconds() as clock:
        found = merge([first, *states[1:]], setting.training, device=setting.device)
    [score] = setting.test([found.state_dict])
    chosen = f"{found.chosen.order}, {found.chosen.method}"
    row = {"networks": case, "order": "merge auto", "set right by": chosen, **numbers(score)}
    row |= {"held loss": found.chosen.loss, "cycle error": found.cycle_error}
    return row | {"CPU seconds": clock.spent}


def to_first(
    states: Sequence[State], spec: PermutationSpec, device: torch.device
) -> tuple[list[State], float]:
    """Bring each network to the first by weight matching, and return the processor seconds."""
    options = {"spec": spec, "search": CoordinateDescent(), "device": device}
    with CpuSeconds() as clock:
        found = [align(state, states[0], **options).state_dict for state in states[1:]]
    return [states[0], *found], clock.spent


def pairwise_error(states: Sequence[State], spec: PermutationSpec, device: torch.device) -> float:
    """Return the cycle error of weight matching of every pair."""
    maps = {}
    for i, j in itertools.combinations(range(len(states)), 2):
        options = {"spec": spec, "search": CoordinateDescent(), "device": device}
        maps[i, j] = align(states[i], states[j], **options).permutation
        maps[j, i] = maps[i, j].inverse()
    return cycle_error(maps)


def measure_many(setting: Setting, case: Case, states: Sequence[State]) -> list[dict]:
    """Merge several networks of the same data in all ways."""
    name = f"{len(states)} networks"
    spec = discover(case.make(), torch.randn(2, case.widths[0]))
    rows = parent_rows(setting, name, case.make, states)
    rows += set_right(setting, name, "as given", states, 0.0)
    rows += set_right(setting, name, "each to network 0", *to_first(states, spec, setting.device))
    rows[-4]["cycle error"] = pairwise_error(states, spec, setting.device)
    with CpuSeconds() as clock:
        found = barycentre(states, spec, method="one_by_one", start=None, device=setting.device)
    rows += set_right(setting, name, "MergeMany", found.state_dicts, clock.spent)
    rows[-4]["cycle error"] = found.cycle_error()
    return [*rows, auto_row(setting, name, case.make, states)]


def measure_split(setting: Setting, case: Case, states: Sequence[State]) -> list[dict]:
    """Merge two networks of different parts of the data in all ways."""
    name = "split data"
    first = case.make()
    first.load_state_dict(dict(states[0]))
    rows = parent_rows(setting, name, case.make, states)
    rows += set_right(setting, name, "as given", states, 0.0)
    for evidence in ("weights", "activations", "both"):
        with CpuSeconds() as clock:
            found = align(
                *(states[1], first),
                example_inputs=torch.randn(2, case.widths[0]),
                search=default_search(max(case.widths[1:-1])),
                evidence=evidence,
                data=setting.training,
                device=setting.device,
            )
        aligned = [states[0], found.state_dict]
        rows += set_right(setting, name, f"by {evidence}", aligned, clock.spent)
    return [*rows, auto_row(setting, name, case.make, states)]


def targets(rows: Sequence[dict], limits: dict[str, float] | None) -> list[dict]:
    """Return what is to be reached beside what was; limits are those of the full setting."""

    def of(kind: str) -> list[dict]:
        return [row for row in rows if row["networks"].endswith(kind)]

    def parents(kind: str) -> list[float]:
        return [row["loss"] for row in of(kind) if row["order"].startswith("network")]

    [auto] = (row for row in of("networks") if row["order"] == "merge auto")
    [universe] = (
        row for row in of("networks") if (row["order"], row["set right by"]) == ("MergeMany", "")
    )
    repaired = [
        row for row in of("data") if row["set right by"] == "repair" and row["order"] != "as given"
    ]
    best = min(repaired, key=lambda row: row["held loss"])
    found = [
        target("merge auto below the best network", auto["loss"], min(parents("networks"))),
        target("cycle error of MergeMany", universe["cycle error"], 0.0),
        target("split data, REPAIR: below both networks", best["loss"], min(parents("data"))),
    ]
    if limits is not None:
        found.append(target("merge auto: loss", auto["loss"], limits["merged loss"]))
        found.append(target("split data, REPAIR: ECE", best["ece"], limits["split ECE"]))
    return found


def run(
    case: Case, source: object, device: str, folder: Path | None = None, *, every: bool = False
) -> list[dict]:
    """Train and merge; return all rows but the targets.

    Args:
        case: the networks.
        source: see `Data.of`.
        device: where they are run.
        folder: see `trained`.
        every: whether they are trained on what is held back for choices, too.
    """
    data = Data.of(source)
    setting = Setting.of(case.make(), data, (2, case.widths[0]), device)
    seen = setting.data.fit
    if every:
        seen = Examples.gathered([*seen.lots, *setting.data.held.lots])
    prefix = "every_" if every else ""
    states = networks(case, [seen] * case.many, f"{prefix}all", folder, setting.device)
    halves = networks(case, split_by_class(seen), f"{prefix}split", folder, setting.device)
    return [*measure_many(setting, case, states), *measure_split(setting, case, halves)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", type=Path, help="folder where trained networks stay")
    options.add_argument(
        "--every-image", action="store_true", help="train on the images that choose, too"
    )
    chosen = options.parse_args()
    if not (chosen.small or chosen.mnist):
        options.error("name the folder with the files of MNIST by --mnist, or take --small")
    torch.set_num_threads(1)
    case, source = (SMALL, "digits") if chosen.small else (FULL, f"mnist:{chosen.mnist}")
    rows = run(case, source, chosen.device, chosen.models, every=chosen.every_image)
    judged = targets(rows, None if chosen.small else LIMITS)
    show("Merging of several networks", rows)
    show("Targets", judged)
    if chosen.record:
        shape = {"widths": list(case.widths), "epochs": case.epochs, "batch": case.batch}
        heading = [{"setting": shape, "seeds": list(range(case.many)), "published": PUBLISHED}]
        name = "reproduce_merge_many" + ("_small" if chosen.small else "")
        name += "_every_image" if chosen.every_image else ""
        record(name, [*heading, *rows, *judged])


if __name__ == "__main__":
    main()
