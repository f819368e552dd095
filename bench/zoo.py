"""Zoos of 10^3 to 10^5 networks: models per second and peak memory, beside a process a model.

python -m bench.zoo [case ...] [--record]

Every case aligns a stack on disk by weight matching, with certificates, permutations, functions
compared where there is a model, and an index. Zoos are made once in `zoo-bench/`. The figures are
wall-clock time, time of all processors, and the largest sum of the proportional memory of all
processes of a run (Linux). `plain` is a process a model with a plain loop of SciPy.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.record import record
from gpu_align import ZooProgress, align_zoo
from gpu_align.learn import Siren

FOLDER = Path("zoo-bench")
PLAIN = 20
"""Models of the sample for a process a model."""


def siren() -> nn.Module:
    return Siren([2, 32, 32, 1])


def cnn() -> nn.Module:
    """A CNN of 2,492 parameters, about the size of those of Unterthiner et al. (2020)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU()),
        *(nn.Conv2d(8, 14, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(14, 10),
    )


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.short: nn.Module = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.short(x))


def resnet20() -> nn.Module:
    """ResNet20 of 272,000 parameters (He et al. 2016, section 4.2), with projections."""
    widths = [(16, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1)]
    widths += [(32, 64, 2), (64, 64, 1), (64, 64, 1)]
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(Block(*each) for each in widths),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


@dataclass(frozen=True)
class Case:
    """A zoo and who aligns it.

    Attributes:
        make: a network of it.
        inputs: shape of the example inputs.
        models: how many.
        engine, workers: who.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    models: int
    engine: str = "local"
    workers: int = 1


_SIREN = Case(siren, (8, 2), 10**3)
CASES: dict[str, Case] = {
    "siren_1000": _SIREN,
    "siren_1000_2_workers": replace(_SIREN, workers=2),
    "siren_10000": replace(_SIREN, models=10**4),
    "siren_10000_2_workers": replace(_SIREN, models=10**4, workers=2),
    "siren_10000_ray_1": replace(_SIREN, models=10**4, engine="ray"),
    "siren_10000_ray_2": replace(_SIREN, models=10**4, engine="ray", workers=2),
    "siren_10000_ray_4": replace(_SIREN, models=10**4, engine="ray", workers=4),
    "siren_100000_ray_1": replace(_SIREN, models=10**5, engine="ray"),
    "siren_100000_ray_2": replace(_SIREN, models=10**5, engine="ray", workers=2),
    "siren_100000_2_workers": replace(_SIREN, models=10**5, workers=2),
    "cnn_1000_2_workers": Case(cnn, (2, 1, 16, 16), 10**3, workers=2),
    "cnn_10000_ray_1": Case(cnn, (2, 1, 16, 16), 10**4, "ray", 1),
    "cnn_10000_ray_2": Case(cnn, (2, 1, 16, 16), 10**4, "ray", 2),
    "resnet20_50_2_workers": Case(resnet20, (2, 3, 32, 32), 50, workers=2),
}


def stack_of(case: Case) -> Path:
    """Make the zoo of a case: networks as they are initialised, biases with noise."""
    path = FOLDER / f"{case.make.__name__}_{case.models}.safetensors"
    if path.exists():
        return path
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    one = case.make().state_dict()
    generator = torch.Generator().manual_seed(1)
    stack = {}
    for name, tensor in one.items():
        shape = (case.models, *tensor.shape)
        if not tensor.is_floating_point():
            stack[name] = tensor.expand(shape).clone()
            continue
        bound = max(float(tensor.abs().max()), 0.1)
        drawn = bound * (2 * torch.rand(shape, generator=generator) - 1)
        stack[name] = drawn.abs() if name.endswith("var") else drawn
    save_file(stack, path)
    return path


class Memory:
    """Watches the proportional memory of this process and of all that it begins."""

    def __init__(self) -> None:
        self.peak, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(1.0):
            self.peak = max(self.peak, sum(map(_proportional, _family(os.getpid()))))


def _family(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found, last = [root], [root]
    while last:
        last = [child for child, parent in parents.items() if parent in last]
        found += last
    return found


def _proportional(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in text.splitlines())
    return sum(int(line[1]) * 1024 for line in lines if line[0] == "Pss:")


def measure(case: Case) -> dict[str, object]:
    """Align the zoo of a case in a process of its own, whose memory is its own."""
    command = [sys.executable, "-m", "bench.zoo", "--case", json.dumps(_plain(case))]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def _plain(case: Case) -> dict[str, object]:
    return {**case.__dict__, "make": case.make.__name__}


def run_case(case: Case) -> dict[str, object]:
    """Align the zoo of a case, and say what it took."""
    source, out = stack_of(case), FOLDER / "out"
    shutil.rmtree(out, ignore_errors=True)
    torch.manual_seed(2)
    model, inputs = case.make().eval(), torch.randn(case.inputs)
    load, cpu, begun = os.getloadavg()[0], _cpu(), time.perf_counter()
    driver, shards = time.process_time(), []

    def told(progress: ZooProgress) -> None:
        if progress.stage == "aligning" and progress.done:
            shards.append(time.perf_counter() - begun)

    with Memory() as memory:
        zoo = align_zoo(
            *(source, model, out),
            example_inputs=inputs,
            device="cpu",
            engine=case.engine,  # type: ignore[arg-type]
            workers=case.workers,
            progress=told,
        )
    seconds, cpu = time.perf_counter() - begun, _cpu() - cpu
    driver = time.process_time() - driver
    assert zoo.aligned == case.models
    [family] = zoo.data["families"].values()
    shutil.rmtree(out)
    inside = float(zoo.data["cpu_seconds"])
    return {
        "network": case.make.__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "models": case.models,
        "engine": case.engine,
        "workers": case.workers,
        "seconds": round(seconds, 2),
        "ms_per_model": round(1e3 * seconds / case.models, 4),
        "models_per_second": round(case.models / seconds, 2),
        "cpu_ms_per_model": round(1e3 * cpu / case.models, 4) if case.engine == "local" else None,
        "cpu_ms_per_model_in_shards": round(1e3 * inside / case.models, 4),
        "seconds_to_first_shard": round(shards[0], 2),
        "seconds_after_last_shard": round(seconds - shards[-1], 2),
        "driver_cpu_seconds": round(driver, 2),
        "peak_mb": round(memory.peak / 1e6),
        "distance_before": family["mean_distance_before"],
        "distance": family["mean_distance"],
        "lower_bound": family["mean_lower_bound"],
        "function_difference": family["largest_function_difference"],
        "load": round(load, 1),
    }


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def plain(models: int = PLAIN) -> dict[str, object]:
    """Align some SIRENs with a process for each and a plain loop of SciPy in it."""
    source, target = stack_of(_SIREN), FOLDER / "target.safetensors"
    torch.manual_seed(2)
    save_file({name: tensor for name, tensor in siren().state_dict().items()}, target)
    load, cpu, begun, inside = os.getloadavg()[0], _cpu(), time.perf_counter(), 0.0
    for number in range(models):
        command = ["-m", "bench.zoo_plain", source, number, target, FOLDER / "one.safetensors"]
        found = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, check=True
        )
        inside += float(found.stdout)
    seconds, cpu = time.perf_counter() - begun, _cpu() - cpu
    return {
        "network": "siren",
        "models": models,
        "engine": "a process a model",
        "workers": 1,
        "ms_per_model": round(1e3 * seconds / models, 2),
        "cpu_ms_per_model": round(1e3 * cpu / models, 2),
        "cpu_ms_per_model_in_loop": round(1e3 * inside / models, 3),
        "load": round(load, 1),
    }


def main() -> None:
    if "--case" in sys.argv:
        given = json.loads(sys.argv[-1])
        makers = {maker.__name__: maker for maker in (siren, cnn, resnet20)}
        given["make"], given["inputs"] = makers[given["make"]], tuple(given["inputs"])
        print(json.dumps(run_case(Case(**given))))
        return
    names = [name for name in sys.argv[1:] if not name.startswith("-")]
    rows: list[dict[str, object]] = []
    for name in names or ["plain", *CASES]:
        row = plain() if name == "plain" else measure(CASES[name])
        rows.append({"case": name, **row})
        table = Table("case", name)
        for key, value in row.items():
            table.add_row(key, str(value))
        Console(width=100).print(table)
        if "--record" in sys.argv:
            record("zoo", rows)


if __name__ == "__main__":
    main()
