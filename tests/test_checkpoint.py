"""Checkpoint out = checkpoint in: every format, dtype, tie and shard."""

import copy
import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoint_files import (
    SUFFIXES,
    TORCH_DTYPES,
    assert_same,
    bits,
    from_bits,
    header_of,
    some_tensors,
    write_raw,
    write_sharded,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_align._checkpoint import load_checkpoint, save_checkpoint
from gpu_align._errors import CheckpointError


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


def test_compressed_archive_is_read(work):
    torch.save({"w": torch.arange(1000.0)}, work / "in.pt")
    with (
        zipfile.ZipFile(work / "in.pt") as source,
        zipfile.ZipFile(work / "x.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert_same(load_checkpoint(work / "x.pt").tensors, {"w": torch.arange(1000.0)})
