"""Files made to hurt, pipes and devices, what dead runs leave behind, and permission bits."""

import json
import multiprocessing
import os
import signal
import struct
import threading
import time

import pytest
import safetensors
import safetensors.torch
import torch
from checkpoint_files import (
    assert_same,
    header_of,
    make_torch,
    some_tensors,
    write_raw,
    write_sharded,
)
from children import WAIT, exit_code_of, forked
from typer.testing import CliRunner

from gpu_align._checkpoint import atomic_write, load_checkpoint, save_checkpoint
from gpu_align._checkpoint._atomic import atomic_folder
from gpu_align._cli._main import app
from gpu_align._errors import CheckpointError, InputError

INDEX = "model.safetensors.index.json"
DIGITS = "9" * 5000

BAD_JSON = {
    "deep list": '{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "digits": '{"metadata": {"total_size": ' + DIGITS + '}, "weight_map": {"a": "x"}}',
    "negative digits": '{"weight_map": -' + DIGITS + "}",
    "doubles": '{"weight_map": {"a": "x", "a": "y"}}',
    "surrogates": '{"weight_map": {"a": "\\ud800.safetensors"}}',
    "long name": json.dumps({"weight_map": {"a": "x" * 100_000}}),
    "dots": '{"weight_map": {"a": ".."}}',
    "itself": json.dumps({"weight_map": {"a": INDEX}}),
    "no text": b"\xff\xfe{\0",
    "cut": '{"weight_map": {"a"',
    "infinite": '{"weight_map": Infinity}',
    "huge list": '{"weight_map": [' + "1," * 200_000 + "1]}",
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_hostile_indexes_are_refused(work, content):
    data = content if isinstance(content, bytes) else content.encode()
    (work / INDEX).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"cannot read .*{INDEX}|cannot read .*x: "):
        load_checkpoint(work / INDEX)


def test_huge_sizes_in_an_index_are_kept(work):
    tensors = write_sharded(work / "in")
    index = work / "in" / INDEX
    document = json.loads(index.read_text())
    index.write_text(json.dumps(document | {"metadata": {"total_size": 10**30}}))
    loaded = load_checkpoint(work / "in")
    save_checkpoint(work / "out", loaded.tensors, like=loaded)
    assert_same(load_checkpoint(work / "out").tensors, tensors)


def entry(shape=(1,), dtype="F32", offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD_HEADERS = {
    "10^30 units": {"w": entry([10**30])},
    "10^30 and none": {"w": entry([10**30, 0], offsets=(0, 0)), "v": entry()},
    "overflow": {"w": entry([2**40, 2**40], offsets=(0, 4))},
    "large and none": {"w": entry([2**62, 2**62, 0], offsets=(0, 0)), "v": entry()},
    "negative": {"w": entry([-1])},
    "a fraction": {"w": entry([1.5])},
    "a truth": {"w": entry([True])},
    "offsets beyond": {"w": entry(offsets=(0, 10**30))},
    "offsets backwards": {"w": entry(offsets=(4, 0))},
    "negative offset": {"w": entry(offsets=(-4, 0))},
    "three offsets": {"w": entry(offsets=(0, 4, 8))},
    "overlap": {"w": entry(), "v": entry()},
    "gap": {"w": entry(offsets=(0, 4)), "v": entry(offsets=(8, 12))},
    "data left over": {"w": entry([0], offsets=(0, 0))},
    "unknown dtype": {"w": entry(dtype="F128")},
    "list as dtype": {"w": entry(dtype=["F32"])},
    "no entry": {"w": 3},
    "entry without shape": {"w": {"dtype": "F32", "data_offsets": [0, 4]}},
    "metadata of numbers": {"__metadata__": {"a": 1}, "w": entry()},
    "metadata a text": {"__metadata__": "x", "w": entry()},
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_hostile_headers_are_refused(work, header):
    write_raw(work / "x.safetensors", header, bytes(4))
    with pytest.raises(
        CheckpointError, match=r"expected a whole safetensors file.*copy or download"
    ):
        load_checkpoint(work / "x.safetensors")
    with pytest.raises((safetensors.SafetensorError, OverflowError, TypeError)):
        safetensors.torch.load_file(work / "x.safetensors")


def test_what_the_library_passes_over_is_passed_over(work):
    header = {"w": entry([1] * 100) | {"more": 1}}
    write_raw(work / "x.safetensors", header, bytes(4))
    loaded = load_checkpoint(work / "x.safetensors").tensors
    assert_same(loaded, safetensors.torch.load_file(work / "x.safetensors"))


@pytest.mark.parametrize(
    "text",
    [
        '{"w": {"dtype": "F32", "shape": [' + "1," * 100_000 + '1], "data_offsets": [0, 4]}}',
        '{"w":' * 10_000,
        '{"w": {"dtype": "F32", "shape": [' + DIGITS + '], "data_offsets": [0, 4]}}',
        '{"w": {}, "w": {}}',
        "[1]",
        '{"\xff',
    ],
    ids=["axes", "deep", "digits", "doubles", "list", "no UTF-8"],
)
def test_hostile_header_texts_are_refused(work, text):
    data = text.encode("latin-1")
    (work / "x.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + bytes(4))
    with pytest.raises(CheckpointError, match=r"safetensors file.*copy or download"):
        load_checkpoint(work / "x.safetensors")


@pytest.mark.parametrize("length", [0, 9, 2**20, 2**39, 2**63])
def test_header_longer_than_the_file_is_refused(work, length):
    (work / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError):
        load_checkpoint(work / "x.safetensors")


def test_every_cut_is_refused(work):
    save_checkpoint(work / "x.safetensors", {"w": torch.ones(3), "v": torch.ones(2)})
    data = (work / "x.safetensors").read_bytes()
    for length in range(len(data)):
        (work / "cut").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(work / "cut")


def test_the_library_reads_the_same(work):
    tensors = {**some_tensors(), "b": torch.tensor([True, False]), "é": torch.ones(0, 3)}
    save_checkpoint(work / "x.safetensors", tensors)
    with safetensors.safe_open(work / "x.safetensors", "pt") as file:
        names = list(file.keys())
        expected = {name: file.get_tensor(name) for name in names}
    loaded = load_checkpoint(work / "x.safetensors").tensors
    assert list(loaded) == names
    assert_same(loaded, expected)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in loaded.values())


def read_while_it_is_cut(path):
    save_checkpoint(path, {f"w{n}": torch.zeros(250_000) for n in range(32)})
    size = os.path.getsize(path)
    over = threading.Event()

    def spoil():
        while not over.is_set():
            os.truncate(path, 4096)
            os.truncate(path, size)

    thread = threading.Thread(target=spoil)
    thread.start()
    refused = 0
    try:
        for _ in range(20):
            try:
                load_checkpoint(path)
            except CheckpointError:
                refused += 1
    finally:
        over.set()
        thread.join()
    assert refused


def test_a_file_that_is_cut_short_while_it_is_read_does_not_end_the_process(work):
    assert exit_code_of(read_while_it_is_cut, work / "x.safetensors") == 0


@pytest.fixture
def pipe(work):
    os.mkfifo(work / "pipe.pt")
    return work / "pipe.pt"


@pytest.mark.parametrize("path", ["pipe.pt", "/dev/null", "/dev/zero", "link", "folder", INDEX])
def test_pipes_and_devices_are_not_read(work, pipe, path):
    (work / "link").symlink_to(pipe)
    (work / "folder").mkdir()
    os.mkfifo(work / "folder" / "model.safetensors")
    os.mkfifo(work / INDEX)
    with pytest.raises(
        CheckpointError, match=r"got a pipe or a device; copy|got none; name the file"
    ):
        load_checkpoint(work / path)


def test_a_shard_that_is_a_pipe_is_not_read(work):
    write_sharded(work / "in")
    (work / "in" / "model-1.safetensors").unlink()
    os.mkfifo(work / "in" / "model-1.safetensors")
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing"):
        load_checkpoint(work / "in")


@pytest.mark.parametrize("path", ["pipe.pt", "/dev/null", "link", "socket"])
def test_pipes_and_devices_are_not_replaced(work, pipe, path):
    (work / "link").symlink_to(pipe)
    os.mknod(work / "socket", 0o140600)
    with pytest.raises(InputError, match="it is a pipe or a device"), atomic_write(work / path):
        pytest.fail("the body must not run")
    assert pipe.is_fifo()


@pytest.mark.parametrize("command", ["align", "apply", "inspect"])
@pytest.mark.parametrize("role", ["source", "out", "report"])
def test_commands_refuse_pipes(work, pipe, monkeypatch, command, role):
    monkeypatch.chdir(work)
    save_checkpoint("a.pt", {"0.weight": torch.ones(3, 2), "1.weight": torch.ones(2, 3)})
    source = "pipe.pt" if role == "source" else "a.pt"
    out = "pipe.pt" if role == "out" else "out.pt"
    os.mkfifo("pipe.html")
    report = ["--report", "pipe.html"] if role == "report" else []
    arguments = {
        "align": ["align", source, "a.pt", "-o", out, "--search", "descent", *report],
        "apply": ["apply", source, "p.safetensors", "-o", out],
        "inspect": ["inspect", source, *report],
    }[command]
    if (command, role) in {("apply", "report"), ("inspect", "out")}:
        return
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert "a pipe or a device" in done.output


LONG = "n" * 252 + ".pt"
SHORT = {"0.weight": torch.eye(3, 2), "1.weight": torch.ones(2, 3)}


@pytest.mark.parametrize("name", [LONG, "é" * 126 + ".pt", "x" * 249 + ".pt"])
def test_names_of_the_greatest_length_are_written(work, monkeypatch, name):
    monkeypatch.chdir(work)
    save_checkpoint(name, SHORT)
    save_checkpoint("a.pt", SHORT)
    arguments = ["align", name, "a.pt", "-o", name, "--search", "descent"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert_same(load_checkpoint(name).tensors, SHORT)
    assert {path.name for path in work.iterdir()} == {name, "a.pt"}


@pytest.mark.parametrize("out", ["/", "n" * 253 + ".pt", "/dev", ".", ".."])
def test_outputs_that_cannot_be_are_refused_at_once(work, monkeypatch, out):
    monkeypatch.chdir(work)
    save_checkpoint("a.pt", SHORT)
    done = CliRunner().invoke(app, ["align", "a.pt", "a.pt", "-o", out, "--search", "descent"])
    assert done.exit_code == 2, done.output
    assert "cannot write" in done.output


def write_and_die(path):
    with atomic_write(path), atomic_folder(path) as folder:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def write_and_wait(path, begun):
    with atomic_write(path):
        begun.set()
        time.sleep(600)


def left_over(folder):
    return sorted(path.name for path in folder.glob(".gpu-align-*"))


def test_what_dead_runs_left_is_removed(work):
    assert exit_code_of(write_and_die, work / "x") == -signal.SIGKILL
    assert len(left_over(work)) == 2
    with atomic_write(work / "other"):
        assert len(left_over(work)) == 1
    assert left_over(work) == []


def test_what_living_runs_write_is_kept(work):
    begun = multiprocessing.get_context("fork").Event()
    with forked(write_and_wait, work / "x", begun):
        assert begun.wait(WAIT)
        [name] = left_over(work)
        with atomic_write(work / "y"), atomic_folder(work / "z"):
            assert name in left_over(work)
        assert left_over(work) == [name]
    with atomic_write(work / "y"):
        assert name not in left_over(work)


def test_what_others_may_own_is_kept(tmp_path):
    strange = [
        ".gpu-align-0123456789abcdef.tmp",
        f".gpu-align-00000000-{2**22 + 7}-0123456789abcdef.tmp",
        ".gpu-align-x.tmp",
    ]
    for name in strange:
        (tmp_path / name).write_text("x")
    with atomic_write(tmp_path / "y"):
        pass
    assert left_over(tmp_path) == sorted(strange)


def test_threads_do_not_remove_each_others_files(work):
    failures = []

    def write(number):
        try:
            for _ in range(20):
                with atomic_write(work / f"{number}") as temporary:
                    temporary.write_text("x")
                    time.sleep(0.001)
        except InputError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_new_files_get_the_bits_of_the_source(work, mode, suffix):
    save_checkpoint(work / f"in{suffix}", some_tensors())
    (work / f"in{suffix}").chmod(mode)
    loaded = load_checkpoint(work / f"in{suffix}")
    (work / "old.pt").write_text("x")
    (work / "old.pt").chmod(0o604)
    for name in ("out.pt", "out.safetensors", "old.pt"):
        save_checkpoint(work / name, loaded.tensors, like=loaded)
        wanted = 0o604 if name == "old.pt" else mode
        assert (work / name).stat().st_mode & 0o777 == wanted


def test_new_shards_get_the_bits_of_the_source(work):
    write_sharded(work / "in")
    for path in (work / "in").iterdir():
        path.chmod(0o640)
    loaded = load_checkpoint(work / "in")
    save_checkpoint(work / "out", loaded.tensors, like=loaded)
    assert {path.stat().st_mode & 0o777 for path in (work / "out").iterdir()} == {0o640}


def test_storages_of_any_size_are_refused(work):
    make_torch(work / "in.pt", {"w": torch.ones(1)}, _use_new_zipfile_serialization=False)
    data = (work / "in.pt").read_bytes()
    place = data.index(b"cpuq")
    for number in (
        b"\x8a\x0d" + b"\xff" * 12 + b"\x7f",
        b"J\xff\xff\xff\x7f",
        b"J\xff\xff\xff\xff",
    ):
        at = data.index(b"K\x01N", place)
        (work / "x.pt").write_bytes(data[:at] + number + data[at + 2 :])
        with pytest.raises(CheckpointError, match="cannot read"):
            load_checkpoint(work / "x.pt")


def test_header_keeps_its_metadata(work):
    save_checkpoint(work / "x.safetensors", some_tensors())
    assert header_of(work / "x.safetensors")["__metadata__"] == {"format": "pt"}
