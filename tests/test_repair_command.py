"""`gpu-align repair`: what it sets right, what it writes, and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trained_digits import CNN, DIGITS, MLP, nets
from typer.testing import CliRunner, Result

from gpu_align import load_checkpoint, merge
from gpu_align._cli import _options
from gpu_align._cli._main import app
from gpu_align._merge._calibration import METHODS
from gpu_align._network import Data, evaluate

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def trained_states(trained_states: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    found = dict(trained_states)
    for name in ("mlp", "cnn"):
        pair = [found[f"{name}{seed}"] for seed in range(2)]
        found[f"{name}_mean"] = dict(merge(pair, method="naive").state_dict)
    return found


@pytest.fixture
def cli() -> Cli:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["repair", *map(str, arguments), "--device", "cpu"])

    return run


def tensors(path: str) -> dict[str, Tensor]:
    return dict(load_checkpoint(path).tensors)


def parents(name: str) -> tuple[str, ...]:
    return tuple(word for n in range(2) for word in ("--parents", f"{name}{n}.safetensors"))


def test_options_name_what_there_is() -> None:
    assert tuple(METHODS) == _options.MENDING


@pytest.mark.parametrize(
    ("name", "options", "method"),
    [
        ("cnn", CNN, "norms"),
        ("cnn", (*CNN, *parents("cnn")), "repair"),
        ("mlp", (*MLP, *parents("mlp"), "--method", "refit"), "refit"),
    ],
)
def test_what_is_written_has_the_loss_that_is_told(
    cli: Cli, trained_folder: Path, name: str, options: tuple[str, ...], method: str
) -> None:
    mean = f"{name}_mean.safetensors"
    given = Path(mean).read_bytes()
    found = cli(mean, "-o", "out.safetensors", *DIGITS, *options, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["method"] == method
    assert document["after"]["loss"] < document["before"]["loss"]
    held = Data.of("digits").held
    for part, path in (("before", mean), ("after", "out.safetensors")):
        score = evaluate(nets()[name](), tensors(path), held, device="cpu")
        assert score.loss == pytest.approx(document[part]["loss"], rel=1e-5)
        assert score.accuracy == pytest.approx(document[part]["accuracy"])
    assert Path(mean).read_bytes() == given


def test_norms_change_statistics_and_nothing_else(cli: Cli, trained_folder: Path) -> None:
    options = (*CNN, "--data", "digits", "--examples", 200)
    found = cli("cnn_mean.safetensors", "-o", "out.pt", *options)
    assert found.exit_code == 0, found.output
    before, after = tensors("cnn_mean.safetensors"), tensors("out.pt")
    assert before.keys() == after.keys()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {f"{n}.running_{what}" for n in (1, 4) for what in ("mean", "var")}
    images = Data.of("digits").fit.take(200).lots[0].inputs
    layer = nets()["cnn"]()[0]
    layer.load_state_dict({key: before[f"0.{key}"] for key in ("weight", "bias")})
    values = layer(images).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(after["1.running_mean"], values.mean(1), rtol=1e-4, atol=1e-5)


def test_text_tells_the_loss_before_and_after(cli: Cli, trained_folder: Path) -> None:
    options = (*MLP, *DIGITS, *parents("mlp"))
    found = cli("mlp_mean.safetensors", "-o", "out.pt", *options)
    assert found.exit_code == 0, found.output
    for words in ("repair", "before", "after", "held-back", "wrote repaired checkpoint: out.pt"):
        assert words in found.stdout
    quiet = cli("mlp_mean.safetensors", "-o", "out.pt", *options, "--quiet")
    assert (quiet.exit_code, quiet.stdout) == (0, "")


def test_a_network_that_is_its_own_parent_stays(cli: Cli, trained_folder: Path) -> None:
    own = "mlp0.safetensors"
    for method in ("repair", "rescale", "refit", "refit-parents"):
        options = ("--parents", own, "--method", method, *MLP, *DIGITS)
        assert cli(own, "-o", "out.safetensors", *options).exit_code == 0
        for key, value in tensors("out.safetensors").items():
            torch.testing.assert_close(value, tensors(own)[key], rtol=1e-5, atol=1e-6)


MEAN = "mlp_mean.safetensors"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((MEAN, "-o", "o.pt", *DIGITS), "--model"),
        ((MEAN, "-o", MEAN, *DIGITS, *MLP), "overwrite an input"),
        ((MEAN, "-o", "mlp0.safetensors", *DIGITS, *MLP, *parents("mlp")), "overwrite an input"),
        ((MEAN, "-o", "o.pt", *DIGITS, *MLP, "--method", "magic"), "expected one of norms"),
        ((MEAN, "-o", "o.pt", *DIGITS, *MLP, "--method", "refit"), "parents"),
        ((MEAN, "-o", "o.pt", *DIGITS, *MLP, *parents("cnn")), "one architecture"),
        ((MEAN, "-o", "o.pt", *MLP), "--data"),
        ((MEAN, "-o", "o.pt", "--data", "gone.npz", *MLP), "gone.npz"),
        ((MEAN, "-o", "o.pt", *DIGITS, *MLP, *parents("mlp"), "--weights", "1"), "2 weights"),
        ((MEAN, "-o", "o.pt", *DIGITS, *CNN), "shape"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(
    cli: Cli, trained_folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    before = {path: path.read_bytes() for path in Path().iterdir()}
    found = cli(*arguments, "--json")
    assert found.exit_code == 2, found.output
    assert words in " ".join(json.loads(found.stdout)["error"].split())
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_ctrl_c_ends_with_1_and_writes_nothing(
    cli: Cli, trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpu_align._merge._calibration.recalibrate", interrupted)
    found = cli("cnn_mean.safetensors", "-o", "out.pt", *CNN, *DIGITS)
    assert found.exit_code == 1
    assert "interrupted" in found.output
    assert not Path("out.pt").exists()
