"""Engines: whoever does the work, and whoever dies of it, the output has the same bytes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from zoos import files_of, state, write_folder

from gpu_align import ZooProgress, align_zoo, inspect_zoo, save_checkpoint
from gpu_align._zoo._engine import LocalEngine

TARGET = state(99, 5, 6, 2)
HERE = Path(__file__).parent


def zoo(folder: Path, count: int) -> Path:
    return write_folder(folder / "zoo", [state(number, 5, 6, 2) for number in range(count)])


@pytest.mark.slow
def test_kills_at_random_moments_leave_the_same_bytes(tmp_path: Path) -> None:
    source, target = zoo(tmp_path, 60), tmp_path / "target.safetensors"
    save_checkpoint(target, TARGET)
    align_zoo(source, target, tmp_path / "whole", workers=1, shard=2)
    arguments = [source, target, tmp_path / "out", 20, 0]
    run = subprocess.run(
        [sys.executable, HERE / "zoo_campaign.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) >= 2
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not inspect_zoo(tmp_path / "out").failed


def descendants() -> set[int]:
    """Return the processes that this one has begun."""
    found: set[int] = set()
    mine = {os.getpid()}
    while mine:
        below = set()
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (OSError, ValueError):
                continue
            if entry.name.isdecimal() and int(fields[1]) in mine and fields[0] != "Z":
                below.add(int(entry.name))
        mine = below - found
        found |= below
    return found


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    source = zoo(tmp_path, 60)
    align_zoo(source, TARGET, tmp_path / "whole", workers=1, shard=2)
    before, killed = descendants(), []

    def kill(progress: ZooProgress) -> None:
        if progress.stage == "aligning" and progress.done >= 10 and not killed:
            killed.append(max(descendants() - before))  # the first is the tracker of resources
            os.kill(killed[0], signal.SIGKILL)

    found = align_zoo(source, TARGET, tmp_path / "out", workers=2, shard=2, progress=kill)
    assert killed
    assert found.aligned == 60
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def die(context: Path, task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_given_up_alone() -> None:
    found = dict(LocalEngine(2).each(die, None, list(range(6))))
    assert found == {0: 0, 1: 1, 2: 2, 3: None, 4: 4, 5: 5}


@pytest.mark.slow
def test_workers_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    source, target = zoo(tmp_path, 40), tmp_path / "target.safetensors"
    save_checkpoint(target, TARGET)
    command = [Path(sys.executable).with_name("gpu-align"), "zoo", "align", source]
    command += ["-o", tmp_path / "out", "--target", target, "--workers", "2", "--shard", "1"]
    before = descendants()
    driver = subprocess.Popen([*map(str, command), "--resume"], start_new_session=True)
    shards = tmp_path / "out" / "shards"
    while not shards.exists() or len(list(shards.iterdir())) < 5:
        assert driver.poll() is None
        time.sleep(0.05)
    workers = descendants() - before - {driver.pid}
    assert len(workers) >= 2
    driver.kill()
    driver.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)
    subprocess.run([*map(str, command), "--resume", "--quiet"], check=True)
    align_zoo(source, target, tmp_path / "whole", workers=1, shard=1)
    ours, whole = files_of(tmp_path / "out"), files_of(tmp_path / "whole")
    assert {n: b for n, b in ours.items() if n != "plan.json"} == {
        n: b for n, b in whole.items() if n != "plan.json"
    }


@pytest.fixture
def ray() -> Iterator[object]:
    """Ray, ended afterwards."""
    module = pytest.importorskip("ray")
    yield module
    module.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray and what it starts
def test_ray_gives_the_bytes_of_one_process(tmp_path: Path, ray: object) -> None:
    source = zoo(tmp_path, 12)
    align_zoo(source, TARGET, tmp_path / "local", workers=1, shard=2)
    align_zoo(source, TARGET, tmp_path / "ray", workers=2, shard=2, engine="ray")
    assert files_of(tmp_path / "local") == files_of(tmp_path / "ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_of_two_nodes_shares_the_work(tmp_path: Path, ray: object) -> None:
    from ray.cluster_utils import Cluster

    source = zoo(tmp_path, 12)
    align_zoo(source, TARGET, tmp_path / "local", workers=1, shard=2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        align_zoo(
            *(source, TARGET, tmp_path / "ray"),
            shard=2,
            engine="ray",
            address=cluster.address,
        )
    finally:
        cluster.shutdown()
    assert files_of(tmp_path / "local") == files_of(tmp_path / "ray")


KILLED_RAY = """
import os, signal, sys
from pathlib import Path
from test_zoo_engines import TARGET, descendants
from gpu_align import align_zoo

def kill(progress):
    if progress.stage == "aligning" and progress.done >= 4:
        for process in descendants():
            os.kill(process, signal.SIGKILL)

folder = Path(sys.argv[1])
align_zoo(folder / "zoo", TARGET, folder / "out", shard=1, engine="ray", workers=1, progress=kill)
"""


@pytest.mark.slow
def test_what_was_done_when_ray_is_killed_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    source = zoo(tmp_path, 40)
    environment = {"RAY_gcs_rpc_server_reconnect_timeout_s": "2", "PYTHONPATH": str(HERE)}
    run = subprocess.run(
        [sys.executable, "-c", KILLED_RAY, tmp_path],
        capture_output=True,
        env=os.environ | environment,
        check=False,
    )
    assert run.returncode != 0  # Ray may end the process that uses it
    assert 4 <= len(list((tmp_path / "out" / "shards").iterdir())) < 40
    align_zoo(source, TARGET, tmp_path / "out", workers=1, shard=1, resume=True)
    align_zoo(source, TARGET, tmp_path / "whole", workers=1, shard=1)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_kills_of_each_kind_at_random_moments_leave_the_same_bytes() -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "bench.zoo_kills", "--kills", "3", "--seed", "5"]
    run = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].strip() == "the zoo is whole, with the same bytes"
