"""gpu-align zoo: from a fresh folder to an aligned zoo, its page, and what failed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from zoos import planted, state, write_folder

from gpu_align import ZooAlignment, save_checkpoint
from gpu_align._cli._main import app
from gpu_align.learn import load_zoo

Cli = Callable[..., Result]
REFERENCE = state(0, 5, 6, 2)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, inside: Path) -> Cli:
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["zoo", *(str(argument) for argument in arguments)])

    return run


def test_a_zoo_is_made_looked_at_and_aligned_like_its_source(cli: Cli, tmp_path: Path) -> None:
    made = cli("make", "zoo", "--networks", 12, "--hidden", "6,6", "--steps", 5)
    assert made.exit_code == 0, made.output
    seen = cli("inspect", "zoo", "--json")
    assert json.loads(seen.stdout)["models"] == 12
    found = cli("align", "zoo", "-o", "out", "--layout", "same", "--workers", 1, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["aligned"] == 12
    before, after = load_zoo("zoo"), load_zoo("out/models")
    assert before.facts["label"].tolist() == after.facts["label"].tolist()
    rows = ZooAlignment.load("out").rows("facts")["facts"]
    assert [json.loads(text)["label"] for text in rows] == before.facts["label"].tolist()
    for name, weights in before.states.items():
        assert weights.flatten(1).sum(1).shape == after.states[name].flatten(1).sum(1).shape
    spread = next(iter(document["families"].values()))["spread"]
    assert sum(t["after"] for t in spread.values()) < sum(t["before"] for t in spread.values())
    whole = cli("inspect", "out")
    assert whole.exit_code == 0
    assert "12 models" in whole.stdout


def test_failures_warn_and_strict_makes_them_an_exit_code(cli: Cli, tmp_path: Path) -> None:
    _, moved = planted(4, REFERENCE)
    source = write_folder(tmp_path / "zoo", moved)
    (source / "net001.safetensors").write_bytes(b"nothing")
    save_checkpoint(tmp_path / "target.safetensors", REFERENCE)
    options = ("--target", "target.safetensors", "--workers", 1)
    found = cli("align", source, "-o", "out", *options, "--report", "page.html")
    assert found.exit_code == 0
    assert "1 of 4 models could not be aligned (1 damaged)" in found.stderr
    assert "3 of 4 models" in found.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "net001.safetensors" in page
    assert cli("align", source, "-o", "strict", *options, "--strict").exit_code == 1
    seen = cli("inspect", source)
    assert "net001.safetensors is damaged" in seen.stderr


def test_the_model_that_functions_are_compared_in_is_made_in_each_process(
    cli: Cli, tmp_path: Path
) -> None:
    text = "from torch import nn\n\n\ndef net():\n"
    text += "    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))\n"
    (tmp_path / "nets.py").write_text(text, encoding="utf-8")
    _, moved = planted(4, REFERENCE)
    source = write_folder(tmp_path / "zoo", moved)
    model = ("--model", "nets.py:net", "--input-shape", "4,5")
    found = cli("align", source, "-o", "out", *model, "--workers", 1, "--quiet")
    assert found.exit_code == 0, found.output
    differences = ZooAlignment.load("out").rows("function_difference")["function_difference"]
    assert max(differences) < 1e-9


def test_a_changed_shard_is_found(cli: Cli, tmp_path: Path) -> None:
    _, moved = planted(4, REFERENCE)
    source = write_folder(tmp_path / "zoo", moved)
    cli("align", source, "-o", "out", "--workers", 1, "--shard", 2)
    file = tmp_path / "out" / "shards" / "000001" / "models.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    seen = cli("inspect", "out")
    assert "shards/000001 is damaged: models.safetensors has changed" in seen.stderr
    assert "shards/000000 is" not in seen.stderr


def test_bad_options_are_named(cli: Cli, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "zoo", [REFERENCE])
    for arguments, message in (
        (("align", source, "-o", "out", "--layout", "x"), "layout among shards, same"),
        (("align", source, "-o", "out", "--input-shape", "2,5"), "of no use without --model"),
        (("align", "missing", "-o", "out"), "no such file or folder"),
        (("make", "made", "--kind", "x"), "siren or classifier"),
        (("make", "made", "--hidden", "x"), "numbers above 0"),
        (("make", "made", "--data", "x.npz"), "expected digits"),
        (("inspect", "missing"), "no such file or folder"),
    ):
        found = cli(*arguments)
        assert found.exit_code == 2, arguments
        assert message in found.stderr
