"""Commands that end with an error before their work begins leave nothing behind."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gpu_align._cli._main import app

IMAGES = np.random.default_rng(0).random((8, 4, 4), dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with inputs that cannot be used."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").write_text("")
    (tmp_path / "bad.tar").write_text("no archive")
    with tarfile.open(tmp_path / "nothing.tar", "w"):
        pass
    for name, labels in (("one_class", 0 * np.arange(8)), ("negative", np.arange(8) - 4)):
        parts = {"x": IMAGES, "y": labels, "x_test": IMAGES, "y_test": labels}
        np.savez(tmp_path / f"{name}.npz", **parts)
    np.savez(tmp_path / "no_test.npz", x=IMAGES, y=np.arange(8) % 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LEARN = [
    ("classify --data missing.npz", "cannot read missing.npz"),
    ("classify --data one_class.npz", "at least two classes"),
    ("classify --data negative.npz", "numbered from 0, got -4"),
    ("classify --data no_test.npz", "with a test part"),
    ("classify --hidden 8,", "such as 16,16"),
    ("classify --w0 0", "a frequency w0 above 0"),
    ("classify --device tpu", "expected a device"),
    ("adapt --data missing", "expected data as"),
    ("adapt --data no_test.npz", "with a test part"),
    ("adapt --shift fog", "among rotate, blur, noise"),
    ("adapt --shift blur --amount -1", "an amount of blur from 0 on"),
    ("predict --data no_test.npz", "with a test part"),
    ("regress --device tpu", "expected a device"),
    ("regress --zoo a_file/zoo", "is a file"),
    ("embed --device tpu", "expected a device"),
]
ALIGNER = [
    ("--data missing.npz", "cannot read missing.npz"),
    ("--data digits --loss nope", "expected a loss among"),
    ("--data digits --held 1", "expected a share within 0 .. 1"),
    ("--data digits --rate -1", "a learning rate above 0"),
    ("--data digits --hidden 8,", "such as 32,32"),
]
ZOO = [
    ("align missing --out out", "missing"),
    ("align empty --out out", "has no checkpoints"),
    ("align bad.tar --out out", "the archive is damaged"),
    ("align nothing.tar --out out", "has no checkpoints"),
    ("align empty --out out --report none/x.html", "does not exist"),
    ("make out --data missing.npz", "missing.npz"),
    ("make out --kind forest", "siren or classifier"),
]
COMMANDS = [
    *((f"learn {words} --out out", said) for words, said in LEARN),
    *((f"learn aligner out --train 4 {words} -o a.safetensors", said) for words, said in ALIGNER),
    *((f"zoo {words}", said) for words, said in ZOO),
]


@pytest.mark.parametrize(("words", "said"), COMMANDS)
def test_bad_input_leaves_no_folder(words: str, said: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split())
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_was_there_stays(folder: Path) -> None:
    (folder / "out").mkdir()
    done = CliRunner().invoke(app, ["zoo", "align", "bad.tar", "--out", "out"])
    assert done.exit_code
    assert list((folder / "out").iterdir()) == []


@pytest.mark.parametrize("task", ["classify", "regress"])
def test_an_output_below_a_file_is_refused_at_once(task: str, folder: Path) -> None:
    done = CliRunner().invoke(app, ["learn", task, "--out", "a_file/out"])
    assert done.exit_code == 2
    assert "cannot make a_file/out: a_file is a file" in " ".join(done.stderr.split())
