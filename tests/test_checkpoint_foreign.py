"""Classes that are not torch's are kept as placeholders, written back as they came, never run."""

import argparse
import collections
import datetime
import enum
import functools
import io
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_files import assert_same, make_torch, some_tensors
from marks import each_once

from gpu_align._checkpoint import _inert, load_checkpoint, save_checkpoint
from gpu_align._errors import CheckpointError


class Mode(enum.Enum):
    TRAIN = 1


class Config(dict):
    """A dict with attributes, as many configurations are."""


class Words(list):
    """A list with attributes, as many vocabularies are."""


class Slots:
    __slots__ = ("a", "b")


class Reduced:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return (Reduced, self.parts, None, None, None)


def config():
    result = Config(lr=0.1, steps=[1, 2])
    result.name = {"deep": (1, None)}
    return result


def words():
    result = Words(["a", "b"])
    result.unknown = "a"
    return result


def slots():
    result = Slots()
    result.a, result.b = 3, [4]
    return result


def as_values(item):
    """Turn objects into what can be compared."""
    if isinstance(item, torch.nn.Module):
        return {name: tensor.tolist() for name, tensor in item.state_dict().items()}
    if isinstance(item, Slots):
        return (item.a, item.b)
    if isinstance(item, Reduced):
        return item.parts
    if isinstance(item, functools.partial):
        return (item.func, item.args, item.keywords)
    if isinstance(item, np.ndarray):
        return (item.dtype, item.tolist())
    return (item, vars(item) if hasattr(item, "__dict__") and not isinstance(item, type) else None)


FOREIGN = {
    "namespace": lambda: argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/a/b")),
    "dict with attributes": config,
    "list with attributes": words,
    "slots": slots,
    "reduced": lambda: Reduced(1, [2]),
    "enumeration": lambda: Mode.TRAIN,
    "default dict": lambda: collections.defaultdict(list, {"a": [1]}),
    "queue": lambda: collections.deque([1, 2], maxlen=3),
    "partial": lambda: functools.partial(max, 1, key=abs),
    "function": lambda: os.path.join,
    "class": lambda: argparse.ArgumentParser,
    "scalar": lambda: np.float64(2.5),
    "array": lambda: np.arange(6).reshape(2, 3),
    "date": lambda: datetime.datetime(2020, 1, 2, 3),
    "path": lambda: pathlib.PurePosixPath("x"),
    "set of paths": lambda: frozenset([pathlib.PurePosixPath("x")]),
    "keys": lambda: {Mode.TRAIN: 1, pathlib.PurePosixPath("x"): 2},
    "bytes": lambda: (b"\xff\x00", bytearray(b"xy"), complex(1, 2), 2**80, slice(1, 2), {3}),
    "module": lambda: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize(("name", "protocol"), each_once(FOREIGN, [2, 3, 4, 5]))
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_are_written_back_as_they_came(work, name, protocol, legacy):
    saved = {"state_dict": some_tensors(), "extra": FOREIGN[name](), "epoch": 3}
    torch.save(
        saved,
        work / "in.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    loaded = load_checkpoint(work / "in.pt")
    assert_same(loaded.tensors, some_tensors())
    new = {
        name: tensor.flip(0) if tensor.dim() else tensor for name, tensor in loaded.tensors.items()
    }
    save_checkpoint(work / "out.pt", new, like=loaded)
    written = torch.load(work / "out.pt", weights_only=False)
    assert list(written) == list(saved)
    assert_same(written["state_dict"], new)
    assert type(written["extra"]) is type(saved["extra"])
    assert as_values(written["extra"]) == as_values(saved["extra"])


def test_one_object_in_two_places_stays_one(work):
    shared, tensor = argparse.Namespace(a=1), torch.ones(3)
    shared.itself = shared
    saved = {"model": {"w": tensor}, "x": shared, "y": [shared], "z": argparse.Namespace(t=tensor)}
    torch.save(saved, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    written = torch.load(work / "out.pt", weights_only=False)
    assert written["x"] is written["y"][0] is written["x"].itself
    assert torch.equal(written["z"].t, tensor)


def test_foreign_classes_are_listed(work):
    saved = {"state_dict": some_tensors(), "args": argparse.Namespace(p=pathlib.PurePosixPath("x"))}
    torch.save(saved, work / "x.pt")
    loaded = load_checkpoint(work / "x.pt")
    assert loaded.warnings == (
        'classes that were not loaded, and are copied by name: "argparse.Namespace", '
        '"pathlib.PurePosixPath"',
    )
    with pytest.raises(CheckpointError, match=r'no place for "args"'):
        save_checkpoint(work / "x.safetensors", loaded.tensors, like=loaded)


def test_tensors_inside_foreign_objects_are_warned_of(work):
    saved = {
        "model": {"w": torch.ones(2)},
        "average": argparse.Namespace(shadow={"w": torch.ones(2)}),
    }
    torch.save(saved, work / "x.pt")
    assert any(
        'tensors in "average" are copied unchanged' in w
        for w in load_checkpoint(work / "x.pt").warnings
    )


def test_state_dict_of_a_foreign_mapping_is_read(work):
    saved = config()
    saved["model"] = some_tensors()
    torch.save(saved, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    written = torch.load(work / "out.pt", weights_only=False)
    assert type(written) is Config
    assert written.name == saved.name
    assert_same(written["model"], some_tensors())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.nn.Linear(2, 2), r"Linear.*never executed.*save `model.state_dict"),
        ({"model": torch.nn.Linear(2, 2)}, r"Linear.*never executed.*save `model.state_dict"),
        ({"w": np.ones(3)}, "expected tensors, got NumPy arrays.*from_numpy"),
        (
            {"a": torch.ones(1), "b": argparse.Namespace(w=torch.ones(1))},
            'nested tensors under "b"',
        ),
    ],
)
def test_weights_inside_foreign_objects_are_explained(work, content, message):
    torch.save(content, work / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(work / "x.pt")


class Call:
    """Calls a function when it is unpickled in the usual way."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def program(*opcodes: bytes) -> bytes:
    """Write a pickle by hand, of a dict with a tensor's place and what the opcodes leave."""
    return b"\x80\x04" + b"".join(opcodes) + b"."


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


MARK = "marked"
TOUCH = text(f"touch {MARK}")
SYSTEM = b"cos\nsystem\n"
HAND_MADE = {
    "reduce": program(SYSTEM, TOUCH, b"\x85R"),
    "stack global": program(text("os"), text("system"), b"\x93", TOUCH, b"\x85R"),
    "dotted": program(text("torch"), text("serialization.os.system"), b"\x93", TOUCH, b"\x85R"),
    "dotted known": program(text("collections"), text("OrderedDict.fromkeys"), b"\x93", b")R"),
    "instance": program(b"(", TOUCH, b"ios\nsystem\n"),
    "object": program(b"(", SYSTEM, TOUCH, b"o"),
    "new": program(b"csubprocess\nPopen\n", TOUCH, b"\x85\x81"),
    "new with keywords": program(b"csubprocess\nPopen\n", TOUCH, b"\x85}\x92"),
    "evaluate": program(b"cbuiltins\neval\n", text(f"open({MARK!r}, 'w')"), b"\x85R"),
    "old evaluate": program(b"c__builtin__\nexec\n", text(f"open({MARK!r}, 'w')"), b"\x85R"),
    "build a class": program(b"ctorch.nn.parameter\nParameter\n", b"N}", text("x"), b"K\x01s\x86b"),
    "build a function": program(
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"N}", text("__defaults__"), b")s\x86b"
    ),
    "set state": program(b"ccollections\nOrderedDict\n)R", b"N}", text("__class__"), b"Ns\x86b"),
    "append to a class": program(b"ctorch\nTensor\n", b"K\x01a"),
    "entry of a tensor class": program(b"ctorch\nTensor\n", b"K\x01K\x01s"),
    "extension": program(b"\x82\x01"),
    "codec": program(b"c_codecs\nencode\n", text("x"), text("rot13"), b"\x86R"),
    "line break": program(text("os\nsystem"), text("x"), b"\x93"),
    "call a tensor class": program(b"ctorch\nTensor\n", b"K\x05\x85R"),
    "import": program(b"cbuiltins\n__import__\n", text("antigravity"), b"\x85R"),
    "get attribute": program(b"cbuiltins\ngetattr\n", b"cos\nsystem\n", text("x"), b"\x86R"),
}


@pytest.mark.parametrize("content", HAND_MADE.values(), ids=HAND_MADE)
def test_nothing_of_a_hostile_pickle_runs(work, monkeypatch, content):
    monkeypatch.chdir(work)
    before = {name: dict(vars(item)) for name, item in list(sys.modules.items()) if name == "torch"}
    modules = set(sys.modules)
    state = dict(vars(torch.nn.Parameter)), torch._utils._rebuild_tensor_v2.__defaults__
    try:
        found = _inert.load(io.BytesIO(content))
    except pickle.UnpicklingError:
        found = None
    assert found is None or isinstance(
        found, _inert.Foreign | _inert.Name | collections.OrderedDict
    )
    assert not (work / MARK).exists()
    assert set(sys.modules) - modules == set()
    assert before == {"torch": dict(vars(torch))}
    assert state == (dict(vars(torch.nn.Parameter)), torch._utils._rebuild_tensor_v2.__defaults__)


HOSTILE = {
    "system": lambda: Call(os.system, f"touch {MARK}"),
    "popen": lambda: Call(subprocess.Popen, ["touch", MARK]),
    "open": lambda: Call(open, MARK, "w"),
    "eval": lambda: Call(eval, f"open({MARK!r}, 'w')"),
    "partial": lambda: functools.partial(os.system, f"touch {MARK}"),
    "nested": lambda: Call(map, Call(os.system, f"touch {MARK}"), [1]),
    "tensor": lambda: Call(torch._utils._rebuild_tensor_v2, Call(os.system, f"touch {MARK}")),
    "import": lambda: Call(__import__, "this"),
    "runpy": lambda: Call(exec, f"open({MARK!r}, 'w')", {}),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", ["beside", "within", "whole"])
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_of_a_hostile_checkpoint_runs(work, monkeypatch, capfd, make, place, legacy):
    monkeypatch.chdir(work)
    content = {
        "beside": {"model": some_tensors(), "x": make()},
        "within": {**some_tensors(), "x": make()},
        "whole": make(),
    }[place]
    make_torch(work / "in.pt", content, _use_new_zipfile_serialization=not legacy)
    if place == "whole":
        with pytest.raises(CheckpointError, match="never executed"):
            load_checkpoint(work / "in.pt")
    else:
        loaded = load_checkpoint(work / "in.pt")
        save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
        assert_same(load_checkpoint(work / "out.pt").tensors, some_tensors())
    assert not (work / MARK).exists()
    assert "this" not in sys.modules
    assert capfd.readouterr().out == ""


def test_same_opcodes_are_written(work):
    """What is called, and with what, is the same before and after, instruction by instruction."""
    saved = {"model": {"w": torch.ones(2)}, "x": config(), "y": words(), "z": Call(os.system, "x")}
    make_torch(work / "in.pt", saved)
    loaded = load_checkpoint(work / "in.pt")
    save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    assert calls(work / "in.pt") == calls(work / "out.pt")


def calls(path):
    """List what a file names and the constants in it."""
    names = (
        "GLOBAL",
        "REDUCE",
        "NEWOBJ",
        "BUILD",
        "BINUNICODE",
        "BINFLOAT",
        "BININT1",
        "BINPERSID",
    )
    reader = torch._C.PyTorchFileReader(str(path))
    content = reader.get_record("data.pkl")
    return [
        (op.name, argument) for op, argument, _ in pickletools.genops(content) if op.name in names
    ]


def test_deep_surroundings_are_explained(work):
    deep = argparse.Namespace()
    node = deep
    for _ in range(400):
        node.inner = argparse.Namespace()
        node = node.inner
    sys.setrecursionlimit(20_000)
    try:
        torch.save({"model": {"w": torch.ones(2)}, "deep": deep}, work / "in.pt")
    finally:
        sys.setrecursionlimit(1000)
    loaded = load_checkpoint(work / "in.pt")
    with pytest.raises(CheckpointError, match="nested too deep"):
        save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    assert not (work / "out.pt").exists()
