"""Files appear whole or not at all, and what was read does not change with its file."""

import os
from pathlib import Path

import pytest
import torch
from checkpoint_files import assert_same, some_tensors, write_sharded
from children import exit_code_of

from gpu_align._checkpoint import load_checkpoint, save_checkpoint
from gpu_align._checkpoint._atomic import atomic_folder, atomic_write
from gpu_align._checkpoint._types import FILE_SUFFIXES
from gpu_align._errors import CheckpointError, InputError

LATER_CHANGES = {
    "cut_short": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0),
    "overwritten": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "removed": lambda path: path.unlink(),
}


def change_what_is_held(path, change):
    tensors = {name: torch.randn(300, 300) for name in "ab"}
    save_checkpoint(path, tensors)
    held = load_checkpoint(path).tensors
    change(path)
    assert_same(held, tensors)


@pytest.mark.parametrize("change", LATER_CHANGES.values(), ids=LATER_CHANGES)
@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
def test_a_file_that_changes_later_changes_nothing(work, suffix, change):
    """In a process of its own, for a mapped file that is cut short ends it."""
    assert exit_code_of(change_what_is_held, work / f"x{suffix}", change) == 0


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
def test_a_file_that_is_written_to_while_it_is_read_is_refused(work, suffix, monkeypatch):
    path = work / f"x{suffix}"
    save_checkpoint(path, {"a": torch.randn(30, 30)})
    owner, name = (torch, "empty" if suffix == ".safetensors" else "load")
    real = getattr(owner, name)

    def slow(*arguments, **options):
        found = real(*arguments, **options)
        os.utime(path, ns=(0, 0))
        return found

    monkeypatch.setattr(owner, name, slow)
    with pytest.raises(CheckpointError, match="written to while it was read"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(28, "No space left on device"), CheckpointError),
        (RuntimeError("unexpected pos 704 vs 598"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["disk full", "torch's writer", "interrupt"],
)
def test_failure_leaves_the_old_file(work, monkeypatch, failure, raised):
    path = work / "x.pt"
    save_checkpoint(path, some_tensors())
    before = path.read_bytes()

    def fail(content, file, **options):
        file.write(b"half")
        raise failure

    monkeypatch.setattr("gpu_align._checkpoint._torch_file.torch.save", fail)
    with pytest.raises(raised) as caught:
        save_checkpoint(path, some_tensors())
    assert raised is KeyboardInterrupt or "x.pt: " in str(caught.value)
    assert path.read_bytes() == before
    assert list(work.iterdir()) == [path]


@pytest.mark.parametrize("raised", [CheckpointError, KeyboardInterrupt])
def test_failure_leaves_no_shards(work, monkeypatch, raised):
    write_sharded(work / "in")
    loaded = load_checkpoint(work / "in")
    calls = []

    def fail_at_second(path, tensors, metadata):
        path.write_bytes(b"half")
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left") if raised is CheckpointError else raised

    monkeypatch.setattr("gpu_align._checkpoint._shards.write_safetensors", fail_at_second)
    with pytest.raises(raised):
        save_checkpoint(work / "out", loaded.tensors, like=loaded)
    assert [path.name for path in work.iterdir()] == ["in"]


def test_atomic_write_replaces_at_the_end(work):
    path = work / "report.json"
    with atomic_write(path) as temporary:
        assert temporary.parent == work
        temporary.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    with pytest.raises(InputError, match="does not exist"), atomic_write(work / "no" / "x"):
        pytest.fail("the body must not run")
    with pytest.raises(UnicodeEncodeError), atomic_write(path) as temporary:
        temporary.write_text("half \ud800", encoding="utf-8")
    assert path.read_text() == "{}"
    assert list(work.iterdir()) == [path]


def test_new_files_and_folders_have_usual_permissions(work):
    (work / "plain").write_text("x")
    (work / "folder").mkdir()
    with atomic_write(work / "file") as temporary:
        temporary.write_text("x")
    with atomic_folder(work / "made") as temporary:
        (temporary / "x").write_text("x")
    assert (work / "file").stat().st_mode == (work / "plain").stat().st_mode
    assert (work / "made").stat().st_mode == (work / "folder").stat().st_mode


def test_link_is_written_through(work):
    (work / "folder").mkdir()
    (work / "folder" / "blob").write_text("old")
    (work / "folder" / "next").symlink_to("blob")
    (work / "x").symlink_to(Path("folder") / "next")
    with atomic_write(work / "x") as temporary:
        assert temporary.parent == work / "folder"
        temporary.write_text("new")
    assert (work / "x").is_symlink()
    assert (work / "folder" / "next").is_symlink()
    assert (work / "folder" / "blob").read_text() == "new"


def test_link_to_nothing_makes_what_it_points_to(work):
    (work / "x").symlink_to(work / "y.pt")
    with atomic_write(work / "x") as temporary:
        temporary.write_text("new")
    assert (work / "y.pt").read_text() == "new"
    (work / "loop").symlink_to(work / "loop")
    (work / "lost").symlink_to(work / "no" / "z")
    for name in ("loop", "lost"):
        with pytest.raises(InputError, match=f"cannot write .*{name}"), atomic_write(work / name):
            pytest.fail("the body must not run")


def test_folder_behind_a_link_gets_the_shards(work):
    write_sharded(work / "in")
    (work / "real").mkdir()
    (work / "link").symlink_to(work / "real")
    loaded = load_checkpoint(work / "in")
    save_checkpoint(work / "link", loaded.tensors, like=loaded)
    assert (work / "link").is_symlink()
    assert_same(load_checkpoint(work / "real").tensors, loaded.tensors)
