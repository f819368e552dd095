"""Bad checkpoints and bad outputs are explained."""

import pickle

import pytest
import torch
from checkpoint_files import (
    INDEX,
    ONE,
    TWO,
    WEIGHTS,
    Code,
    index_of,
    make_index,
    make_torch,
    make_truncated,
    some_tensors,
    write_raw,
    write_sharded,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_align._checkpoint import load_checkpoint, save_checkpoint
from gpu_align._errors import CheckpointError

BAD_INPUTS = {
    "missing": ("no.pt", lambda p: None, "no such file.*check the path"),
    "empty folder": ("folder", lambda p: p.mkdir(), "got none; name the file"),
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
    "git lfs": (
        "x.safetensors",
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "legacy code": (
        "x.pt",
        lambda p: make_torch(p, [Code()], _use_new_zipfile_serialization=False),
        "need code to be loaded.*never executed; .*save `model.state_dict",
    ),
    "whole module": (
        "x.pt",
        lambda p: make_torch(p, torch.nn.Linear(1, 1)),
        r"torch.nn.modules.linear.Linear.*save `model.state_dict",
    ),
    "plain pickle": (
        "x.pt",
        lambda p: p.write_bytes(pickle.dumps({"a": 1})),
        "plain pickle.*save `model.state_dict",
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
        '"model", "net"; choose one by key',
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
    "text without extension": ("x", lambda p: p.write_text("x"), "something else; .*state_dict"),
    "index not JSON": (INDEX, lambda p: p.write_text("{"), "expected JSON.*download it again"),
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
        "must be files beside the index.*correct the names",
    ),
    "shard below": (
        INDEX,
        lambda p: make_index(p, index_of(a="shards/model-1.safetensors")),
        "must be files beside the index.*correct the names",
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
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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
        # A file's length may differ from one time to the next, what is drawn must not.
        damaged[data.draw(st.integers(0, 10**6)) % len(damaged)] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, 10**6)) % (2 * len(damaged))])
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
        ("x.json", 'unknown extension ".json"; choose one of'),
        ("x.index.json", "not empty; choose a new or an empty folder"),
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
