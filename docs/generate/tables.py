"""Tables of figures from what the benches recorded, each with its machine and its file."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.large import NETWORKS
from gpu_align import METRICS, CoordinateDescent
from gpu_align._align._batches import bytes_per_model

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"

Row = Mapping[str, Any]


@cache
def run(name: str) -> Row:
    """Return a recorded run."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """Return a table in Markdown; the cells of the first columns are words, the others numbers."""
    head = f"| {' | '.join(columns)} |"
    rule = f"|{'---|' * words}{'---:|' * (len(columns) - words)}"
    return "\n".join([head, rule, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def source(*names: str) -> str:
    """Return the line under a table: machine, versions, commit and file of each run."""
    return "\n".join(f"<small>{_source(name)}</small>  " for name in names)


def _source(name: str) -> str:
    return recorded(run(name), name)


def recorded(held: Row, name: str) -> str:
    """Return in words what a run was recorded on, with a link to it."""
    machine, versions = held["machine"], held["versions"]
    gpu = f"one {machine['gpu']} and " if machine["gpu"] else ""
    what = f"{gpu}{machine['cores']} cores of an {machine['processor']}"
    python, torch = versions["python"], versions["torch"]
    return (
        f"Recorded on {what}; Python {python}, torch {torch}; commit {held['commit'][:7]}; "
        f"[{name}.json](figures/{name}.json)."
    )


def seconds(milliseconds: float) -> str:
    """Return a time in seconds with two to three digits that count."""
    value = milliseconds / 1e3
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def median(row: Row, key: str = "ms") -> float:
    """Return the median of a timing."""
    return row[key]["median"]


PAIRS = {
    "coursework": "coursework 784-64-24-10",
    "mnist_mlp_128x3": "MLP 784-128-128-128-10",
    "mnist_mlp_512x3": "MLP 784-512-512-512-10",
    "mnist_cnn_bn": "CNN with BatchNorm",
    "mnist_resnet_w16": "ResNet, width 16",
}
"""The trained pairs in words."""


def reference() -> str:
    """Squared distances of the trained pairs."""
    rows = []
    for row in run("reference")["rows"]:
        best, found = row["best known"], row["default"]
        ours = f"**{found:.2f}**" if found < best - 0.005 else f"{found:.2f}"
        distances = f"{row['before']:.1f}", f"{row['descent']:.2f}", f"{best:.2f}", ours
        rows.append((PAIRS[row["pair"]], *distances, f"{row['seconds']:.0f}"))
    columns = ("MNIST pair", "unaligned", "weight matching", "prototype", "gpu-align", "seconds")
    return f"{markdown(columns, rows)}\n\n{source('reference')}"


def bounds() -> str:
    """How far proofs come."""
    rows = []
    for row in run("bounds")["rows"]:
        found, bound = row["distance"], row["proved bound"]
        left = (found - bound) / found
        is_proved = row["status"] == "proved_optimal"
        rows.append(
            (
                *(PAIRS[row["pair"]], f"{found:.2f}", f"{row['lower bound alone']:.1f}"),
                *(f"{bound:.2f}", "0, proved optimal" if is_proved else f"{100 * left:.1f} %"),
                *(row["method"], f"{row['seconds']:.0f}"),
            )
        )
    columns = ("pair", "found", "alone", "proved", "of it open", "by", "seconds")
    return f"{markdown(columns, rows)}\n\n{source('bounds')}"


_PLANTED = ("default", "descent")


def planted() -> str:
    """Planted permutations of the symmetries that tracing found."""
    rows = [
        (
            *(row["network"], f"{row['log10 symmetries']:.1f}", row["noise"]),
            *(f"{row[way]} of {row['draws']}" for way in _PLANTED),
        )
        for row in run("planted_architectures")["rows"]
    ]
    columns = ("network", "log10 of the symmetries", "noise", "default search", "weight matching")
    return f"{markdown(columns, rows)}\n\n{source('planted_architectures')}"


def planted_pairs() -> str:
    """Planted permutations on an MLP, a CNN and a ResNet, by noise."""
    rows = [
        (row["network"], row["noise"], *(f"{row[way]} of {row['draws']}" for way in _PLANTED))
        for row in run("planted")["rows"]
    ]
    columns = ("network", "noise", "default search", "weight matching")
    return f"{markdown(columns, rows)}\n\n{source('planted')}"


def beam_width(name: str, device: str) -> str:
    """Width of the beam on the coursework's pair against time and distance."""
    held = [row for row in run(name)["rows"] if row["pair"] == "coursework" and "ms" in row]
    held = [row for row in held if row["device"] == device]
    cases = list(dict.fromkeys(row["case"] for row in held))
    found = {(row["case"], row["width"]): row for row in held}
    reported = {row["width"]: row["reported_seconds"] for row in held if "reported_seconds" in row}
    rows = []
    for width in sorted({row["width"] for row in held}):
        cells = [found.get((case, width)) for case in cases]
        shown = [f"{c['distance']:.2f}, {seconds(median(c))}" if c else "" for c in cells]
        rows.append((width, *shown, reported.get(width, "")))
    columns = ("beam width", *(f"{case.removeprefix('coursework, ')}" for case in cases))
    return f"{markdown((*columns, 'reported, seconds'), rows)}\n\n{source(name)}"


def coursework() -> str:
    """Searches on the coursework's own pair and metric."""
    rows = [
        (row["search"], f"{row['before']:.2f}", f"{row['after']:.3f}", f"{row['seconds']:.2f}")
        for row in run("coursework")["rows"]
        if "after" in row
    ]
    columns = ("search", "before", "after", "seconds")
    return f"{markdown(columns, rows)}\n\n{source('coursework')}"


def whole(name: str) -> str:
    """Weight matching of whole networks beside a plain loop."""
    networks: dict[str, dict[str, Row]] = {}
    for row in run(name)["rows"]:
        way = "plain" if row["way"] == "plain" else row["device"]
        networks.setdefault(row["network"], {})[way] = row
    devices = [d for d in ("cpu", "cuda") if any(d in ways for ways in networks.values())]
    rows = []
    for network, ways in networks.items():
        first = next(iter(ways.values()))
        times = [seconds(median(ways[way])) if way in ways else "" for way in ("plain", *devices)]
        formed = [seconds(median(ways["cuda"], "form_ms"))] if "cuda" in devices else []
        published = first["published_seconds"] or ""
        rows.append((network, f"{first['parameters'] / 1e6:.1f} M", *times, *formed, published))
    words = {"cpu": "gpu-align, CPU", "cuda": "gpu-align, GPU"}
    columns = ("network", "parameters", "plain loop", *(words[d] for d in devices))
    form = ("of it form",) if "cuda" in devices else ()
    return f"{markdown((*columns, *form, 'published, V100'), rows)}\n\n{source(name)}"


def many_models() -> str:
    """Many models in one call against one call after another."""
    rows = []
    for row in run("many_models")["rows"]:
        low, mid, high = (row["times faster"][q] for q in ("20 %", "median", "80 %"))
        published = row["published seconds per pair"]
        rows.append(
            (
                *(f"{row['models']} × {row['networks']}", row["search"]),
                *(f"{row['milliseconds per model']:.1f}", f"{mid:.1f} ({low:.1f} to {high:.1f})"),
                f"{published * 1e3:.0f} ms" if published else "",
            )
        )
    columns = ("networks", "search", "ms a model", "times faster", "published")
    return f"{markdown(columns, rows)}\n\n{source('many_models')}"


def learn_layer() -> str:
    """One equivariant layer beside DWSNets' own."""
    networks: dict[str, dict[str, Row]] = {}
    for row in run("learn_layer")["rows"]:
        networks.setdefault(row["network"], {})[row["way"]] = row
    rows = []
    for network, ways in networks.items():
        times = ways["published"]["times_as_long"]
        spread = f"{times['median']:.1f} ({times['q20']:.1f} to {times['q80']:.1f})"
        both = [f"{median(ways[way]):.0f}" for way in ("gpu-align", "published")]
        rows.append((network, *both, spread))
    columns = ("networks", "gpu-align, ms", "DWSNets, ms", "times as long")
    return f"{markdown(columns, rows)}\n\n{source('learn_layer')}"


def _spread(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def assignment() -> str:
    """Batches of assignment problems on a GPU and on all cores."""
    solvers = ("SciPy, all cores", "lapx, all cores", "torch-linear-assignment", "auction")
    cases: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in run("assignment")["rows"]:
        if "ms" in row:
            case = row["kind"], row["batch"], row["n"]
            each = 1e3 * median(row) / row["problems"]
            cases.setdefault(case, {})[row["solver"]] = each
    rows = []
    for (kind, batch, n), times in cases.items():
        shown = [_microseconds(times[solver]) if solver in times else "" for solver in solvers]
        rows.append((f"{kind}, {batch:,} × {n}", *shown))
    return f"{markdown(('costs', *solvers), rows)}\n\n{source('assignment')}"


def _microseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def rounds() -> str:
    """Rounds of federated averaging."""
    rows = []
    for row in run("rounds")["rows"]:
        found = "once" if row["traced"] == 0 else "in every round"
        time = row["CPU milliseconds a round"]["median"] / 1e3
        growth = f"{max(row['MB more a round'], 0):.2f}", f"{row['objects more a round']:.0f}"
        rows.append((found, f"{time:.2f}", *growth))
    columns = ("symmetries found", "CPU seconds a round", "MB more a round", "objects more a round")
    return f"{markdown(columns, rows)}\n\n{source('rounds')}"


def zoo() -> str:
    """Zoos of many sizes, and who aligned them."""
    rows = []
    for row in run("zoo")["rows"]:
        who = row["engine"]
        if who in ("local", "ray"):
            who = f"{who}, {row['workers']} worker{'s' if row['workers'] > 1 else ''}"
        cpu = "" if row["cpu_ms_per_model"] is None else f"{row['cpu_ms_per_model']:.2f}"
        shards = row.get("cpu_ms_per_model_in_shards")
        inside = "" if shards is None else f"{shards:.2f}"
        peak = f"{row['peak_mb']:,}" if "peak_mb" in row else ""
        rows.append(
            (
                *(f"{row['models']:,} × {row['network']}", who),
                *(f"{row['ms_per_model']:.2f}", cpu, inside, peak),
                f"{row['load']:.0f}",
            )
        )
    columns = (
        "networks",
        "by",
        "ms a model",
        "processor ms",
        "of them in shards",
        "peak MB",
        "load",
    )
    return f"{markdown(columns, rows)}\n\n{source('zoo')}"


MERGED = ("mnist_mlp_128x3", "mnist_mlp_512x3", "mnist_cnn_bn", "mnist_resnet_w16")


def merging() -> str:
    """Loss and accuracy of every way of merging the trained pairs."""
    ways: dict[str, dict[str, str]] = {}
    for pair in MERGED:
        for row in run(f"reproduce_merging_{pair}")["rows"]:
            if "order" in row:
                shown = f"{row['loss']:.4f} / {100 * row['accuracy']:.1f}"
                ways.setdefault(_way(row["order"], row["set right by"]), {})[pair] = shown
    rows = [(way, *(found.get(pair, "") for pair in MERGED)) for way, found in ways.items()]
    names = [f"reproduce_merging_{pair}" for pair in MERGED]
    columns = ("loss / accuracy", *(PAIRS[pair] for pair in MERGED))
    return f"{markdown(columns, rows)}\n\n{source(*names)}"


def git_rebasin() -> str:
    """Barriers of Git Re-Basin's MLPs by width, and of one width during training."""
    rows = []
    for row in run("reproduce_git_rebasin_mnist")["rows"]:
        if "width" in row:
            ways = ("as given", "weights", "activations", "straight-through")
            barriers = (f"{row[f'barrier, {way}']:.3f}" for way in ways)
            parents = ", ".join(f"{loss:.3f}" for loss in row["losses of both"])
            rows.append((row["width"], row["epoch"], parents, *barriers))
    columns = ("width", "epochs", "losses of both", "as given", "by weights", "by activations")
    table = markdown((*columns, "straight-through"), rows)
    return f"{table}\n\n{source('reproduce_git_rebasin_mnist')}"


def _way(order: str, set_right_by: str) -> str:
    """Return a way of merging in words that are the same for all networks.

    Rows with statistics of batch norms measured anew come after those without, and take their
    place.
    """
    if order == "merge auto":
        return "**`merge`**"
    if order == "merge distill":
        return "`merge`, distill"
    if set_right_by.startswith("refit"):
        return f"best order, {set_right_by}"
    return f"{order}, REPAIR" if set_right_by == "repair" else order


def memory() -> str:
    """Memory that is planned with for networks of known size."""
    rows = []
    for network in NETWORKS:
        spec = network.spec()
        parameters = sum(math.prod(tensor.shape) for tensor in spec.tensors.values())
        needed = [
            bytes_per_model(spec, METRICS["l2"], CoordinateDescent(starts), torch.float32)
            for starts in (1, 20)
        ]
        largest = max(spec.units(group) for group in spec.groups)
        shown = (f"{size / 1e9:.1f} GB" for size in needed)
        rows.append((network.name, f"{parameters / 1e6:.1f} M", largest, *shown))
    columns = ("network", "parameters", "largest group", "one hypothesis", "20 hypotheses")
    return markdown(columns, rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "reference": reference,
    "bounds": bounds,
    "planted": planted,
    "planted_pairs": planted_pairs,
    "beam_width_cpu": lambda: beam_width("beam_width_cpu", "cpu"),
    "beam_width_gpu": lambda: beam_width("beam_width", "cuda"),
    "coursework": coursework,
    "whole_cpu": lambda: whole("whole_cpu"),
    "whole_gpu": lambda: whole("whole"),
    "many_models": many_models,
    "learn_layer": learn_layer,
    "assignment": assignment,
    "rounds": rounds,
    "zoo": zoo,
    "merging": merging,
    "git_rebasin": git_rebasin,
    "memory": memory,
}
"""What `<!-- table: NAME -->` in a page stands for."""
