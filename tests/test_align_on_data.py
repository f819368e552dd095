"""`gpu-align align --search ste --data`: searches that follow the loss of networks on data."""

import json
from pathlib import Path

import pytest
from trained_digits import MLP
from typer.testing import CliRunner

from gpu_align._cli._main import app

PAIR = ("align", "mlp1.safetensors", "mlp0.safetensors", "--device", "cpu", "--json")


@pytest.mark.parametrize("search", ["ste", "sinkhorn"])
def test_a_search_follows_the_data(trained_folder: Path, search: str) -> None:
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
def test_what_it_needs_is_said(trained_folder: Path, options: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, [*PAIR, "--search", "ste", *options])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
