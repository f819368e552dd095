"""Output files: no two in one place, and a file that cannot be replaced stays as it was."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_bad_input import OUT, PAIR, assert_refused, mlp_state, shards

from gpu_align import (
    CheckpointError,
    InputError,
    Permutation,
    align,
    chain_spec,
    load_checkpoint,
    save_checkpoint,
)

WAYS = ("new.safetensors", "./new.safetensors", "sub/../new.safetensors", "alias.safetensors")


@pytest.mark.parametrize("way", [*WAYS, "absolute", "sub/up/new.safetensors"])
def test_two_equal_output_paths_are_refused(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        save_checkpoint(tmp_path / f"{number}.safetensors", mlp_state(number))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/up").symlink_to("..", target_is_directory=True)
    (tmp_path / "alias.safetensors").symlink_to("new.safetensors")
    way = str(tmp_path / "new.safetensors") if way == "absolute" else way
    refusal = "another output goes there too"
    assert_refused(tmp_path, (*PAIR, *OUT, "--permutation", way), refusal)
    assert_refused(tmp_path, (*PAIR, "-o", way, "--permutation", OUT[1]), refusal)


def save_state(path: Path) -> None:
    save_checkpoint(path, mlp_state(0))


def save_permutation(path: Path) -> None:
    Permutation.identity(chain_spec(mlp_state(0))).save(path)


def save_json(path: Path) -> None:
    align(mlp_state(0), mlp_state(0)).save_json(path)


def refuse(*paths: object) -> None:
    """Stand in for `os.replace`."""
    raise PermissionError(1, "Operation not permitted")


WRITERS = {
    "x.safetensors": save_state,
    "x.pt": save_state,
    "permutation.safetensors": save_permutation,
    "result.json": save_json,
}


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
def test_a_file_that_cannot_be_replaced_keeps_its_bytes(
    name: str, write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises((InputError, CheckpointError), match="Operation not permitted"):
            write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write(path)
    assert path.read_bytes() != b"old"


def test_shards_that_cannot_be_put_in_their_place_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(shards(tmp_path))
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CheckpointError, match="not permitted"):
        save_checkpoint(tmp_path / "new", loaded.tensors, like=loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
