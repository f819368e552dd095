"""`gpu-align barrier`: what it prints and writes, and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from gpu_align import barrier
from gpu_align._cli import _segment
from gpu_align._cli._main import app
from gpu_align._merge import BarrierResult
from gpu_align._network import Data

Cli = Callable[..., Result]

CODE = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

def normed():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        yield torch.randn(10, 6, generator=generator), torch.arange(10) % 3

def wrong(outputs, targets):
    return (outputs.argmax(1) != targets).double().mean()
"""
FEW = ("--points", "3", "--search", "descent", "--device", "cpu")
MODEL = ("--model", "code.py:normed", "--input-shape", "4,6")


@pytest.fixture
def folder(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two pairs of checkpoints, their models and data; we are in it."""
    monkeypatch.setenv("COLUMNS", "120")
    Path("code.py").write_text(CODE, encoding="utf-8")
    for seed in (0, 1):
        torch.manual_seed(seed)
        layers = (nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        torch.save(nn.Sequential(*layers).state_dict(), f"n{seed}.pt")
        layers = (nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
        torch.save(nn.Sequential(*layers).state_dict(), f"m{seed}.pt")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(90, 6)).astype(np.float32)
    np.savez("d.npz", x=x[:60], y=np.arange(60) % 3, x_test=x[60:], y_test=np.arange(30) % 3)
    return inside


@pytest.fixture
def cli() -> Cli:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["barrier", *map(str, arguments)])

    return run


def test_numbers_are_those_of_the_library(cli: Cli, folder: Path) -> None:
    outputs = ("--json-file", "r.json", "--report", "r.html")
    found = cli("n0.pt", "n1.pt", "--data", "d.npz", *MODEL, *FEW, *outputs, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert (document["a"], document["b"]) == ("n0.pt", "n1.pt")
    assert document["written"] == {"json_file": "r.json", "report": "r.html"}
    written = BarrierResult.from_json(json.loads(Path("r.json").read_text()))
    assert written.to_json() == {k: document[k] for k in written.to_json()}
    layers = (nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    here = barrier(
        *("n0.pt", "n1.pt", Data.of("d.npz")),
        model=nn.Sequential(*layers),
        points=3,
        search="descent",
        device="cpu",
    )
    assert here.curves == written.curves
    assert (written.part, written.examples) == ("test", 30)
    page = Path("r.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html")
    assert "Barrier of n0.pt and n1.pt" in page


def test_text_names_every_curve(cli: Cli, folder: Path) -> None:
    found = cli("n0.pt", "n1.pt", "--data", "code.py:batches", *MODEL, *FEW, "--plane", 3)
    assert found.exit_code == 0, found.output
    for words in ("as given", "aligned", "statistics", "re-estimated", "midpoint loss", "ECE"):
        assert words in found.stdout
    assert "held-back examples" in found.stdout
    assert "nothing was written" in found.stdout


def test_digits_are_measured_as_the_model_takes_them(cli: Cli, folder: Path) -> None:
    pytest.importorskip("sklearn")
    model = ("--model", "code.py:mlp", "--input-shape", "2,1,8,8")
    found = cli("m0.pt", "m1.pt", "--data", "digits", *model, *FEW, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["part"] == "test"
    assert [curve["reestimated"] for curve in document["curves"]] == [False, False]


def test_loss_may_be_a_function_of_ones_own(cli: Cli, folder: Path) -> None:
    found = cli(
        "n0.pt", "n1.pt", "--data", "d.npz", *MODEL, *FEW, "--loss", "code.py:wrong", "--json"
    )
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["loss"] == "wrong"
    for curve in document["curves"]:
        np.testing.assert_allclose(curve["losses"], 1 - np.asarray(curve["accuracies"]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "d.npz"), "--model"),
        (("--data", "d.npz", *MODEL, "--loss", "l1"), "l1"),
        (("--data", "d.npz", *MODEL, "--loss", "code.py:CODE"), "no 'CODE'"),
        (("--data", "nothing", *MODEL), "expected data as"),
        (("--data", "d.npz", *MODEL, "--report", "r.pdf"), "unknown extension"),
        (("--data", "d.npz", *MODEL, "--report", "none/r.html"), "does not exist"),
        (("--data", "d.npz", *MODEL, "--search", "luck"), "expected one of"),
        (("--data", "d.npz", "--model", "code.py:mlp", "--input-shape", "2,1,8,8"), "shape"),
    ],
)
def test_bad_input_ends_with_2(
    cli: Cli, folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    found = cli("n0.pt", "n1.pt", *arguments, *(a for a in FEW if "--search" not in arguments))
    assert found.exit_code == 2, found.output
    assert words in " ".join(found.output.split())


def test_networks_of_two_architectures_end_with_2(cli: Cli, folder: Path) -> None:
    found = cli("n0.pt", "m1.pt", "--data", "d.npz", *MODEL, *FEW)
    assert found.exit_code == 2, found.output


def test_ctrl_c_ends_with_1_and_writes_nothing(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_segment, "measure_barrier", interrupted)
    found = cli("n0.pt", "n1.pt", "--data", "d.npz", *MODEL, *FEW, "--json-file", "r.json")
    assert found.exit_code == 1
    assert "interrupted" in found.output
    assert not Path("r.json").exists()
