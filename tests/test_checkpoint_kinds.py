"""The format of a checkpoint is told by its content; other kinds of file are called by name."""

import gzip
import io
import json
import lzma
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_files import assert_same, make_torch, some_tensors, write_raw

from gpu_align._checkpoint import load_checkpoint, save_checkpoint
from gpu_align._errors import CheckpointError

NAMES = [
    *(
        "final.checkpoint",
        "x.pth.tar",
        "x.model",
        "x.weights",
        "x.th",
        "checkpoint",
        "x.t7",
        "x.pkl",
    ),
    *("epoch=3-loss=0.5", "x.safetensors", "x.pt", "x.onnx", "x.mdl", "x.params"),
]
WRITERS = {
    "zip": lambda path, state: make_torch(path, state),
    "legacy": lambda path, state: make_torch(path, state, _use_new_zipfile_serialization=False),
    "safetensors": lambda path, state: safetensors.torch.save_file(state, path),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("writer", WRITERS)
def test_any_name_is_read_by_its_content(work, name, writer):
    WRITERS[writer](work / name, some_tensors())
    loaded = load_checkpoint(work / name)
    assert_same(loaded.tensors, some_tensors())
    assert loaded.format == ("safetensors" if writer == "safetensors" else "torch")
    assert loaded.files == (work / name,)


@pytest.mark.parametrize("writer", ["zip", "safetensors"])
@pytest.mark.parametrize("out", ["out", "out.checkpoint", "out.model", "epoch=3-loss=0.25"])
def test_other_names_keep_the_format(work, writer, out):
    WRITERS[writer](work / "checkpoint", some_tensors())
    loaded = load_checkpoint(work / "checkpoint")
    save_checkpoint(work / out, loaded.tensors, like=loaded)
    written = load_checkpoint(work / out)
    assert written.format == loaded.format
    assert_same(written.tensors, loaded.tensors)


@pytest.mark.parametrize(
    ("out", "expected"),
    [("x.safetensors", "safetensors"), ("x.pth.tar", "torch"), ("x.th", "torch")],
)
@pytest.mark.parametrize("writer", ["zip", "safetensors"])
def test_known_endings_say_the_format(work, writer, out, expected):
    WRITERS[writer](work / "checkpoint", some_tensors())
    loaded = load_checkpoint(work / "checkpoint")
    save_checkpoint(work / out, loaded.tensors, like=loaded)
    assert load_checkpoint(work / out).format == expected


@pytest.mark.parametrize("name", ["x.json", "x.onnx", "x.npz", "x.zip", "x.h5", "x.index.json"])
def test_names_of_other_kinds_are_not_written(work, name):
    make_torch(work / "in.pt", some_tensors())
    loaded = load_checkpoint(work / "in.pt")
    with pytest.raises(CheckpointError, match=r"choose one of \.safetensors"):
        save_checkpoint(work / name, loaded.tensors, like=loaded)


def write_bin_folder(folder):
    """Write what transformers writes with safe_serialization=False, and a run beside it."""
    folder.mkdir()
    make_torch(folder / "pytorch_model.bin", some_tensors())
    make_torch(folder / "training_args.bin", {"lr": 0.1})
    make_torch(folder / "optimizer.pt", {"state": {0: {"exp_avg": torch.ones(3)}}})
    make_torch(folder / "rng_state.pth", {"cpu": torch.ones(8)})
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / ".gitattributes").write_text("x")


def test_folder_of_one_torch_file_is_read(work):
    write_bin_folder(work / "in")
    assert_same(load_checkpoint(work / "in").tensors, some_tensors())
    (work / "tune").mkdir()
    make_torch(work / "tune" / "checkpoint", some_tensors())
    (work / "tune" / ".tune_metadata").write_bytes(b"\x80\x04}.")
    assert_same(load_checkpoint(work / "tune").tensors, some_tensors())


def test_safetensors_goes_before_torch(work):
    write_bin_folder(work / "in")
    safetensors.torch.save_file({"w": torch.ones(1)}, work / "in" / "model.safetensors")
    assert_same(load_checkpoint(work / "in").tensors, {"w": torch.ones(1)})


def test_folder_of_several_torch_files_is_explained(work):
    for name in ("last.ckpt", "best"):
        make_torch(work / name, some_tensors())
    with pytest.raises(CheckpointError, match=r'one checkpoint, got "best", "last.ckpt"; name the'):
        load_checkpoint(work)


@pytest.mark.parametrize("given", ["", "pytorch_model.bin.index.json"])
def test_torch_shards_round_trip(work, given):
    write_bin_folder(work / "in")
    (work / "in" / "pytorch_model.bin").unlink()
    shared = torch.arange(6.0).reshape(2, 3)
    parts = {
        "pytorch_model-1.bin": {"embed": shared, "head": shared},
        "pytorch_model-2.bin": {"w": torch.ones(2), "n": torch.tensor(3)},
    }
    for name, part in parts.items():
        make_torch(work / "in" / name, part)
    names = {name: file for file, part in parts.items() for name in reversed(part)}
    index = {"metadata": {"total_size": 44}, "weight_map": names}
    (work / "in" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = load_checkpoint(work / "in" / given)
    assert loaded.format == "torch"
    assert list(loaded.tensors) == list(names)
    new = {
        name: tensor.flip(0) if tensor.dim() else tensor for name, tensor in loaded.tensors.items()
    }
    save_checkpoint(work / "out", new, like=loaded)
    # From a folder come the configuration and the tokenizer too.
    beside = () if given else ("config.json", "vocab.txt")
    assert sorted(p.name for p in (work / "out").iterdir()) == sorted(
        [*parts, "pytorch_model.bin.index.json", *beside]
    )
    again = load_checkpoint(work / "out")
    assert_same(again.tensors, new)
    assert again.tensors["embed"] is again.tensors["head"]
    for joined in ("x.pt", "x.safetensors"):
        save_checkpoint(work / joined, new, like=loaded)
        assert_same(load_checkpoint(work / joined).tensors, new)


def write_policy(path, *, policy=None):
    """Write what stable-baselines3 writes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": "x"}))
        for name, content in {
            "pytorch_variables.pth": {"log_alpha": torch.zeros(1)},
            "policy.pth": policy or some_tensors(),
            "policy.optimizer.pth": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
        }.items():
            with archive.open(name, "w") as file:
                torch.save(content, file)
        archive.writestr("_stable_baselines3_version", "2.0")


def test_policy_in_a_zip_archive_round_trips(work):
    write_policy(work / "in.zip")
    loaded = load_checkpoint(work / "in.zip")
    assert_same(loaded.tensors, some_tensors())
    new = {n: t.flip(0) if t.dim() else t for n, t in loaded.tensors.items()}
    for name in ("out.zip", "out"):
        save_checkpoint(work / name, new, like=loaded)
        assert_same(load_checkpoint(work / name).tensors, new)
        with zipfile.ZipFile(work / name) as after, zipfile.ZipFile(work / "in.zip") as before:
            assert after.namelist() == before.namelist()
            assert after.testzip() is None
            for member in before.namelist():
                assert member == "policy.pth" or after.read(member) == before.read(member)
    with pytest.raises(CheckpointError, match=r'no place for "data".*choose a \.zip output'):
        save_checkpoint(work / "out.pth", new, like=loaded)


def test_other_archives_are_explained(work):
    with zipfile.ZipFile(work / "two.zip", "w") as archive:
        for name in ("a.pth", "b.pth"):
            archive.writestr(name, "x")
    with pytest.raises(CheckpointError, match=r'got "a.pth", "b.pth"; unpack it'):
        load_checkpoint(work / "two.zip")
    write_policy(work / "cut.zip")
    content = bytearray((work / "cut.zip").read_bytes())
    content[200:260] = bytes(60)
    (work / "cut.zip").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(work / "cut.zip")


def write_scripted(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)


def write_exported(path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    with open(path, "wb") as file:
        torch.export.save(program, file)


def write_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"), io.BytesIO())


def write_npz(path):
    with open(path, "wb") as file:
        np.savez(file, w=np.ones(3))


ONNX = b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x10\x0a\x0e"
FOREIGN = {
    "scripted": (write_scripted, r"a TorchScript archive; save `torch\.jit\.load"),
    "exported": (write_exported, r"an exported program; save `torch\.export\.load"),
    "ONNX": (lambda p: p.write_bytes(ONNX), r"an ONNX model; .*state_dict"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)), "HDF5.*copy its weights"),
    "GGUF": (lambda p: p.write_bytes(b"GGUF\x03\0\0\0" + bytes(90)), "GGUF.*made from"),
    "msgpack": (lambda p: p.write_bytes(b"\x81\xa6params\x82\xa1a\xc0\xa1b\xc0"), "msgpack.*Flax"),
    "long msgpack": (lambda p: p.write_bytes(b"\xde\0\x20\xa1a" + bytes(90)), "msgpack.*Flax"),
    "npz": (write_npz, r"NumPy archive.*from_numpy"),
    "npy": (lambda p: p.write_bytes(b"\x93NUMPY\x01\0" + bytes(90)), "a NumPy array"),
    "tar": (write_tar, "a tar archive; unpack it"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), "a gzip archive; unpack it"),
    "xz": (lambda p: p.write_bytes(lzma.compress(b"x")), "an xz archive; unpack it"),
    "tflite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(90)), "TensorFlow Lite"),
    "web page": (lambda p: p.write_text("<!DOCTYPE html><p>404</p>"), "a web page; download"),
    "JSON": (lambda p: p.write_text('{"a": [1, 2]}'), "JSON text; name the weights"),
    "TensorFlow list": (
        lambda p: p.write_text('model_checkpoint_path: "model.ckpt-1"\n'),
        "list of a TensorFlow checkpoint",
    ),
    "text": (lambda p: p.write_text("some text"), "got something else; .*torch.save"),
    "LFS": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
}


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(("write", "message"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("name", ["x", "x.pt", "x.ckpt"])
def test_other_kinds_are_called_by_name(work, write, message, name):
    write(work / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(work / name)
    assert f"cannot read {work / name}: expected a safetensors file" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["__0_0.distcp", ".metadata"], "torch.distributed.*dcp_to_torch"),
        (["zero_to_fp32.py", "latest"], "DeepSpeed.*zero_to_fp32.py"),
        (["saved_model.pb", "keras_metadata.pb"], "a TensorFlow model"),
        (["model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"], "a TensorFlow checkpoint"),
        (["flax_model.msgpack", "config.json"], "a Flax model"),
    ],
)
def test_other_folders_are_called_by_name(work, names, message):
    for name in names:
        (work / name).write_text("x")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(work)


QUANTISED = {
    "GPTQ": {"l.qweight": torch.ones(2, 2, dtype=torch.int32), "l.scales": torch.ones(2)},
    "4 bits": {"l.weight": torch.ones(4, dtype=torch.uint8), "l.weight.absmax": torch.ones(1)},
    "8 bits": {"l.weight": torch.ones(2, 2, dtype=torch.int8), "l.SCB": torch.ones(2)},
    "float8": {"l.weight": torch.ones(2, 2), "l.weight_scale_inv": torch.ones(1)},
}


@pytest.mark.parametrize("state", QUANTISED.values(), ids=QUANTISED)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_quantised_weights_are_called_quantised(work, state, name):
    save_checkpoint(work / name, state)
    with pytest.raises(
        CheckpointError, match=r"got a quantised state dict.*made from, and quantise"
    ):
        load_checkpoint(work / name)


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_quantised_tensors_are_called_quantised(work):
    tensor = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    make_torch(work / "x.pt", {"w": tensor})
    with pytest.raises(CheckpointError, match=r'quantised state dict \("w": torch.qint8\)'):
        load_checkpoint(work / "x.pt")


ADAPTERS = {
    "PEFT": ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"],
    "kohya": ["lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight", "lora_unet_q.alpha"],
    "LoHa": ["q.hada_w1_a", "q.hada_w1_b", "q.hada_w2_a", "q.hada_w2_b"],
    "IA3": ["base_model.model.q.ia3_l"],
}


@pytest.mark.parametrize("names", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_are_called_adapters(work, names):
    save_checkpoint(work / "x.safetensors", {name: torch.ones(2, 2) for name in names})
    with pytest.raises(CheckpointError, match=r"got a LoRA adapter.*merge it into the base first"):
        load_checkpoint(work / "x.safetensors")


def test_adapters_beside_their_weights_are_read(work):
    names = ("q.weight", "q.lora_A", "q.lora_B")
    state = {name: torch.ones(2, 2) for name in names}
    save_checkpoint(work / "x.pt", state)
    assert_same(load_checkpoint(work / "x.pt").tensors, state)


def test_header_like_text_is_read(work):
    """A header of 0x7B bytes makes the file start with the bracket of JSON."""
    header = {"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "__metadata__": {"p": ""}}
    header["__metadata__"]["p"] = "x" * (0x7B - len(json.dumps(header, separators=(",", ":"))) + 0)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) == 0x7B
    write_raw(work / "x.pt", header, b"\x05")
    data = (work / "x.pt").read_bytes()
    (work / "y").write_bytes(len(text).to_bytes(8, "little") + text + data[-1:])
    assert_same(load_checkpoint(work / "y").tensors, {"w": torch.tensor([5], dtype=torch.uint8)})


def test_checkpoint_in_another_folder_is_untouched(work):
    make_torch(work / "a.pt", some_tensors())
    shutil.copy(work / "a.pt", work / "b")
    loaded = load_checkpoint(work / "b")
    save_checkpoint(work / "b", {n: t * 0 for n, t in loaded.tensors.items()}, like=loaded)
    assert_same(load_checkpoint(work / "a.pt").tensors, some_tensors())
