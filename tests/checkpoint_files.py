"""Tensors and files that the tests of checkpoints are made of."""

import json
import math
import struct

import safetensors.torch
import torch

from gpu_align._checkpoint import save_checkpoint

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
