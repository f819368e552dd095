"""`gpu-align merge`: what it tries, what it writes, and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from marks import slow
from safetensors import safe_open
from torch import Tensor
from trained_digits import CNN, DIGITS, MLP, SHAPE, nets
from typer.testing import CliRunner, Result

from gpu_align import Permutation, chain_spec, load_checkpoint, save_checkpoint
from gpu_align._cli import _options
from gpu_align._cli._main import app
from gpu_align._merge import WAYS
from gpu_align._network import Data, evaluate

Cli = Callable[..., Result]

FEW = ("--search", "descent", "--device", "cpu")


@pytest.fixture
def cli() -> Cli:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["merge", *map(str, arguments)])

    return run


def tensors(path: str) -> dict[str, Tensor]:
    return dict(load_checkpoint(path).tensors)


def pair(name: str) -> tuple[str, str]:
    return f"{name}0.safetensors", f"{name}1.safetensors"


def test_options_name_what_there_is() -> None:
    assert (*_options.PLAIN, *_options.ON_DATA) == WAYS


@pytest.mark.parametrize("name", slow(["mlp", "cnn"], but=["cnn"]))
def test_what_is_written_has_the_loss_that_is_told(
    cli: Cli, trained_folder: Path, name: str
) -> None:
    inputs = {file: Path(file).read_bytes() for file in pair(name)}
    model = ("--model", f"nets.py:{name}", *SHAPE)
    found = cli(*pair(name), "-o", "out.safetensors", *model, *DIGITS, *FEW, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    chosen, trials = document["chosen"], document["trials"]
    assert document["networks"] == list(pair(name))
    assert document["written"] == {"out": "out.safetensors"}
    assert [trial["order"] for trial in trials[:2]] == list(pair(name))
    assert chosen["loss"] == min(trial["loss"] for trial in trials if trial["method"])
    data = Data.of("digits")
    assert data.test is not None
    assert [row["network"] for row in document["test"]] == [*pair(name), "merged"]
    for part, told in ((data.held, chosen), (data.test, document["test"][-1])):
        score = evaluate(nets()[name](), tensors("out.safetensors"), part, device="cpu")
        assert score.loss == pytest.approx(told["loss"], rel=1e-5)
        assert score.accuracy == pytest.approx(told["accuracy"])
    assert {file: Path(file).read_bytes() for file in pair(name)} == inputs


def test_table_marks_the_chosen_way_and_the_result_is_kept(cli: Cli, trained_folder: Path) -> None:
    found = cli(*pair("cnn"), "-o", "out.pt", "--json-file", "r.json", *CNN, *DIGITS, *FEW)
    assert found.exit_code == 0, found.output
    document = json.loads(Path("r.json").read_text(encoding="utf-8"))
    chosen = document["chosen"]
    [marked] = [line for line in found.stdout.splitlines() if line.strip().startswith("*")]
    for words in (chosen["order"], chosen["method"], f"{chosen['loss']:.4f}"):
        assert words in marked
    for trial in document["trials"]:
        assert f"{trial['loss']:.4f}" in found.stdout
    assert f"{chosen['examples']} held-back examples" in found.stdout
    assert "on 450 test examples" in found.stdout
    assert "wrote merged checkpoint: out.pt" in found.stdout
    assert torch.load("out.pt").keys() == tensors("cnn0.safetensors").keys()


def permuted_copy(name: str, to: str) -> None:
    """Write a network with its units in another order; it computes the same."""
    state = tensors(f"{name}.safetensors")
    permutation = Permutation.random(chain_spec(state), seed=5)
    save_checkpoint(to, permutation.apply(state))


@pytest.mark.parametrize(
    "options",
    slow(
        [(), ("--method", "slerp"), ("--method", "refit", *MLP, *DIGITS), (*MLP, *DIGITS)],
        but=[(), (*MLP, *DIGITS)],
    ),
    ids=["average", "slerp", "refit", "auto"],
)
def test_a_network_and_its_permuted_copy_give_the_network_back(
    cli: Cli, trained_folder: Path, options: tuple[str, ...]
) -> None:
    permuted_copy("mlp0", "copy.safetensors")
    found = cli("mlp0.safetensors", "copy.safetensors", "-o", "out.safetensors", *options, *FEW)
    assert found.exit_code == 0, found.output
    before, after = tensors("mlp0.safetensors"), tensors("out.safetensors")
    assert list(before) == list(after)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6)


def test_outputs_are_like_the_first_network(cli: Cli, trained_folder: Path) -> None:
    torch.save({"epoch": 7, "state_dict": tensors("mlp0.safetensors")}, "whole.pt")
    found = cli("whole.pt", "mlp1.safetensors", "-o", "out.pt", *FEW)
    assert found.exit_code == 0, found.output
    assert torch.load("out.pt")["epoch"] == 7
    found = cli("mlp1.safetensors", "whole.pt", "-o", "out", *FEW)
    assert found.exit_code == 0, found.output
    with safe_open("out", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_same_seed_gives_the_same_bytes(cli: Cli, trained_folder: Path) -> None:
    for out in ("a.safetensors", "b.safetensors"):
        options = ("--seed", "3", *CNN, *DIGITS, *FEW)
        assert cli(*pair("cnn"), "-o", out, *options).exit_code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_weights_and_naive_are_the_plain_mean(cli: Cli, trained_folder: Path) -> None:
    found = cli(*pair("mlp"), "-o", "o.pt", "--method", "naive", "--weights", "1,3", "--quiet")
    assert (found.exit_code, found.stdout) == (0, "")
    a, b = map(tensors, pair("mlp"))
    for key, value in tensors("o.pt").items():
        torch.testing.assert_close(value, a[key] / 4 + 3 * b[key] / 4)


def test_without_data_a_warning_is_given(cli: Cli, trained_folder: Path) -> None:
    found = cli(*pair("mlp"), "-o", "out.pt", *FEW, "--json")
    assert found.exit_code == 0, found.output
    assert "a lower distance can be a higher loss" in " ".join(found.stderr.split())
    assert "plain chain of layers" in found.stderr
    document = json.loads(found.stdout)
    assert document["chosen"]["loss"] is None
    assert len(document["warnings"]) == 2


def test_networks_are_called_by_their_files_where_these_differ(
    cli: Cli, trained_folder: Path
) -> None:
    Path("a").mkdir()
    permuted_copy("mlp0", "a/mlp1.safetensors")
    options = ("--json", "-o", "out.pt", *MLP, *DIGITS, "--method", "naive")
    for paths, names in (
        (("mlp0.safetensors", "a/mlp1.safetensors"), ["mlp0.safetensors", "mlp1.safetensors"]),
        (("mlp1.safetensors", "a/mlp1.safetensors"), ["mlp1.safetensors", "a/mlp1.safetensors"]),
    ):
        document = json.loads(cli(*paths, *options).stdout)
        assert [trial["order"] for trial in document["trials"][:2]] == names
        assert document["networks"] == list(paths)


def test_three_networks_share_one_order(cli: Cli, trained_folder: Path) -> None:
    permuted_copy("mlp1", "copy.safetensors")
    found = cli(*pair("mlp"), "copy.safetensors", "-o", "out.pt", *MLP, *DIGITS, *FEW, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["cycle_error"] == 0
    assert document["weights"] == pytest.approx([1 / 3] * 3)


BOTH = ("mlp0.safetensors", "mlp1.safetensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mlp0.safetensors", "-o", "o.pt"), "two or more networks"),
        (("mlp0.safetensors", "cnn0.safetensors", "-o", "o.pt"), "one architecture"),
        ((*BOTH, "-o", "mlp0.safetensors"), "overwrite an input"),
        ((*BOTH, "-o", "mlp1.safetensors"), "overwrite an input"),
        ((*BOTH, "-o", "none/o.pt"), "does not exist"),
        ((*BOTH, "-o", "o.pt", "--json-file", "o.txt"), "unknown extension"),
        ((*BOTH, "-o", "o.pt", "--method", "magic"), "expected one of auto"),
        ((*BOTH, "-o", "o.pt", "--method", "refit"), "pass data"),
        ((*BOTH, "-o", "o.pt", "--data", "digits"), "--model"),
        ((*BOTH, "-o", "o.pt", "--data", "gone.npz", *MLP), "gone.npz"),
        ((*BOTH, "-o", "o.pt", "--data", "nothing", *MLP), "expected data as"),
        ((*BOTH, "-o", "o.pt", *DIGITS, *MLP, "--loss", "l1"), "l1"),
        ((*BOTH, "-o", "o.pt", "--weights", "one,two"), "--weights"),
        ((*BOTH, "-o", "o.pt", "--weights", "1,2,3"), "expected 2 weights"),
        ((*BOTH, "-o", "o.pt", "--search", "luck"), "--search"),
        (("gone.pt", "mlp0.safetensors", "-o", "o.pt"), "gone.pt"),
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


@pytest.mark.parametrize(
    "step", ["gpu_align.CoordinateDescent.step", "gpu_align._cli._merging.save_checkpoint"]
)
def test_ctrl_c_ends_with_1_and_writes_nothing(
    cli: Cli, trained_folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupted)
    found = cli(*pair("mlp"), "-o", "out.pt", "--json-file", "r.json", *FEW)
    assert found.exit_code == 1
    assert "interrupted" in found.output
    assert not Path("out.pt").exists()
    assert not Path("r.json").exists()
