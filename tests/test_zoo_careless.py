"""Zoos as careless users have them: what is refused leaves nothing behind, and says why."""

import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from zoos import files_of, planted, state, write_folder

from gpu_align import GpuAlignError, InputError, align_zoo, inspect_zoo
from gpu_align._cli._main import app

REFERENCE = state(0, 5, 6, 2)


def zoo(folder: Path, count: int = 6) -> Path:
    return write_folder(folder, planted(count, REFERENCE)[1])


def command(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["zoo", *map(str, arguments)])


@pytest.mark.parametrize("case", ["empty", "nowhere", "archive", "networks", "deep"])
def test_what_is_refused_leaves_no_output(tmp_path: Path, case: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tar.gz").write_bytes(b"no archive")
    sources: dict[str, Any] = {"networks": [], "archive": tmp_path / "broken.tar.gz"}
    source = sources.get(case, tmp_path / ("empty" if case == "deep" else case))
    out = tmp_path / ("a/b/out" if case == "deep" else "out")
    with pytest.raises(InputError):
        align_zoo(source, REFERENCE, out, workers=1)
    assert not out.exists()


def test_a_model_that_cannot_be_made_leaves_no_output(tmp_path: Path) -> None:
    options = ("--model", "no_such_module:make", "--input-shape", 4, "--workers", 1)
    found = command("align", zoo(tmp_path / "zoo"), "-o", tmp_path / "out", *options)
    assert found.exit_code == 2
    assert "no_such_module" in found.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_for_the_output_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="no such file or folder"):
        align_zoo(tmp_path / "nowhere", REFERENCE, tmp_path / "out", workers=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    source = zoo(tmp_path / "zoo")
    before = files_of(source)
    (tmp_path / "file").write_text("kept")
    for out, reason in (
        (source, "the source itself"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "cannot write"),
    ):
        with pytest.raises(InputError, match=reason):
            align_zoo(source, REFERENCE, out, workers=1)
    assert files_of(source) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_an_output_inside_the_source_is_no_part_of_it(tmp_path: Path) -> None:
    source = zoo(tmp_path / "zoo")
    first = align_zoo(source, REFERENCE, source / "first", workers=1)
    second = align_zoo(source, REFERENCE, source / "second", workers=1, layout="same")
    third = align_zoo(source, REFERENCE, tmp_path / "third", workers=1)
    assert [len(found) for found in (first, second, third)] == [6, 6, 6]
    assert inspect_zoo(source).models == 6
    assert inspect_zoo(source / "first").models == 6


def test_only_what_is_documented_is_written(tmp_path: Path) -> None:
    source = zoo(tmp_path / "zoo")
    (source / "bad.pt").write_bytes(b"nothing")
    found = align_zoo(source, REFERENCE, tmp_path / "out", workers=1)
    assert found.failed == {"damaged": 1}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"index.parquet", "plan.json", "shards", "summary.json", "targets"}


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("targets/50p.spec.json", "target of 50p cannot be read"),
        ("targets/50p.safetensors", "target of 50p cannot be read"),
        ("shards/000000/rows.parquet", "remove the folder"),
        ("shards/000000/manifest.json", "remove the folder"),
        ("plan.json", "not empty"),
    ],
)
def test_a_file_that_was_lost_is_named(tmp_path: Path, lost: str, reason: str) -> None:
    source = zoo(tmp_path / "zoo")
    align_zoo(source, REFERENCE, tmp_path / "out", workers=1)
    (tmp_path / "out" / lost).unlink()
    with pytest.raises(InputError, match=reason):
        align_zoo(source, REFERENCE, tmp_path / "out", workers=1, resume=True)


def test_a_shard_that_was_removed_is_done_again(tmp_path: Path) -> None:
    source = zoo(tmp_path / "zoo")
    align_zoo(source, REFERENCE, tmp_path / "out", workers=1, shard=2)
    whole = files_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "shards" / "000001")
    align_zoo(source, REFERENCE, tmp_path / "out", workers=1, shard=2, resume=True)
    assert files_of(tmp_path / "out") == whole


@pytest.mark.parametrize("room", [300, 3000, 6000])
def test_a_disk_that_is_full_is_said_and_resumed_from(tmp_path: Path, room: int) -> None:
    source = zoo(tmp_path / "zoo", 40)
    align_zoo(source, REFERENCE, tmp_path / "whole", workers=1, shard=20)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))
    try:
        with pytest.raises(GpuAlignError, match="File too large; check free space"):
            align_zoo(source, REFERENCE, tmp_path / "out", workers=1, shard=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    align_zoo(source, REFERENCE, tmp_path / "out", workers=1, shard=20, resume=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_zoo_of_which_nothing_can_be_aligned_fails(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "bad.pt").write_bytes(b"nothing")
    found = command("align", tmp_path / "zoo", "-o", tmp_path / "out", "--workers", 1)
    assert found.exit_code == 1
    assert "1 of 1 models could not be aligned" in found.stderr
    assert "damaged, for example: bad.pt: cannot read" in found.stderr


def test_a_zoo_without_known_symmetries_is_looked_at(tmp_path: Path) -> None:
    odd = {f"odd.{name}": tensor for name, tensor in REFERENCE.items()} | {
        "odd": REFERENCE["0.bias"]
    }
    source = write_folder(tmp_path / "zoo", [odd, odd])
    (source / "bad.pt").write_bytes(b"nothing")
    (source / "notes.txt").write_text("x")
    found = command("inspect", source)
    assert found.exit_code == 0
    assert "3 models" in found.stdout
    assert "odd.0.weight [6, 5] float32" in found.stdout
    assert "symmetries" in found.stdout
    row = next(line for line in found.stdout.splitlines() if line.strip().startswith("56p"))
    assert row.split() == ["56p", "2", "56", "224", "0.000448"]
    assert "1 other files, such as notes.txt" in found.stdout
    assert "bad.pt is damaged" in found.stderr


def test_a_ray_that_does_not_answer_is_said_before_anything_is_made(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    source = zoo(tmp_path / "zoo")
    for address in ("nonsense", "127.0.0.1:9"):
        with pytest.raises(GpuAlignError, match=f"no Ray answers at {address}"):
            align_zoo(source, REFERENCE, tmp_path / "out", engine="ray", address=address)
    assert not (tmp_path / "out").exists()
