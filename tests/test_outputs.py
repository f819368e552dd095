"""Output files: no two in one place, and a file that cannot be replaced stays as it was."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from test_bad_input import OUT, PAIR, assert_refused, mlp_state
from typer.testing import CliRunner

from gpu_align import (
    CheckpointError,
    InputError,
    Permutation,
    align,
    chain_spec,
    load_checkpoint,
    save_checkpoint,
)
from gpu_align._cli._main import app


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two good checkpoints; we are in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for number in (0, 1):
        save_checkpoint(tmp_path / f"{number}.safetensors", mlp_state(number))
    return tmp_path


# Paths that are refused


WAYS = ("new.safetensors", "./new.safetensors", "sub/../new.safetensors", "alias.safetensors")


@pytest.mark.parametrize("way", [*WAYS, "absolute", "sub/up/./new.safetensors"])
def test_two_equal_output_paths_are_refused(way: str, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/up").symlink_to("..", target_is_directory=True)
    (folder / "alias.safetensors").symlink_to("new.safetensors")
    way = str(folder / "new.safetensors") if way == "absolute" else way
    refusal = "another output goes there too"
    assert_refused(folder, (*PAIR, *OUT, "--permutation", way), refusal)
    assert_refused(folder, (*PAIR, "-o", way, "--permutation", OUT[1]), refusal)


def shards(folder: Path) -> Path:
    """Write a sharded checkpoint of the network, two files and an index."""
    state = mlp_state(3)
    names = list(state)
    parts = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    (folder / "shards").mkdir()
    for file, members in parts.items():
        save_file({name: state[name] for name in members}, folder / "shards" / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    index = {"metadata": {}, "weight_map": weight_map}
    path = folder / "shards" / "model.safetensors.index.json"
    path.write_text(json.dumps(index), encoding="utf-8")
    return folder / "shards"


def test_no_file_of_an_input_is_overwritten(folder: Path) -> None:
    sharded = str(shards(folder))
    shard, index = f"{sharded}/a.safetensors", f"{sharded}/model.safetensors.index.json"
    message = ("would overwrite an input", "choose another path")
    assert_refused(folder, ("align", sharded, "0.safetensors", "--permutation", shard), *message)
    assert_refused(folder, ("align", sharded, "0.safetensors", "--json-file", index), *message)
    assert_refused(folder, ("align", "1.safetensors", sharded, "-o", shard), *message)
    spec = chain_spec(mlp_state(0))
    (folder / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    both = ("--spec", "spec.json", "--json-file", "spec.json")
    assert_refused(folder, (*PAIR, *both), *message)
    Permutation.identity(spec).save(folder / "p.safetensors")
    assert_refused(folder, ("apply", sharded, "p.safetensors", "-o", shard), *message)


@pytest.mark.parametrize("way", ["typo/../", "./typo/../", "other/sub/typo/../../../", "link/../"])
def test_no_way_to_an_input_leads_around_the_check(way: str, folder: Path) -> None:
    (folder / "other/sub").mkdir(parents=True)
    (folder / "link").symlink_to("other", target_is_directory=True)
    for name in ("spec.json", "p.safetensors"):
        (folder / name).touch()
    (folder / "spec.json").write_text(chain_spec(mlp_state(0)).to_json(), encoding="utf-8")
    Permutation.identity(chain_spec(mlp_state(0))).save(folder / "p.safetensors")
    refused = ("does not exist",) if "typo" in way else ("would overwrite an input",)
    for arguments in (
        (*PAIR, "-o", f"{way}0.safetensors"),
        (*PAIR, "--permutation", f"{way}1.safetensors"),
        (*PAIR, "--spec", "spec.json", "--json-file", f"{way}spec.json"),
        ("apply", "1.safetensors", "p.safetensors", "-o", f"{way}p.safetensors"),
        ("inspect", "1.safetensors", "--spec", "spec.json", "--save-spec", f"{way}spec.json"),
    ):
        assert_refused(folder, arguments, *refused)


def test_a_name_behind_a_link_is_that_of_the_system(folder: Path) -> None:
    (folder / "other/sub").mkdir(parents=True)
    (folder / "link").symlink_to("other/sub", target_is_directory=True)
    before = (folder / "0.safetensors").read_bytes()
    result = CliRunner().invoke(app, (*PAIR, "-o", "link/../0.safetensors"))
    assert result.exit_code == 0, result.output
    assert (folder / "other/0.safetensors").exists()
    assert (folder / "0.safetensors").read_bytes() == before


def test_an_index_is_not_overwritten_by_a_spec(folder: Path) -> None:
    sharded = shards(folder)
    index = f"{sharded}/model.safetensors.index.json"
    arguments = ("inspect", str(sharded), "--save-spec", index)
    assert_refused(folder, arguments, "would overwrite an input")


def test_the_kept_search_overwrites_no_input(folder: Path) -> None:
    spec = folder / "new.safetensors.search"
    spec.write_text(chain_spec(mlp_state(0)).to_json(), encoding="utf-8")
    arguments = (*PAIR, *OUT, "--resume", "--spec", str(spec))
    assert_refused(folder, arguments, "would overwrite an input", "new.safetensors.search")


def test_outputs_do_not_overwrite_each_other(folder: Path) -> None:
    sharded = str(shards(folder))
    inside = ("align", sharded, "0.safetensors", "-o", "new", "--permutation", "new/a.safetensors")
    (folder / "new").mkdir()
    assert_refused(folder, inside, "another output goes there too")


# Files that cannot be replaced


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
