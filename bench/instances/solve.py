"""Run the searches on the instances, prove what can be proved, and record both.

    python -m bench.instances.solve [NAME ...]
    python -m bench.instances.solve --more [NAME ...]
    python -m bench.instances.solve --prove SECONDS [NAME ...]

Writes `records.json` and the best orders; --more tries more seeds of two searches, and proves anew
what they improve; --prove proves anew for longer. An order that is worse than the recorded one
replaces nothing; one found elsewhere is entered by hand, with who found it. Times are CPU seconds
of one thread from the call on, symmetries known.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from bench.instances import weight_matching
from bench.instances.architectures import NETWORKS
from bench.instances.instance import BEST, RECORDS, Instance
from bench.instances.instance import NETWORKS as FOLDER
from bench.instances.layout import Order
from bench.record import facts
from gpu_align import (
    AlignmentProblem,
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    KBest,
    LayerwiseBeam,
    Permutation,
    PermutationSpec,
    Recombination,
    Search,
    Status,
    align,
    prove,
)

SEARCHES: dict[str, Search | None] = {
    "CoordinateDescent": CoordinateDescent(),
    "CoordinateDescent, 20 starts": CoordinateDescent(20, initial="random"),
    "FrankWolfe": FrankWolfe(),
    "LayerwiseBeam, width 10": LayerwiseBeam(10, KBest(8), lookahead=True),
    "Annealing": Annealing(),
    "Recombination": Recombination(),
    "BeamDescent": BeamDescent(),
    "default (Portfolio)": None,
}
PLAIN = "SciPy weight matching"
PROOF_SECONDS = 60.0
MORE = 5
"""Seeds that --more tries."""
_ROUNDING = 1e-7
Events = list[tuple[float, float]]


def states(name: str) -> list[dict[str, torch.Tensor]]:
    """Return target and source."""
    return [load_file(FOLDER / f"{name}_{end}.safetensors") for end in "ab"]


def searched(name: str, search: Search | None, seed: int = 0) -> tuple[Order, Events, float]:
    """Return the order that a search of gpu-align finds, its progress, and the bound."""
    target, source = states(name)
    spec = PermutationSpec.from_json((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    events, started = [], time.process_time()

    def tell(progress: Any) -> None:
        events.append((time.process_time() - started, progress.best_distance))

    result = align(source, target, spec=spec, search=search, seed=seed, device="cpu", progress=tell)
    perms, signs = result.permutation.perms, result.permutation.signs
    order = Order(
        Instance.load(name).groups,
        {group: perm.numpy() for group, perm in perms.items()},
        {group: sign.numpy() for group, sign in signs.items()},
    )
    return order, events, result.lower_bound


def proved(name: str, order: Order, seconds: float = PROOF_SECONDS) -> dict[str, Any]:
    """Return the best bound that a proof reaches, and whether it meets the value."""
    target, source = states(name)
    spec = PermutationSpec.from_json((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    perms, signs = (
        {group: torch.from_numpy(np.asarray(vector, np.int64)) for group, vector in held.items()}
        for held in (order.perms, order.signs)
    )
    started = time.process_time()
    problem = AlignmentProblem(source, target, spec)
    proof = prove(problem, Permutation(spec, perms, signs), seconds=seconds)
    return {
        "value": proof.lower_bound,
        "proved": proof.status is Status.PROVED_OPTIMAL,
        "method": proof.method,
        "seconds": round(time.process_time() - started, 2),
    }


def shortened(events: Events) -> Events:
    """Return the events at which the distance fell, and the last one."""
    kept, best = [], float("inf")
    for seconds, distance in events:
        if distance < best * (1 - _ROUNDING):
            kept.append((round(seconds, 4), distance))
            best = distance
    return [*kept, (round(events[-1][0], 4), best)]


def write(name: str, order: Order) -> None:
    """Keep an order as the best one."""
    BEST.mkdir(exist_ok=True)
    signs = {f"signs^{group}": sign.astype(np.int8) for group, sign in order.signs.items()}
    perms = {group: perm.astype(np.int16) for group, perm in order.perms.items()}
    save_file({**perms, **signs}, BEST / f"{name}.safetensors")


def solve(name: str, known: dict[str, Any] | None) -> dict[str, Any]:
    """Return what is known of an instance after all searches."""
    instance, entries, bounds = Instance.load(name), {}, []
    best = {"value": float("inf")} if known is None else known["best"]
    found: dict[str, tuple[Order, Events]] = {PLAIN: weight_matching.timed(instance)}
    for title, search in SEARCHES.items():
        order, events, bound = searched(name, search)
        found[title] = order, events
        bounds.append(bound)
    for title, (order, events) in found.items():
        instance.check(order)
        value, taken = instance.value(order), shortened(events)
        entries[title] = {"value": value, "seconds": taken[-1][0], "events": taken}
        print(f"{name:14} {title:30} {value:12.5f} {taken[-1][0]:8.2f} s", flush=True)
        if value < best["value"] * (1 - _ROUNDING):
            best = {"value": value, "by": "gpu-align", "with": title, "seconds": taken[-1][0]}
            write(name, order)
    kept = instance.read(BEST / f"{name}.safetensors")
    bound = proved(name, kept)
    print(f"{name:14} {'bound':30} {bound['value']:12.5f} {bound['seconds']:8.2f} s", flush=True)
    movable = [group for group, entry in instance.groups.items() if not entry.fixed]
    return {
        "title": NETWORKS[name][0],
        "groups": len(movable),
        "units": sum(map(instance.units, movable)),
        "log10": PermutationSpec.from_json(json.dumps(instance.spec)).log10_symmetries,
        "parameters": sum(
            int(np.prod(instance.target[tensor].shape))
            for tensor in instance.spec["tensors"]
            if tensor not in instance.spec["buffers"]
        ),
        "before": instance.value(instance.identity()),
        "quick bound": max(bounds),
        "bound": bound,
        "best": best,
        "entries": entries,
    }


def improve(name: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return what is known after more seeds of the searches that end lowest."""
    instance, best, improved = Instance.load(name), known["best"], False
    for seed in range(1, MORE + 1):
        for title in ("BeamDescent", "default (Portfolio)"):
            order, events, _ = searched(name, SEARCHES[title], seed)
            value = instance.value(order)
            if value < best["value"] * (1 - _ROUNDING):
                taken = {"seconds": shortened(events)[-1][0], "with": f"{title}, seed {seed}"}
                best, improved = {"value": value, "by": "gpu-align", **taken}, True
                write(name, order)
                print(f"{name:14} {best['with']:30} {value:12.5f}", flush=True)
    if not improved:
        return known
    bound = proved(name, instance.read(BEST / f"{name}.safetensors"))
    return {**known, "best": best, "bound": bound}


def proved_anew(name: str, known: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return what is known with the better of two bounds."""
    bound = proved(name, Instance.load(name).read(BEST / f"{name}.safetensors"), seconds)
    print(f"{name:14} {'bound':30} {bound['value']:12.5f} {bound['seconds']:8.2f} s", flush=True)
    return {**known, "bound": max(known["bound"], bound, key=lambda each: each["value"])}


def main(chosen: list[str], step: Callable[[str, Any], dict[str, Any]]) -> None:
    """Solve instances, or improve what is known of them, and keep the records of the others."""
    torch.set_num_threads(1)
    held = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    known = held.get("instances", {})
    for name in chosen:
        known[name] = step(name, known.get(name))
        ordered = {each: known[each] for each in NETWORKS if each in known}
        text = json.dumps({**facts(), "instances": ordered}, indent=1)
        RECORDS.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m bench.instances.solve")
    parser.add_argument("names", metavar="NAME", nargs="*", default=list(NETWORKS))
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--prove", metavar="SECONDS", type=float)
    given = parser.parse_args()
    again = solve if not given.more else improve
    if given.prove is not None:
        again = partial(proved_anew, seconds=given.prove)
    main(given.names, again)
