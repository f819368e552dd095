"""Ends the work on a zoo by SIGKILL at random moments, goes on with it, and compares the bytes.

python -m bench.zoo_kills [--kills N] [--seed N]

A third of the kills each hits the driver of two local workers, one of its workers, and all of the
Ray that a driver has begun. The moment is that at which a random number of shards is done, or a
random one before the first is. Every attempt goes on with `--resume` where the one before was
ended; once a zoo is whole it is compared with one that was aligned in one go, and the next one is
begun.
"""

import argparse
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpu_align import align_zoo, inspect_zoo

KINDS = ("driver", "worker", "ray")
MODELS, WIDTHS = 60, (5, 6, 2)
STRIDE = 20
"""Shards that an attempt does at most before it is ended."""
_PATIENCE = 300.0
"""Seconds after which an attempt that neither ends nor moves is a fault."""


def networks(count: int) -> dict[str, torch.Tensor]:
    """Draw a stack of small networks."""
    torch.manual_seed(0)
    stack = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        stack[f"{2 * number}.weight"] = torch.randn(count, outputs, inputs)
        stack[f"{2 * number}.bias"] = torch.randn(count, outputs)
    return stack


def attempt(folder: Path, engine: str, workers: int, out: str = "out") -> None:
    """Do what is left of the zoo."""
    options = {"engine": engine, "workers": workers, "shard": 1, "resume": True, "device": "cpu"}
    align_zoo(folder / "zoo", folder / "target.safetensors", folder / out, **options)  # type: ignore[arg-type]


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file, but of the summary, which has times."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "summary.json"
    }


def below(root: int) -> dict[int, str]:
    """Return the living processes that one has begun, and those that these have: command lines."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
        if fields[0] != "Z":
            parents[int(entry.name)] = int(fields[1])
    found, last = dict[int, str](), {root}
    while last:
        last = {child for child, parent in parents.items() if parent in last}
        found |= {process: commands[process] for process in last}
    return found


def victims(kind: str, driver: int, draw: random.Random) -> list[int]:
    """Return the processes to kill; none where there are none yet."""
    processes = below(driver)
    if kind == "driver":
        return [driver]
    if kind == "ray":
        return sorted(processes)
    workers = [process for process, command in processes.items() if "spawn_main" in command]
    return [draw.choice(sorted(workers))] if workers else []


def wait_for(folder: Path, driver: subprocess.Popen, moment: tuple[int, float]) -> None:
    """Wait until so many shards are done and then some seconds, or until the driver has ended."""
    shards, end = folder / "out" / "shards", time.monotonic() + _PATIENCE
    while driver.poll() is None and time.monotonic() < end:
        if moment[0] == 0 or (shards.exists() and len(list(shards.iterdir())) >= moment[0]):
            time.sleep(moment[1])
            return
        time.sleep(0.002)


def kill_once(folder: Path, kind: str, draw: random.Random) -> str:
    """Begin an attempt and kill what is named; return how it ended."""
    done = len(list((folder / "out" / "shards").glob("0*"))) if (folder / "out").exists() else 0
    early = draw.random() < 0.2
    shard = done + draw.randint(1, max(min(STRIDE, MODELS - 1 - done), 1))
    moment = (0, draw.uniform(0, 8)) if early else (shard, draw.uniform(0, 0.05))
    engine = "ray" if kind == "ray" else "local"
    command = [sys.executable, "-m", "bench.zoo_kills", "--attempt", str(folder), engine]
    environment = os.environ | {
        "RAY_gcs_rpc_server_reconnect_timeout_s": "2",
        "OMP_NUM_THREADS": "1",
    }
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for(folder, driver, moment)
    hit: list[int] = []
    while driver.poll() is None and not (hit := victims(kind, driver.pid, draw)):
        time.sleep(0.01)  # they are still to come
    rest = below(driver.pid)
    for process in hit:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    code = driver.wait(_PATIENCE)
    end = time.monotonic() + _PATIENCE
    while kind != "ray" and any(Path(f"/proc/{process}").exists() for process in rest):
        assert time.monotonic() < end, "workers live on without their driver"
        time.sleep(0.05)
    when = f"{moment[1]:.1f} s after the start" if early else f"with {moment[0]} of {MODELS} shards"
    return f"{kind}, {when}: killed {len(hit)}, exit code {code}"


def campaign(kills: int, seed: int, folder: Path) -> None:
    """Kill so often; raise AssertionError where bytes differ."""
    draw = random.Random(seed)
    save_file({n: t[0] for n, t in networks(1).items()}, folder / "target.safetensors")
    (folder / "zoo").mkdir()
    save_file(networks(MODELS), folder / "zoo" / "stack.safetensors")
    attempt(folder, "local", 1, "whole")
    whole = hashes(folder / "whole")
    for number in range(kills):
        print(f"{number + 1}: {kill_once(folder, KINDS[number % len(KINDS)], draw)}", flush=True)
        if (folder / "out" / "summary.json").exists() or number + 1 == kills:
            attempt(folder, "local", 1)
            assert hashes(folder / "out") == whole
            assert not inspect_zoo(folder / "out").failed
            print("   the zoo is whole, with the same bytes", flush=True)
            shutil.rmtree(folder / "out")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=21)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attempt", nargs=2, metavar=("FOLDER", "ENGINE"))
    given = parser.parse_args()
    if given.attempt:
        attempt(Path(given.attempt[0]), given.attempt[1], 2)
        return
    with tempfile.TemporaryDirectory() as folder:
        campaign(given.kills, given.seed, Path(folder))


if __name__ == "__main__":
    main()
