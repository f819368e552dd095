"""Interrupted, killed and resumed commands: signals, and what they leave behind."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from children import WAIT, child
from marks import slow
from typer.testing import CliRunner, Result

from gpu_align import (
    CheckpointError,
    Progress,
    _interrupt,
    save_checkpoint,
)
from gpu_align._align import _many
from gpu_align._cli import _outputs, _terminal
from gpu_align._cli._main import app


def write_networks(folder: Path, width: int) -> None:
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        sizes = [10, width, width, 4]
        shapes = {
            f"{2 * n}.weight": (rows, cols)
            for n, (cols, rows) in enumerate(itertools.pairwise(sizes))
        }
        state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        save_checkpoint(folder / f"{seed}.safetensors", state)


SLOW = "from gpu_align import SearchStore; SearchStore.interval = {interval}; "
"""Python that has a search kept more often."""


def command(*options: str, interval: float = 30.0) -> list[str]:
    code = SLOW.format(interval=interval) + "from gpu_align._cli import main; main()"
    networks = ("1.safetensors", "0.safetensors", "-o", "new.safetensors", "-q")
    return [sys.executable, "-c", code, "align", *networks, *options]


def finish(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options), cwd=folder, capture_output=True, text=True, timeout=4 * WAIT
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = ("--search", "annealing", "--starts", "16")


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two networks, and what is made of them without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    write_networks(folder, 128)
    done = finish(folder, *LONG)
    assert done.returncode == 0, done.stderr
    return folder


def copy_networks(source: Path, folder: Path) -> None:
    for seed in (0, 1):
        shutil.copy(source / f"{seed}.safetensors", folder)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", slow(SIGNALS, but=[signal.SIGKILL]))
def test_a_killed_command_is_continued(
    number: signal.Signals, uninterrupted_run: Path, tmp_path: Path
) -> None:
    copy_networks(uninterrupted_run, tmp_path)
    state, out = tmp_path / "new.safetensors.search", tmp_path / "new.safetensors"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child(command(*LONG, interval=0.1), cwd=tmp_path, **pipes) as process:
        wait_for(state)
        process.send_signal(number)
        _, stderr = process.communicate()
    assert "Traceback" not in stderr
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
    else:
        assert process.returncode == 1
        assert "--resume" in stderr
        assert out.exists()
    refused = finish(tmp_path, *LONG)
    assert refused.returncode == 2
    assert "add --resume" in refused.stderr
    done = finish(tmp_path, *LONG, "--resume")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == (uninterrupted_run / "new.safetensors").read_bytes()
    assert not state.exists()


def test_the_second_ctrl_c_quits_at_once(tmp_path: Path) -> None:
    """Also where Python itself does not get to look at signals: the handler hangs here."""
    code = (
        "import signal, sys, time\n"
        "from gpu_align import _interrupt\n"
        "_interrupt._interrupt = lambda *args: time.sleep(99)\n"
        "_interrupt.take_signals()\n"
        "print('ready', flush=True)\n"
        "time.sleep(99)\n"
    )
    with child([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(2 * _interrupt._SAME)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 1


@pytest.mark.parametrize("module", [False, True])
def test_ctrl_c_during_the_imports(module: bool, tmp_path: Path) -> None:
    # A stand-in for torch that says when it is being imported.
    (tmp_path / "torch.py").write_text("import time; print('in', flush=True); time.sleep(99)\n")
    script = tmp_path / "gpu-align"
    script.write_text("from gpu_align._cli import main; main()\n", encoding="utf-8")
    how = ["-m", "gpu_align"] if module else [str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child([sys.executable, *how, "env"], env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (1, "interrupted\n")


def test_importing_the_library_leaves_signals_alone() -> None:
    code = (
        "import signal; import gpu_align; "
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_signals_are_held_back_within_and_delivered_after() -> None:
    done = []

    def interrupted() -> None:
        with _interrupt.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("within")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["within"]
    with _interrupt.uninterrupted(deliver=False):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_networks(tmp_path, 8)
    return tmp_path


def invoke(*options: str) -> Result:
    networks = ("align", "1.safetensors", "0.safetensors", "--search", "annealing")
    return CliRunner().invoke(app, [*networks, *options])


def invoke_interrupted(monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    def stop(self: object, progress: Progress) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_terminal.Display, "search", stop)
        return invoke(*options)


def test_source_is_not_replaced_by_an_interrupted_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path("1.safetensors").read_bytes()
    result = invoke_interrupted(monkeypatch, "-o", "1.safetensors")
    assert result.exit_code == 1
    assert "--steps 1" in result.stderr
    assert Path("1.safetensors").read_bytes() == before
    assert "nothing was written" not in result.stdout
    assert invoke("-o", "1.safetensors", "--resume").exit_code == 0
    assert Path("1.safetensors").read_bytes() != before
    assert not Path("1.safetensors.search").exists()


def test_without_outputs_nothing_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke_interrupted(monkeypatch)
    assert result.exit_code == 1
    assert "--resume" not in result.stderr
    assert len(list(folder.iterdir())) == 2
    result = invoke("--resume")
    assert result.exit_code == 2
    assert "none is named" in result.stderr


def test_resume_without_a_kept_search(folder: Path) -> None:
    result = invoke("-o", "new.safetensors", "--resume")
    assert result.exit_code == 2
    assert "nothing to resume: new.safetensors.search does not exist" in result.stderr


def test_outputs_that_cannot_be_written_leave_the_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise CheckpointError("cannot write new.safetensors: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_outputs, "save_checkpoint", full)
        result = invoke("-o", "new.safetensors")
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert Path("new.safetensors.search").exists()
    assert invoke("-o", "new.safetensors", "--resume").exit_code == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        *("0.safetensors", "1.safetensors", "new.safetensors")
    ]


def test_ctrl_c_after_the_search_keeps_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_many, "certificates", stop)
        result = invoke("-o", "new.safetensors")
    assert result.exit_code == 1
    assert "--resume" in result.stderr
    assert not Path("new.safetensors").exists()
    assert invoke("-o", "new.safetensors", "--resume").exit_code == 0


def test_ctrl_c_while_writing_lets_it_finish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = _outputs.save_checkpoint

    def interrupted(*args: object, **kwargs: object) -> None:
        signal.raise_signal(signal.SIGINT)
        save(*args, **kwargs)

    monkeypatch.setattr(_outputs, "save_checkpoint", interrupted)
    result = invoke("-o", "new.safetensors", "--json-file", "r.json")
    assert result.exit_code == 0, result.output
    assert Path("new.safetensors").exists()
    assert Path("r.json").exists()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"out": "a/new.pt"}, "a/new.pt.search"),
        ({"out": "shards"}, "shards.search"),
        ({"out": "a/shards/"}, "a/shards.search"),
        ({"out": "a/shards/model.safetensors.index.json"}, "a/shards.search"),
        ({"json_file": "r.json", "report": "p.html"}, "r.json.search"),
        ({}, None),
    ],
)
def test_where_the_search_is_kept(chosen: dict[str, str], expected: str | None) -> None:
    none = dict.fromkeys(("out", "permutation", "json_file", "report"))
    outputs = _outputs.Outputs(**none | {name: Path(path) for name, path in chosen.items()})
    assert outputs.state == (None if expected is None else Path(expected))
