"""Outputs that fail, runs that are killed while they write, and a source that others write to."""

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from marks import slow
from safetensors import SafetensorError
from test_bad_input import mlp_state
from typer.testing import CliRunner, Result

from gpu_align import GpuAlignError, InputError, load_checkpoint, save_checkpoint
from gpu_align._cli import _outputs
from gpu_align._cli._main import app
from gpu_align._search import SearchStore
from gpu_align._symmetry import _permutation_file

SOURCE = "1.safetensors"
OTHERS = ("--permutation", "p.safetensors", "--json-file", "r.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        save_checkpoint(tmp_path / f"{number}.safetensors", mlp_state(number))
    return tmp_path


def invoke(*options: str) -> Result:
    return CliRunner().invoke(
        app, ["align", SOURCE, "0.safetensors", "--search", "descent", *options]
    )


class Killed(BaseException):
    """Stands for kill -9: nothing of the program handles it."""


def killing(function: Callable, at: int, counter: itertools.count, *, after: bool) -> Callable:
    def wrapped(*args: object, **options: object) -> object:
        number = next(counter)
        if number == at and not after:
            raise Killed
        result = function(*args, **options)
        if number == at and after:
            raise Killed
        return result

    return wrapped


@pytest.mark.parametrize("out", slow([SOURCE, "new.safetensors"], but=[SOURCE]))
def test_every_kill_leaves_what_one_of_two_commands_ends(
    out: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each output, and before and after the kept search is removed."""
    monkeypatch.setattr(SearchStore, "interval", 0.0)
    monkeypatch.setattr(SearchStore, "share", 1e9)
    options = ("-o", out, *OTHERS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert invoke(*options).exit_code == 0
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    for at, after in itertools.product(range(5), (False, True)):
        for path in folder.iterdir():
            path.unlink()
        for name, content in before.items():
            (folder / name).write_bytes(content)
        counter = itertools.count()
        with monkeypatch.context() as patch:
            for owner, name in ((_outputs.Outputs, "_write_one"), (SearchStore, "remove")):
                changed = killing(getattr(owner, name), at, counter, after=after)
                patch.setattr(owner, name, changed)
            with contextlib.suppress(Killed):
                invoke(*options)
        replaced = (folder / SOURCE).read_bytes() != before[SOURCE]
        again = (invoke(*options, *more).exit_code for more in ((), ("--resume",)))
        assert 0 in again, (at, after)
        assert not list(folder.glob("*.search"))
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert found.keys() == expected.keys()
        if not replaced:
            assert found[out] == expected[out]


@pytest.mark.parametrize("rewrite", ["other weights", "same size and time", "gone"])
def test_a_source_that_others_write_to_is_not_replaced(
    rewrite: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        path = folder / SOURCE
        stat = path.stat()
        if rewrite == "gone":
            path.rename(folder / "moved.safetensors")
            return
        save_checkpoint(path, mlp_state(5))
        if rewrite == "same size and time":
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    write = _outputs.Outputs.write

    def changed(*args: object, **options: object) -> object:
        if not (folder / "r.json").exists():
            change()
        return write(*args, **options)

    monkeypatch.setattr(_outputs.Outputs, "write", changed)
    result = invoke("-o", SOURCE, *OTHERS)
    assert result.exit_code == 1, result.output
    assert "was written to by somebody else" in result.stderr
    assert (folder / "p.safetensors").exists()
    assert (folder / "r.json").exists()
    assert not list(folder.glob("*.search"))
    if rewrite != "gone":
        assert (
            load_checkpoint(folder / SOURCE).tensors["0.weight"] == mlp_state(5)["0.weight"]
        ).all()


def test_all_failures_are_said_and_the_rest_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: IoError(No space left on device)")

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with monkeypatch.context() as patch:
        patch.setattr(_permutation_file, "save_file", full)
        patch.setattr(_outputs, "save_checkpoint", broken)
        result = invoke("-o", "new.safetensors", *OTHERS)
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 1
    for text in ("cannot write p.safetensors", "cannot write new.safetensors", "No space left"):
        assert text in result.stderr
    assert (folder / "r.json").exists()
    assert (folder / "new.safetensors.search").exists()
    assert invoke("-o", "new.safetensors", *OTHERS, "--resume").exit_code == 0


def test_an_in_place_checkpoint_waits_for_the_other_outputs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / SOURCE).read_bytes()

    def full(*args: object, **options: object) -> None:
        raise SafetensorError("IoError(No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(_permutation_file, "save_file", full)
        result = invoke("-o", SOURCE, *OTHERS)
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert (folder / SOURCE).read_bytes() == before
    assert invoke("-o", SOURCE, *OTHERS, "--resume").exit_code == 0
    assert (folder / SOURCE).read_bytes() != before
    assert not list(folder.glob("*.search"))


def test_a_checkpoint_that_cannot_be_replaced_leaves_the_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_outputs, "save_checkpoint", full)
        result = invoke("-o", SOURCE)
    assert result.exit_code == 1
    assert f"cannot write {SOURCE}" in result.stderr
    assert (folder / f"{SOURCE}.search").exists()
    assert invoke("-o", SOURCE, "--resume").exit_code == 0


def test_one_error_for_all() -> None:
    one, other = InputError("a"), InputError("b")
    assert _outputs.joined([]) is None
    assert _outputs.joined([one]) is one
    both = _outputs.joined([one, other])
    assert isinstance(both, InputError)
    assert "a" in str(both)
    assert "b" in str(both)
    assert not isinstance(_outputs.joined([one, GpuAlignError("c")]), InputError)
