"""`gpu-align align --search ste --data`: searches that follow the loss of networks on data."""

import json
import sys
from pathlib import Path

import pytest
from torch import Tensor
from trained_digits import MLP, trained_pairs, write_files
from typer.testing import CliRunner

from gpu_align._cli._main import app

PAIR = ("align", "mlp1.safetensors", "mlp0.safetensors", "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    pytest.importorskip("sklearn")
    return trained_pairs()


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: dict[str, dict[str, Tensor]]
) -> Path:
    """A folder with two trained checkpoints and their models; we are in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_files(tmp_path, states)
    return tmp_path


@pytest.mark.parametrize("search", ["ste", "sinkhorn"])
def test_a_search_follows_the_data(folder: Path, search: str) -> None:
    options = ("--search", search, "--data", "digits", *MLP, "--steps", "3")
    done = CliRunner().invoke(app, [*PAIR, *options])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["function_preserved"]
    assert any(step.get("loss") is not None for step in found["history"])


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "needs these; add --data"), (("--data", "digits"), "--model")],
)
def test_what_it_needs_is_said(folder: Path, options: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, [*PAIR, "--search", "ste", *options])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
