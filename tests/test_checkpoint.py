"""Checkpoint out = checkpoint in: every format, dtype, tie, shard and wrapper, and bad input."""

import copy
import dataclasses
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_align._checkpoint import load_checkpoint, save_checkpoint
from gpu_align._checkpoint._atomic import atomic_folder, atomic_write
from gpu_align._checkpoint._types import FILE_SUFFIXES
from gpu_align._errors import CheckpointError, InputError

TORCH_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]
SUFFIXES = [".safetensors", ".pt", ".pth", ".bin", ".ckpt"]


@pytest.fixture
def work(tmp_path):
    """Return a folder, and check that no temporary file is left in it."""
    yield tmp_path
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".gpu-align-")] == []


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(got, expected):
    assert sorted(got) == sorted(expected)
    for name, tensor in expected.items():
        assert got[name].shape == tensor.shape, name
        assert got[name].dtype == tensor.dtype, name
        assert bits(got[name]) == bits(tensor), name


def from_bits(shape, dtype, seed=0):
    """Make a tensor of random bytes, so NaNs with payloads and denormals come up."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(high, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def some_tensors():
    return {
        "z.weight": from_bits((3, 4), torch.float32),
        "a.bias": from_bits((3,), torch.float16, 1),
        "steps": torch.tensor(7),
        "empty": torch.empty(0, 5),
    }


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def write_raw(path, header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_sharded(folder):
    """Write two shards with an index, and return their tensors in the index's order."""
    folder.mkdir()
    first = {"b": torch.arange(4.0), "a": torch.arange(3.0)}
    second = {"c": torch.arange(2.0)}
    safetensors.torch.save_file(first, folder / "model-1.safetensors", {"format": "pt"})
    safetensors.torch.save_file(second, folder / "model-2.safetensors", {"format": "pt"})
    one, two = "model-1.safetensors", "model-2.safetensors"
    index = {"metadata": {"total_size": 36}, "weight_map": {"c": two, "a": one, "b": one}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=3))
    return {name: (first | second)[name] for name in "cab"}


class Code:
    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_keeps_its_bits(work, suffix, dtype):
    tensors = {"m": from_bits((5, 3), dtype), "v": from_bits((2,), dtype, 1)}
    save_checkpoint(work / f"x{suffix}", tensors)
    loaded = load_checkpoint(work / f"x{suffix}")
    assert_same(loaded.tensors, tensors)
    save_checkpoint(work / f"y{suffix}", loaded.tensors, like=loaded)
    assert (work / f"x{suffix}").read_bytes() == (work / f"y{suffix}").read_bytes()


@pytest.mark.parametrize("source", [".safetensors", ".pt"])
@pytest.mark.parametrize("target", [".safetensors", ".pt"])
def test_conversion_keeps_names_order_and_bits(work, source, target):
    save_checkpoint(work / f"in{source}", some_tensors())
    loaded = load_checkpoint(work / f"in{source}")
    shuffled = dict(reversed(loaded.tensors.items()))
    save_checkpoint(work / f"out{target}", shuffled, like=loaded)
    assert_same(load_checkpoint(work / f"out{target}").tensors, some_tensors())


@given(
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
            lambda name: name != "__metadata__"
        ),
        st.lists(st.integers(0, 4), max_size=3),
        min_size=1,
        max_size=6,
    ),
    dtype=st.sampled_from([d for d in TORCH_DTYPES if d != torch.float4_e2m1fn_x2]),
    suffix=st.sampled_from([".safetensors", ".pt"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_any_names_and_shapes_round_trip(tmp_path_factory, shapes, dtype, suffix, seed):
    work = tmp_path_factory.mktemp("any")
    tensors = {name: from_bits(tuple(shape), dtype, seed) for name, shape in shapes.items()}
    save_checkpoint(work / f"x{suffix}", tensors)
    assert_same(load_checkpoint(work / f"x{suffix}").tensors, tensors)
    if suffix == ".safetensors":
        official = safetensors.torch.load_file(work / f"x{suffix}")
        assert_same({name: official[name] for name in tensors}, tensors)


def test_file_of_the_library_comes_back_with_its_metadata(work):
    path = work / "in.safetensors"
    metadata = {"format": "pt", "note": "ü\n", "step": "3", "x": ""}
    safetensors.torch.save_file(some_tensors(), path, metadata)
    loaded = load_checkpoint(path)
    assert loaded.metadata == metadata
    save_checkpoint(work / "out.safetensors", loaded.tensors, like=loaded)
    written = load_checkpoint(work / "out.safetensors")
    assert written.metadata == metadata
    assert_same(written.tensors, loaded.tensors)


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}], ids=str)
def test_unusual_order_and_metadata_come_back(work, metadata):
    header = {} if metadata is None else {"__metadata__": metadata}
    header["zz"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    header["aa"] = {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}
    write_raw(work / "in.safetensors", header, b"\x01abcd")
    loaded = load_checkpoint(work / "in.safetensors")
    assert set(loaded.tensors) == {"zz", "aa"}
    assert loaded.metadata == metadata
    save_checkpoint(work / "out.safetensors", loaded.tensors, like=loaded)
    written = load_checkpoint(work / "out.safetensors")
    assert written.metadata == loaded.metadata
    assert_same(written.tensors, loaded.tensors)


def test_header_that_starts_like_a_zip_is_read(work):
    # A header of 0x4B50 bytes makes the file start with "PK".
    save_checkpoint(work / "x.safetensors", {"w": torch.ones(1)})
    header = header_of(work / "x.safetensors")
    header["__metadata__"]["pad"] = ""
    missing = 0x4B50 - len(json.dumps(header, separators=(",", ":")))
    header["__metadata__"]["pad"] = "x" * missing
    write_raw(work / "x.safetensors", header, bits(torch.ones(1)))
    assert (work / "x.safetensors").read_bytes().startswith(b"PK")
    assert_same(load_checkpoint(work / "x.safetensors").tensors, {"w": torch.ones(1)})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_views_are_written_alone_and_contiguous(work, suffix):
    big = torch.arange(1_000_000.0).reshape(1000, 1000)
    tensors = {"t": big[:3, :4].T, "row": big[5], "e": torch.ones(1).expand(4)}
    save_checkpoint(work / f"x{suffix}", tensors)
    assert (work / f"x{suffix}").stat().st_size < 20_000
    loaded = load_checkpoint(work / f"x{suffix}").tensors
    assert_same(loaded, tensors)
    assert all(tensor.is_contiguous() for tensor in loaded.values())


def test_conjugate_and_negative_views_keep_their_values(work):
    values = torch.tensor([1 + 2j, 3 - 4j])
    tensors = {"conj": values.conj(), "imag": values.conj().imag, "plain": values}
    for suffix in (".safetensors", ".pt"):
        save_checkpoint(work / f"x{suffix}", tensors)
        for name, got in load_checkpoint(work / f"x{suffix}").tensors.items():
            assert torch.equal(got, tensors[name]), name


def test_input_can_be_overwritten(work):
    path = work / "x.pt"
    save_checkpoint(path, {"w": torch.arange(9.0)})
    path.chmod(0o640)
    loaded = load_checkpoint(path)
    save_checkpoint(path, {"w": loaded.tensors["w"].flip(0)}, like=loaded)
    assert_same(load_checkpoint(path).tensors, {"w": torch.arange(9.0).flip(0)})
    assert_same(loaded.tensors, {"w": torch.arange(9.0)})
    assert path.stat().st_mode & 0o777 == 0o640


def test_checkpoint_is_read_only(work):
    save_checkpoint(work / "x.pt", some_tensors())
    loaded = load_checkpoint(work / "x.pt")
    with pytest.raises(TypeError):
        loaded.tensors["new"] = torch.ones(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.path = Path("y")


@pytest.mark.parametrize("legacy", [False, True])
def test_ties_survive_in_torch_files(work, legacy):
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"head": shared, "bias": torch.ones(2), "embed": shared, "again": shared.view(2, 3)}
    zipped = not legacy
    torch.save(state, work / "in.pt", _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(work / "in.pt")
    assert loaded.tensors["head"] is loaded.tensors["embed"] is loaded.tensors["again"]
    moved = loaded.tensors["head"].flip(0)
    # Reordered one by one, as copies: they must be tied again.
    new = {"head": moved, "bias": torch.ones(2), "embed": moved.clone(), "again": moved}
    save_checkpoint(work / "out.pt", new, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    assert written["head"].data_ptr() == written["embed"].data_ptr() == written["again"].data_ptr()
    assert_same(written, new)


def test_broken_tie_is_refused(work):
    shared = torch.arange(3.0)
    save_checkpoint(work / "in.pt", {"a": shared, "b": shared})
    loaded = load_checkpoint(work / "in.pt")
    with pytest.raises(CheckpointError, match=r'"a" and "b" are one tied tensor.*same way'):
        save_checkpoint(work / "out.pt", {"a": shared, "b": shared.flip(0)}, like=loaded)
    assert not (work / "out.pt").exists()


def test_ties_become_separate_entries_in_safetensors(work):
    shared = torch.arange(3.0)
    save_checkpoint(work / "in.pt", {"a": shared, "b": shared})
    loaded = load_checkpoint(work / "in.pt")
    save_checkpoint(work / "out.safetensors", loaded.tensors, like=loaded)
    assert_same(load_checkpoint(work / "out.safetensors").tensors, {"a": shared, "b": shared})


def test_tensors_without_elements_are_not_tied(work):
    save_checkpoint(work / "x.pt", {"a": torch.empty(0), "b": torch.empty(0)})
    loaded = load_checkpoint(work / "x.pt").tensors
    assert loaded["a"] is not loaded["b"]


def test_partly_shared_memory_is_reported(work):
    base = torch.arange(6.0)
    parts = {"one": base[1:2], "two": base[3:4]}
    torch.save({"whole": base, **parts, "alone": torch.ones(1)}, work / "x.pt")
    loaded = load_checkpoint(work / "x.pt")
    assert loaded.warnings == tuple(
        f'"whole" and "{part}" share part of their memory: they are written separately'
        for part in parts
    )
    save_checkpoint(work / "y.pt", loaded.tensors, like=loaded)
    assert load_checkpoint(work / "y.pt").warnings == ()


def test_names_dropped_by_save_model_stay_dropped(work):
    model = torch.nn.ModuleDict({"x": torch.nn.Linear(2, 2), "y": torch.nn.Linear(2, 2)})
    model["y"].weight = model["x"].weight
    path = work / "in.safetensors"
    safetensors.torch.save_model(model, str(path))
    loaded = load_checkpoint(path)
    assert loaded.metadata == {"y.weight": "x.weight"}
    assert "y.weight" not in loaded.tensors
    save_checkpoint(work / "out.safetensors", loaded.tensors, like=loaded)
    assert header_of(work / "out.safetensors") == header_of(path)
    fresh = copy.deepcopy(model)
    torch.nn.init.zeros_(fresh["x"].weight)
    safetensors.torch.load_model(fresh, work / "out.safetensors")
    assert torch.equal(fresh["y"].weight, model["x"].weight)
    with pytest.raises(CheckpointError, match=r'no place for the metadata "y\.weight".*safetens'):
        save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"], ids=["folder", "index"])
@pytest.mark.parametrize("exists", [False, True])
def test_shards_round_trip(work, name, exists):
    expected = write_sharded(work / "in")
    loaded = load_checkpoint(work / "in" / name)
    assert_same(loaded.tensors, expected)
    if exists:
        (work / "out-v1.5").mkdir()
    save_checkpoint(work / "out-v1.5" / name, loaded.tensors, like=loaded)
    names = sorted(path.name for path in (work / "in").iterdir())
    assert sorted(path.name for path in (work / "out-v1.5").iterdir()) == names
    for file in names:
        assert (work / "out-v1.5" / file).read_bytes() == (work / "in" / file).read_bytes()


def test_shards_can_be_joined(work):
    expected = write_sharded(work / "in")
    loaded = load_checkpoint(work / "in")
    for suffix in (".safetensors", ".pt"):
        save_checkpoint(work / f"x{suffix}", loaded.tensors, like=loaded)
        assert_same(load_checkpoint(work / f"x{suffix}").tensors, expected)
    assert load_checkpoint(work / "x.safetensors").metadata == {"format": "pt"}


def test_shards_with_different_metadata_are_not_joined(work):
    write_sharded(work / "in")
    tensors = {"c": torch.arange(2.0)}
    safetensors.torch.save_file(tensors, work / "in" / "model-2.safetensors", {"part": "2"})
    loaded = load_checkpoint(work / "in")
    with pytest.raises(CheckpointError, match="different metadata; choose a folder"):
        save_checkpoint(work / "x.safetensors", loaded.tensors, like=loaded)


def test_index_metadata_is_not_lost(work):
    write_sharded(work / "in")
    index = work / "in" / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    index.write_text(json.dumps(document | {"metadata": {"author": "x"}}))
    loaded = load_checkpoint(work / "in")
    with pytest.raises(CheckpointError, match=r'no place for "author".*choose a folder'):
        save_checkpoint(work / "x.safetensors", loaded.tensors, like=loaded)


def test_folder_with_one_file_is_read(work):
    save_checkpoint(work / "x.safetensors", some_tensors())
    (work / "config.json").write_text("{}")
    assert_same(load_checkpoint(work).tensors, some_tensors())


def trained_module():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "weights"])
def test_wrapper_is_kept(work, key):
    module, optimizer = trained_module()
    saved = {
        "epoch": 3,
        key: module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": torch.tensor(0.5),
        "ema": {"w": torch.ones(2)},
        "names": ["a", None, (1, 2.5)],
    }
    torch.save(saved, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    assert loaded.content.path == (key,)
    assert_same(loaded.tensors, module.state_dict())
    assert [warning.split(" is")[0].split(" are")[0] for warning in loaded.warnings] == [
        'optimizer state "optimizer"',
        'tensors in "ema"',
    ]
    assert all("copied unchanged" in warning for warning in loaded.warnings)
    new = {
        name: tensor.flip(0) if tensor.dim() else tensor for name, tensor in loaded.tensors.items()
    }
    save_checkpoint(work / "out.pt", new, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    assert list(written) == list(saved)
    assert written["epoch"] == 3
    assert written["names"] == ["a", None, (1, 2.5)]
    assert written["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    assert torch.equal(written["best"], saved["best"])
    assert type(written[key]) is OrderedDict
    assert written[key]._metadata == saved[key]._metadata
    assert_same(written[key], new)
    assert_same(loaded.tensors, module.state_dict())


def test_nested_wrapper_is_kept(work):
    torch.save({"model": {"state_dict": some_tensors(), "tag": "x"}, "epoch": 1}, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    assert loaded.content.path == ("model", "state_dict")
    save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    assert written["epoch"] == 1
    assert written["model"]["tag"] == "x"
    assert_same(written["model"]["state_dict"], some_tensors())
    with pytest.raises(CheckpointError, match=r'no place for "epoch", "model\.tag".*a \.pt output'):
        save_checkpoint(work / "out.safetensors", loaded.tensors, like=loaded)


def test_entries_that_are_no_tensors_are_kept(work):
    state = {"w": torch.ones(2), "version": 2, "norm._extra_state": {"scale": torch.ones(3)}}
    torch.save(state, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    assert list(loaded.tensors) == ["w"]
    assert len(loaded.warnings) == 1
    save_checkpoint(work / "out.pt", {"w": torch.zeros(2)}, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    assert list(written) == list(state)
    assert written["version"] == 2
    assert torch.equal(written["norm._extra_state"]["scale"], torch.ones(3))
    assert torch.equal(written["w"], torch.zeros(2))


def test_parameters_stay_parameters(work):
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    state = {
        "w": torch.nn.Parameter(torch.ones(2)),
        "f": frozen,
        "g": torch.ones(1).requires_grad_(),
    }
    torch.save(state, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    assert not any(tensor.requires_grad for tensor in loaded.tensors.values())
    save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    kinds = [(type(tensor), tensor.requires_grad) for tensor in written.values()]
    assert kinds == [(type(tensor), tensor.requires_grad) for tensor in state.values()]


LATER_CHANGES = """
import itertools, os, sys
from pathlib import Path
import torch
from gpu_align._checkpoint import load_checkpoint, save_checkpoint

changes = {
    "cut_short": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0),
    "overwritten": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "removed": lambda path: path.unlink(),
}
for suffix, change in itertools.product(sys.argv[1:], changes):
    path = Path(f"x{suffix}")
    tensors = {name: torch.randn(300, 300) for name in "ab"}
    save_checkpoint(path, tensors)
    held = load_checkpoint(path).tensors
    print(suffix, change, flush=True)
    changes[change](path)
    for name, tensor in tensors.items():
        assert torch.equal(held[name], tensor), name
"""


def test_a_file_that_changes_later_changes_nothing(work):
    """In a process of its own, for a mapped file that is cut short ends it."""
    command = [sys.executable, "-c", LATER_CHANGES, *FILE_SUFFIXES]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
def test_a_file_that_is_written_to_while_it_is_read_is_refused(work, suffix, monkeypatch):
    path = work / f"x{suffix}"
    save_checkpoint(path, {"a": torch.randn(30, 30)})
    real = torch.Tensor.clone if suffix == ".safetensors" else torch.load

    def slow(*arguments, **options):
        found = real(*arguments, **options)
        os.utime(path, ns=(0, 0))
        return found

    owner, name = (torch.Tensor, "clone") if suffix == ".safetensors" else (torch, "load")
    monkeypatch.setattr(owner, name, slow)
    with pytest.raises(CheckpointError, match="written to while it was read"):
        load_checkpoint(path)


def test_compressed_archive_is_read(work):
    torch.save({"w": torch.arange(1000.0)}, work / "in.pt")
    with (
        zipfile.ZipFile(work / "in.pt") as source,
        zipfile.ZipFile(work / "x.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert_same(load_checkpoint(work / "x.pt").tensors, {"w": torch.arange(1000.0)})


def make_truncated(path):
    save_checkpoint(path, some_tensors())
    path.write_bytes(path.read_bytes()[:-20])


def make_torch(path, content, **options):
    with open(path, "wb") as file:
        torch.save(content, file, **options)


def make_index(path, document):
    write_sharded(path.parent / "shards")
    for file in (path.parent / "shards").glob("*.safetensors"):
        file.rename(path.parent / file.name)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def index_of(**weight_map):
    return {"metadata": {}, "weight_map": weight_map}


ONE, TWO = "model-1.safetensors", "model-2.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHTS = {"w": torch.ones(2)}

BAD_INPUTS = {
    "missing": ("no.pt", lambda p: None, "no such file.*check the path"),
    "empty folder": ("folder", lambda p: p.mkdir(), "got none; name the file"),
    "folder of torch": (
        "folder",
        lambda p: (p.mkdir(), make_torch(p / "m.bin", WEIGHTS)),
        'got "m.bin"; name the file',
    ),
    "empty safetensors": ("x.safetensors", lambda p: p.write_bytes(b""), "is empty; copy"),
    "empty pt": ("x.pt", lambda p: p.write_bytes(b""), "is empty; copy"),
    "truncated safetensors": ("x.safetensors", make_truncated, "truncated or damaged: copy"),
    "truncated pt": ("x.pt", make_truncated, "truncated or damaged.*; copy"),
    "truncated legacy": (
        "x.pt",
        lambda p: (
            make_torch(p, WEIGHTS, _use_new_zipfile_serialization=False),
            p.write_bytes(p.read_bytes()[:-4]),
        ),
        "truncated or damaged.*; copy",
    ),
    "text as safetensors": (
        "x.safetensors",
        lambda p: p.write_text("some text that is no checkpoint"),
        "expected a whole safetensors file.*copy",
    ),
    "text as pt": ("x.pt", lambda p: p.write_text("some text"), "save `model.state_dict"),
    "torch as safetensors": (
        "x.safetensors",
        lambda p: make_torch(p, WEIGHTS),
        "got a torch file; rename it to .pt",
    ),
    "legacy as safetensors": (
        "x.safetensors",
        lambda p: make_torch(p, WEIGHTS, _use_new_zipfile_serialization=False),
        "got a torch file; rename it to .pt",
    ),
    "safetensors as pt": (
        "x.pt",
        lambda p: safetensors.torch.save_file(WEIGHTS, p),
        "got a safetensors file; rename it to .safetensors",
    ),
    "git lfs": (
        "x.safetensors",
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "code": (
        "x.pt",
        lambda p: make_torch(p, {"w": torch.ones(2), "c": Code()}),
        "needs code to be loaded.*never executed; .*save `model.state_dict",
    ),
    "legacy code": (
        "x.pt",
        lambda p: make_torch(p, [Code()], _use_new_zipfile_serialization=False),
        "needs code to be loaded.*never executed; .*save `model.state_dict",
    ),
    "whole module": (
        "x.pt",
        lambda p: make_torch(p, torch.nn.Linear(1, 1)),
        r"torch.nn.modules.linear.Linear.*save `model.state_dict",
    ),
    "plain pickle": (
        "x.pt",
        lambda p: p.write_bytes(pickle.dumps({"a": 1})),
        "default pickle protocol.*save `model.state_dict",
    ),
    "a tensor": ("x.pt", lambda p: make_torch(p, torch.ones(1)), "expected a dict, got Tensor"),
    "no entries": ("x.pt", lambda p: make_torch(p, {}), "no tensors in it.*keys: none"),
    "no tensors": (
        "x.pt",
        lambda p: make_torch(p, {"state_dict": {}, "epoch": 3}),
        'no tensors in it .keys: "state_dict", "epoch".; save',
    ),
    "no tensors in safetensors": (
        "x.safetensors",
        lambda p: write_raw(p, {}, b""),
        "no tensors in it; choose",
    ),
    "two state dicts": (
        "x.pt",
        lambda p: make_torch(p, {"model": WEIGHTS, "net": WEIGHTS}),
        '"model", "net"; save the one',
    ),
    "nested tensors": (
        "x.pt",
        lambda p: make_torch(p, {"encoder": WEIGHTS, "epoch": 3}),
        'nested tensors under "encoder" .keys: "encoder", "epoch".; save',
    ),
    "nested beside tensors": (
        "x.pt",
        lambda p: make_torch(p, {"a": torch.ones(1), "more": [torch.ones(1)]}),
        'nested tensors under "more"',
    ),
    "keys are numbers": (
        "x.pt",
        lambda p: make_torch(p, {0: torch.ones(1)}),
        "must be strings, got 0; save",
    ),
    "sparse": (
        "x.pt",
        lambda p: make_torch(p, {"w": torch.eye(2).to_sparse()}),
        '"w" must be a dense tensor.*to_dense',
    ),
    "no values": (
        "x.pt",
        lambda p: make_torch(p, {"w": torch.ones(2, device="meta")}),
        '"w" must be a dense tensor.*device meta',
    ),
    "unknown extension": ("x.onnx", lambda p: p.write_text("x"), r'".onnx"; use .safetensors, .pt'),
    "no extension": ("x", lambda p: p.write_text("x"), 'unknown extension ""; use .safetensors'),
    "torch index": (
        "pytorch_model.bin.index.json",
        lambda p: p.write_text("{}"),
        "only safetensors can be sharded; convert",
    ),
    "index not JSON": (INDEX, lambda p: p.write_text("{"), "expected JSON.*download the index"),
    "index not text": (INDEX, lambda p: p.write_bytes(b"\xff\xff\xff"), "expected JSON"),
    "index a list": (INDEX, lambda p: p.write_text("[]"), "expected a JSON object, got list"),
    "index with bad metadata": (INDEX, lambda p: p.write_text('{"metadata": 1}'), '"metadata"'),
    "index without map": (INDEX, lambda p: p.write_text("{}"), 'expected "weight_map".*name the'),
    "index with empty map": (INDEX, lambda p: make_index(p, index_of()), 'expected "weight_map"'),
    "index maps to number": (
        INDEX,
        lambda p: make_index(p, index_of(a=1)),
        'expected "weight_map"',
    ),
    "shards missing": (
        INDEX,
        lambda p: make_index(p, index_of(a=ONE, b=ONE, c="model-3.safetensors")),
        "1 of 2 shards are missing; put them beside(.|\n)*model-3",
    ),
    "shard outside": (
        INDEX,
        lambda p: make_index(p, index_of(a="../model-1.safetensors")),
        "must be .safetensors files beside the index.*correct the names",
    ),
    "shard below": (
        INDEX,
        lambda p: make_index(p, index_of(a="shards/model-1.safetensors")),
        "must be .safetensors files beside the index.*correct the names",
    ),
    "tensor missing in shard": (
        INDEX,
        lambda p: make_index(p, index_of(a=ONE, b=ONE, c=TWO, d=TWO)),
        '(.|\n)*"d" is in the index only',
    ),
    "tensor missing in index": (
        INDEX,
        lambda p: make_index(p, index_of(a=ONE, c=TWO)),
        'download both again(.|\n)*"b" is in the shard only',
    ),
}


@pytest.mark.parametrize(("name", "make", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_explained(work, capfd, name, make, message):
    make(work / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(work / name)
    assert str(work / name) in str(caught.value)
    assert capfd.readouterr().out == ""


def test_folder_with_several_files_is_explained(work):
    for name in ("a", "b"):
        save_checkpoint(work / f"{name}.safetensors", some_tensors())
    with pytest.raises(CheckpointError, match=r'got "a.safetensors", "b.safetensors"; name the'):
        load_checkpoint(work)


def test_path_under_a_file_is_explained(work):
    (work / "file").write_text("x")
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(work / "file" / "x.pt")


def test_permission_denied_is_explained(work, monkeypatch):
    save_checkpoint(work / "x.pt", some_tensors())

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gpu_align._checkpoint._torch_file.torch.load", refuse)
    with pytest.raises(CheckpointError, match=r"x.pt: Permission denied; check that you may read"):
        load_checkpoint(work / "x.pt")


def test_dict_that_contains_itself_ends(work):
    state = {"w": torch.ones(1)}
    state["model"] = state
    torch.save(state, work / "x.pt")
    with pytest.raises(CheckpointError, match='nested tensors under "model"'):
        load_checkpoint(work / "x.pt")


@given(st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_load_or_are_explained(tmp_path, data):
    kind = data.draw(st.sampled_from(["pt", "legacy.pt", "safetensors"]))
    path = tmp_path / f"x.{kind}"
    content = {"state_dict": some_tensors(), "epoch": 3}
    if kind == "safetensors":
        save_checkpoint(path, some_tensors())
    else:
        make_torch(path, content, _use_new_zipfile_serialization=kind == "pt")
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, 2 * len(damaged)))])
    message = f"{path}: loaded; "
    try:
        assert load_checkpoint(path).tensors
    except CheckpointError as error:
        message = str(error)
    assert str(path) in message
    assert "; " in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.onnx", r'unknown extension ".onnx"; choose one of .safetensors, .pt'),
        ("x", r"no extension; choose one of .safetensors, .pt"),
        ("", r"it is a folder; give the name of a file"),
        ("x.safetensors.index.json", "the input is not sharded; choose one of"),
        ("no/x.pt", "the folder .*no does not exist; create it"),
        ("no/x.safetensors", "the folder .*no does not exist; create it"),
        ("file/x.pt", "file is a file, not a folder; choose another"),
        ("taken.pt", "it is a folder; give the name of a file"),
        ("n" * 300 + ".pt", "too long; check"),
    ],
)
def test_bad_output_is_explained(work, name, message):
    (work / "file").write_text("x")
    (work / "taken.pt").mkdir()
    before = sorted(work.rglob("*"))
    with pytest.raises(CheckpointError, match=message) as caught:
        save_checkpoint(work / name, some_tensors())
    assert str(work / name) in str(caught.value)
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("full", "not empty; choose a new or an empty folder"),
        ("in", "not empty; choose a new or an empty folder"),
        ("file", "a file has that name; choose another"),
        ("no/out", "does not exist; create it"),
        ("x.index.json", 'unknown extension ".json"; choose one of'),
    ],
)
def test_bad_output_of_shards_is_explained(work, name, message):
    write_sharded(work / "in")
    (work / "full").mkdir()
    (work / "full" / "x").write_text("x")
    (work / "file").write_text("x")
    before = sorted(work.rglob("*"))
    loaded = load_checkpoint(work / "in")
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(work / name, loaded.tensors, like=loaded)
    assert sorted(work.rglob("*")) == before


def test_different_tensors_are_explained(work):
    save_checkpoint(work / "in.pt", {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)})
    loaded = load_checkpoint(work / "in.pt")
    tensors = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(1, 3), "d": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(work / "out.pt", tensors, like=loaded)
    message = str(caught.value)
    assert '"c" is missing' in message
    assert '"d" is not in the input' in message
    assert '"a": expected torch.float32 [2], got torch.float16 [2]' in message
    assert '"b": expected torch.float32 [3], got torch.float32 [1, 3]' in message
    assert str(work / "in.pt") in message


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "at least one"),
        ({"w": torch.eye(2).to_sparse()}, "call `to_dense"),
        ({"w": torch.ones(2, device="meta")}, "dense tensors with values"),
        ({"w": torch.ones(1, dtype=torch.complex128)}, "cannot be stored.*choose a .pt output"),
        ({"__metadata__": torch.ones(1)}, "cannot be stored.*choose a .pt output"),
    ],
)
def test_tensors_that_cannot_be_written_are_explained(work, tensors, message):
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(work / "x.safetensors", tensors)
    assert list(work.iterdir()) == []


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

    def fail(content, file):
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


def test_link_is_replaced_not_followed(work):
    (work / "blob").write_text("old")
    (work / "x").symlink_to(work / "blob")
    with atomic_write(work / "x") as temporary:
        temporary.write_text("new")
    assert (work / "blob").read_text() == "old"
    assert (work / "x").read_text() == "new"
