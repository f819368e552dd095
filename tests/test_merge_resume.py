"""A merge that is interrupted: what is kept, and that it goes on as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trained_digits import CNN, DIGITS, MLP
from typer.testing import CliRunner, Result

from gpu_align import CoordinateDescent
from gpu_align._align import _realign
from gpu_align._cli._main import app
from gpu_align._merge import Task, _calibration, _orders

FEW = ("--search", "descent", "--device", "cpu")
BOTH = ("mlp0.safetensors", "mlp1.safetensors")
KEPT = "out.safetensors.search"


def run(*options: str, out: str = "out.safetensors") -> Result:
    return CliRunner().invoke(app, ["merge", *BOTH, "-o", out, *MLP, *DIGITS, *FEW, *options])


def interrupt(patch: pytest.MonkeyPatch, owner: object, name: str, at: int) -> Callable[[], None]:
    """Let the call of a number raise KeyboardInterrupt; return what undoes it."""
    function, calls = getattr(owner, name), []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(name)
        if len(calls) == at:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    patch.setattr(owner, name, interrupted)
    return lambda: patch.setattr(owner, name, function)


def count(patch: pytest.MonkeyPatch, owner: object, name: str) -> list[str]:
    """Return a list that grows with every call."""
    function, calls = getattr(owner, name), []

    def counted(*arguments: object, **options: object) -> object:
        calls.append(name)
        return function(*arguments, **options)

    patch.setattr(owner, name, counted)
    return calls


STAGES = [
    pytest.param(_orders, "align_networks", 1, 3, id="first alignment", marks=pytest.mark.slow),
    pytest.param(_orders, "align_networks", 3, 1, id="last alignment", marks=pytest.mark.slow),
    pytest.param(_calibration, "recalibrate", 1, 0, id="repairs"),
    pytest.param(Task, "_between", 1, 0, id="mean of the fits", marks=pytest.mark.slow),
    pytest.param(*(CoordinateDescent, "step", 2, 3), id="within a search", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("owner", "name", "at", "alignments"), STAGES)
def test_a_resumed_merge_ends_as_if_it_had_not_been_interrupted(
    trained_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    at: int,
    alignments: int,
) -> None:
    whole = run(out="whole.safetensors")
    assert whole.exit_code == 0, whole.output
    before = sorted(Path().iterdir())
    restore = interrupt(monkeypatch, owner, name, at)
    stopped = run()
    assert stopped.exit_code == 1
    assert f"the merge is kept in {KEPT}" in " ".join(stopped.stderr.split())
    assert Path(KEPT).exists()
    assert not Path("out.safetensors").exists()
    restore()
    calls = count(monkeypatch, _orders, "align_networks")
    found = run("--resume")
    assert found.exit_code == 0, found.output
    assert len(calls) == alignments
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert sorted(Path().iterdir()) == sorted([*before, Path("out.safetensors")])


def stop(patch: pytest.MonkeyPatch) -> None:
    with patch.context() as inner:
        interrupt(inner, _orders, "align_networks", 1)
        assert run().exit_code == 1


def test_a_kept_merge_is_not_lost_and_not_taken_for_another(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(monkeypatch)
    again = run()
    assert again.exit_code == 2
    assert "add --resume" in " ".join(again.stderr.split())
    other = run("--resume", "--seed", "3")
    assert other.exit_code == 2
    assert "the seed" in other.stderr
    Path(KEPT).write_bytes(Path(KEPT).read_bytes()[:500])
    damaged = run("--resume")
    assert damaged.exit_code == 2
    assert "damaged" in damaged.stderr


@pytest.mark.parametrize("document", [{"schema": "?"}, {"identity": {}, "stages": {}}, [1]])
def test_what_is_no_kept_merge_is_refused(trained_folder: Path, document: object) -> None:
    torch.save(document, KEPT)
    found = run("--resume")
    assert found.exit_code == 2
    assert f"cannot resume the merge in {KEPT}" in " ".join(found.stderr.split())


def test_there_may_be_nothing_to_resume(trained_folder: Path) -> None:
    found = run("--resume")
    assert found.exit_code == 2
    assert "nothing to resume" in " ".join(found.stderr.split())


@pytest.mark.slow
def test_batch_norms_and_many_networks_are_resumed(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["merge", "cnn0.safetensors", "cnn1.safetensors", "cnn0.safetensors", *CNN, *DIGITS]
    options = [*command, *FEW, "--method", "refit", "-o"]
    assert CliRunner().invoke(app, [*options, "whole.safetensors"]).exit_code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, _calibration, "recalibrate", 1)
        assert CliRunner().invoke(app, [*options, "out.safetensors"]).exit_code == 1
    calls = count(monkeypatch, _orders, "common_frame")
    found = CliRunner().invoke(app, [*options, "out.safetensors", "--resume"])
    assert found.exit_code == 0, found.output
    assert not calls
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def assert_resumed_search_by_search(
    monkeypatch: pytest.MonkeyPatch, at: Callable[[int], int], *options: str
) -> None:
    """Merge three networks, interrupted at a search that is told from their number, and resumed."""

    def merged(out: str, *more: str) -> Result:
        command = ["merge", *BOTH, "mlp0.safetensors", "-o", out, *FEW, *options, *more]
        return CliRunner().invoke(app, command)

    calls = count(monkeypatch, _realign, "run_search")
    assert merged("whole.safetensors").exit_code == 0
    needed = len(calls)
    assert needed > at(needed)
    with monkeypatch.context() as patch:
        interrupt(patch, _realign, "run_search", at(needed))
        stopped = merged("out.safetensors")
    assert stopped.exit_code == 1
    assert Path(KEPT).exists()
    calls.clear()
    found = merged("out.safetensors", "--resume")
    assert found.exit_code == 0, found.output
    assert len(calls) == needed - (at(needed) - 1)
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


@pytest.mark.parametrize("at", [2, 5])
def test_the_common_order_of_many_networks_is_resumed_search_by_search(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    assert_resumed_search_by_search(monkeypatch, lambda _: at)
