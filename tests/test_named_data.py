"""Data by name: digits, MNIST, CIFAR-10, .npz files and loaders of the user's own."""

import gzip
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import targets_of

from gpu_align._errors import InputError, UnavailableError
from gpu_align._network import Data

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def test_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    data = Data.of("digits")
    images = torch.from_numpy(datasets.load_digits().images).float()[:, None] / 16
    labels = torch.from_numpy(datasets.load_digits().target)
    assert data.test is not None
    assert torch.equal(data.test.lots[0].inputs, images[::4])
    assert torch.equal(data.test.lots[0].targets, labels[::4])
    assert len(data.fit) + len(data.held) + len(data.test) == len(images)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UnavailableError, match=r"gpu-align\[demo\]"):
        Data.of("digits")


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, *, suffix: str = "", test: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for name in NAMES if test else NAMES[:2]:
        shape = (12, 4, 6) if "images" in name else (12,)
        arrays[name] = rng.integers(256 if "images" in name else 10, size=shape)
        content = idx(arrays[name])
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist(suffix: str, tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path, suffix=suffix)
    data = Data.of(f"mnist:{tmp_path}")
    assert data.test is not None
    test = data.test.lots[0]
    pixels = torch.tensor(arrays["t10k-images-idx3-ubyte"])[:, None]
    assert torch.allclose(test.inputs.double() * 0.3081 + 0.1307, pixels.double() / 255, atol=1e-6)
    assert test.inputs.dtype == torch.float32
    assert test.targets.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    trained = sorted(targets_of(data.fit) + targets_of(data.held))
    assert trained == sorted(arrays["train-labels-idx1-ubyte"].tolist())


def test_mnist_without_test_files(tmp_path: Path) -> None:
    write_mnist(tmp_path, test=False)
    assert Data.of(f"mnist:{tmp_path}").test is None


@pytest.mark.parametrize(
    ("number", "ending", "change", "message"),
    [
        (1, "", None, "neither train-labels-idx1-ubyte nor"),
        (3, "", None, "neither t10k-labels-idx1-ubyte nor"),
        (0, "", lambda c: b"\x00\x00\x0d\x03" + c[4:], "begins with 00000d03, not 00000803"),
        (0, "", lambda c: c[:-1], "cut off: 1 of 288 bytes"),
        (0, "", lambda c: c + b"\x00", "goes on after its"),
        (0, "", lambda c: c[:4] + b"\xff" * 12 + c[16:], "is cut off"),
        (0, "", lambda c: c[:9], "is cut off"),
        (0, "", lambda c: b"", "begins with nothing"),
        (0, "", lambda c: idx(np.zeros((0, 4, 6))), "no entries"),
        (1, "", lambda c: idx(np.zeros(11)), "12 images .* 11 labels"),
        (0, ".gz", lambda c: c, "cannot read .*gz"),
        (0, ".gz", lambda c: gzip.compress(c)[:-9], "cannot read .*gz"),
        (0, ".gz", lambda c: gzip.compress(c)[:40] + bytes(99), "cannot read .*gz"),
    ],
)
def test_damaged_mnist(
    number: int,
    ending: str,
    change: Callable[[bytes], bytes] | None,
    message: str,
    tmp_path: Path,
) -> None:
    write_mnist(tmp_path)
    path = tmp_path / NAMES[number]
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.with_name(path.name + ending).write_bytes(change(content))
    with pytest.raises(InputError, match=message):
        Data.of(f"mnist:{tmp_path}")


def pickled(images: np.ndarray, labels: list[int]) -> bytes:
    # As NumPy for Python 2 wrote it: protocol 2, keys in bytes, and the module's old name.
    content = pickle.dumps({b"data": images, b"labels": labels}, protocol=2)
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar(folder: Path, *, binary: bool = False) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(1)
    images = rng.integers(256, size=(8, 3072)).astype(np.uint8)
    labels = rng.integers(10, size=8).tolist()
    folder.mkdir(exist_ok=True)
    parts = {"data_batch_1": slice(0, 3), "data_batch_2": slice(3, 5), "test_batch": slice(5, 8)}
    for name, part in parts.items():
        if binary:
            rows = np.concatenate([np.array(labels[part])[:, None], images[part]], 1)
            (folder / f"{name}.bin").write_bytes(rows.astype(np.uint8).tobytes())
        else:
            # Arrays that lie column by column are written so.
            array = np.asfortranarray(images[part]) if name == "data_batch_2" else images[part]
            (folder / name).write_bytes(pickled(array, labels[part]))
    return images, labels


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py", "cifar-10-batches-bin"])
def test_cifar10(inner: str, binary: bool, tmp_path: Path) -> None:
    images, labels = write_cifar(tmp_path / inner, binary=binary)
    data = Data.of(f"cifar10:{tmp_path}", held=0.4)
    assert data.test is not None
    pixels = torch.tensor(images).reshape(8, 3, 32, 32).double() / 255
    mean = torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64)[:, None, None]
    deviation = torch.tensor([0.2470, 0.2435, 0.2616], dtype=torch.float64)[:, None, None]
    expected = ((pixels - mean) / deviation).float()
    assert torch.allclose(data.test.lots[0].inputs, expected[5:], atol=1e-6)
    assert data.test.lots[0].targets.tolist() == labels[5:]
    trained = torch.cat([data.fit.lots[0].inputs, data.held.lots[0].inputs]).sum((1, 2, 3))
    wanted = expected[:5].sum((1, 2, 3))
    assert torch.allclose(trained.sort().values, wanted.sort().values, atol=1e-3)


class Touch:
    """Writes a file when it is read by `pickle`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "data_batch_1"
    touch, images, labels = Touch(str(made)), np.zeros((9, 3072), np.uint8), [3] * 9
    pickle.loads(pickle.dumps(touch)).close()
    made.unlink()  # it would have worked
    beside = {b"data": images, b"labels": labels, b"more": touch}
    path.write_bytes(pickle.dumps(beside, protocol=2))
    assert set(targets_of(Data.of(f"cifar10:{tmp_path}").fit)) == {3}
    for content in (
        {b"data": touch, b"labels": labels},
        {b"data": images, b"labels": touch},
        touch,
    ):
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(InputError, match="data_batch_1 is no batch"):
            Data.of(f"cifar10:{tmp_path}")
    assert not made.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_1", b"", "data_batch_1 is no batch"),
        ("data_batch_1", b"\x80\x02garbage", "is no batch"),
        ("data_batch_1", pickled(np.zeros((2, 3072), np.uint8), [1]), "2 images for 1 labels"),
        ("data_batch_1", pickled(np.zeros((2, 3072)), [1, 2]), "no array of unsigned bytes"),
        ("data_batch_1", pickled(np.zeros((2, 3071), np.uint8), [1, 2]), "is no batch"),
        ("data_batch_1", pickled(np.zeros((2, 3072), np.uint8), [1, 2])[:-40], "is no batch"),
        ("data_batch_1", pickle.dumps([1, 2]), "is no batch"),
        ("data_batch_1.bin", bytes(3074), "3074 bytes"),
        ("data_batch_1.bin", b"", "0 bytes"),
        ("other", b"", "no data_batch_1"),
    ],
)
def test_damaged_cifar10(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        Data.of(f"cifar10:{tmp_path}")


def test_npz(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32), np.arange(10)
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=x[:3], y_test=y[:3])
    data = Data.of(str(tmp_path / "a.npz"))
    assert sorted(targets_of(data.fit) + targets_of(data.held)) == list(range(10))
    assert data.test is not None
    assert torch.equal(data.test.lots[0].inputs, torch.tensor(x[:3]))
    assert torch.equal(data.fit.lots[0].inputs, torch.tensor(x)[data.fit.lots[0].targets])
    tokens = np.arange(20).reshape(10, 2)
    np.savez(tmp_path / "b.npz", x_ids=tokens, x_mask=tokens > 3, y=tokens.astype(">i4"))
    lot = Data.of(str(tmp_path / "b.npz")).fit.lots[0]
    assert lot.inputs.keys() == {"ids", "mask"}
    assert torch.equal(lot.inputs["ids"], lot.targets)
    assert torch.equal(lot.inputs["mask"], lot.inputs["ids"] > 3)
    np.savez(tmp_path / "b.npz", x=tokens.astype(np.uint16))
    assert Data.of(tmp_path / "b.npz").fit.lots[0].inputs.dtype == torch.int64
    np.savez(tmp_path / "c.npz", x=x, x_test=x)
    assert not Data.of(str(tmp_path / "c.npz")).fit.have_targets


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "expected one array x"),
        ({}, "no arrays"),
        ({"x": np.zeros(3), "x_a": np.zeros(3)}, "or several x_NAME"),
        ({"x": np.zeros(3), "z": np.zeros(3)}, "has z; expected x and y"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, r"x and y: .*\(3,\), \(4,\)"),
        ({"x": np.zeros(3), "y_test": np.zeros(4)}, "no x_test"),
        ({"x": np.zeros(3), "x_test": np.zeros(3), "y_test": np.zeros(4)}, "x_test and y_test:"),
        ({"x": np.array(["a", "b"])}, "dtype <U1"),
        ({"x": np.array([{}, Touch("made")])}, "cannot read .*as an .npz file"),
    ],
)
def test_unusable_npz(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        Data.of(str(tmp_path / "a.npz"))


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="cannot read"):
        Data.of(str(path))
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"as an \.npz file"):
        Data.of(str(path))
    np.savez_compressed(path, x=np.arange(3000) % 7, y=np.arange(3000))
    content = path.read_bytes()
    path.write_bytes(content[:50] + b"\x00" * 40 + content[90:])
    with pytest.raises(InputError, match=r"as an \.npz file"):
        Data.of(str(path))


LOADERS = """
import os
import torch
x, y = torch.arange(6.0)[:, None], torch.arange(6)
batches = [(x[:4], y[:4]), (x[4:], y[4:])]
def pair():
    os.chdir("/")
    return x, y
def generator():
    yield from batches
class Loader:
    def __iter__(self):
        return iter(batches)
def needs(folder):
    return batches
def number():
    return 3
def text():
    return "digits"
"""


@pytest.fixture
def loaders(inside: Path) -> Path:
    (inside / "loaders_of_a_test.py").write_text(LOADERS)
    return inside


@pytest.mark.parametrize("module", ["loaders_of_a_test", "./loaders_of_a_test.py"])
@pytest.mark.parametrize("name", ["batches", "pair", "generator", "Loader"])
def test_loaders(module: str, name: str, loaders: Path) -> None:
    data = Data.of(f"{module}:{name}")
    assert sorted(targets_of(data.fit) + targets_of(data.held)) == list(range(6))
    assert Path.cwd() == loaders


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("digit", ("digits, mnist:FOLDER", "got 'digit'")),
        ("mnist", ("names no folder", "mnist:FOLDER")),
        ("cifar10:", ("names no folder",)),
        ("mnist:none", ("none: no such folder",)),
        ("cifar10:none", ("none: no such folder",)),
        ("no_such_module:loader", ("no_such_module", "can be imported")),
        ("none.py:loader", ("none.py", "no such file")),
        ("loaders_of_a_test:nothing", ("'nothing'", "batches, pair, generator")),
        ("loaders_of_a_test:needs", ("without arguments", "pairs (x, y)")),
        ("loaders_of_a_test:number", ("got int",)),
        ("loaders_of_a_test:text", ("gives a text",)),
    ],
)
def test_unusable_texts(text: str, mentions: tuple[str, ...], loaders: Path) -> None:
    with pytest.raises(InputError) as caught:
        Data.of(text)
    for words in mentions:
        assert re.search(re.escape(words), str(caught.value))


@pytest.mark.pairs
@pytest.mark.skipif(
    "GPU_ALIGN_MNIST" not in os.environ,
    reason="GPU_ALIGN_MNIST does not name a folder with the files of MNIST",
)
def test_the_real_mnist() -> None:
    data = Data.of(f"mnist:{os.environ['GPU_ALIGN_MNIST']}")
    assert data.test is not None
    assert len(data.fit) + len(data.held) == 60_000
    assert len(data.test) == 10_000
    assert data.test.lots[0].targets[:5].tolist() == [7, 2, 1, 0, 4]
    pixels = torch.cat([data.fit.lots[0].inputs, data.held.lots[0].inputs])
    assert abs(float(pixels.mean())) < 1e-3
    assert float(pixels.std()) == pytest.approx(1, abs=1e-3)
