"""Bad input on the command line: one message with a remedy, exit code 2, no file left behind."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from gpu_align import Permutation, chain_spec, save_checkpoint
from gpu_align._align import Model
from gpu_align._cli import _outputs, _pair
from gpu_align._cli._main import app
from gpu_align._symmetry import Comparison

State = dict[str, torch.Tensor]

MODELS = """
import os
import random
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def wide():
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))

def needs_width(width):
    return mlp()

def raises():
    raise RuntimeError("no [bold]weights[/bold]")

def leaves():
    raise SystemExit(0)

def returns_number():
    return 3

number = 3

def noisy():
    print("from the factory")
    os.chdir("/")
    return mlp()

class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x) * random.random()

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        raise ValueError("[red]broken[/red]")
"""
PAIR = ("align", "1.safetensors", "0.safetensors")
OUT = ("-o", "new.safetensors")


def mlp_state(seed: int, width: int = 8) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "0.weight": torch.randn(width, 6, generator=generator),
        "0.bias": torch.randn(width, generator=generator),
        "2.weight": torch.randn(3, width, generator=generator),
        "2.bias": torch.randn(3, generator=generator),
    }


@pytest.fixture
def folder(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two good checkpoints and some models; we are in it."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    (inside / "nets.py").write_text(MODELS, encoding="utf-8")
    for number in (0, 1):
        save_checkpoint(inside / f"{number}.safetensors", mlp_state(number))
    return inside


def assert_refused(folder: Path, arguments: tuple[str, ...], *mentions: str, code: int = 2) -> None:
    """Run a command and check its message, its exit code, and that no file has changed."""

    def content() -> dict[Path, bytes | None]:
        paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
        return {path: path.read_bytes() if path.is_file() else None for path in paths}

    before = content()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "error" in result.stderr.lower()
    for text in mentions:
        assert text in result.stderr
    assert content() == before


def without_key(state: State) -> None:
    del state["0.bias"]


def with_key(state: State) -> None:
    state["2.running_mean"] = torch.zeros(3)


def with_nan(state: State) -> None:
    state["0.weight"][1, 2] = torch.nan


def with_infinity(state: State) -> None:
    state["2.bias"][0] = torch.inf


def with_integers(state: State) -> None:
    state["0.weight"] = state["0.weight"].to(torch.int64)


def with_other_width(state: State) -> None:
    state.update(mlp_state(5, width=10))


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (without_key, ("source", "missing: '0.bias'", "check that both")),
        (with_key, ("source", "unexpected: '2.running_mean'", "check that both")),
        (with_nan, ("source", "'0.weight' has 1 NaN", "training")),
        (with_infinity, ("source", "'2.bias' has 1 NaN or infinite", "training")),
        (with_integers, ("source", "'0.weight'", "int64", "floating point")),
        (with_other_width, ("source", "[10, 6]", "[8, 6]", "check that both")),
    ],
)
def test_unfit_source(
    change: Callable[[State], None], mentions: tuple[str, ...], folder: Path
) -> None:
    state = mlp_state(1)
    change(state)
    save_checkpoint("1.safetensors", state)
    assert_refused(folder, (*PAIR, *OUT), *mentions)


class _Code:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("code_was_run",)


def empty(path: Path) -> None:
    save_file({}, path)


def truncated(path: Path) -> None:
    save_checkpoint(path, mlp_state(0))
    path.write_bytes(path.read_bytes()[:-40])


def text(path: Path) -> None:
    path.write_text("[bold]not weights[/bold]" * 10, encoding="utf-8")


def code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": _Code()}, protocol=2))


def saved_code(path: Path) -> None:
    torch.save({"weight": _Code()}, path)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "name", "mentions"),
    [
        (empty, "bad.safetensors", ("no tensors", "choose")),
        (truncated, "bad.safetensors", ("whole safetensors file", "copy or download")),
        (text, "bad.safetensors", ("JSON text", "name the weights")),
        (nothing, "bad.safetensors", ("empty", "copy it again")),
        (code, "bad.pt", ("plain pickle", "state_dict()")),
        (saved_code, "bad.pt", ("need code", "never executed", "state_dict()")),
        (text, "bad.pth", ("torch.save", "JSON text")),
        (text, "bad.onnx", ("expected a safetensors file", "JSON text")),
    ],
)
@pytest.mark.parametrize("role", ["source", "target", "inspect", "apply"])
def test_unreadable_checkpoint(
    make: Callable[[Path], None], name: str, mentions: tuple[str, ...], role: str, folder: Path
) -> None:
    make(Path(name))
    commands = {
        "source": ("align", name, "0.safetensors", *OUT),
        "target": ("align", "0.safetensors", name, *OUT),
        "inspect": ("inspect", name),
        "apply": ("apply", name, "p.safetensors", *OUT),
    }
    assert_refused(folder, commands[role], name, *mentions)
    assert not Path("code_was_run").exists()


def test_missing_and_vague_paths(folder: Path) -> None:
    assert_refused(folder, ("align", "none.safetensors", "0.safetensors"), "no such file", "check")
    (folder / "empty").mkdir()
    assert_refused(folder, ("align", "empty", "0.safetensors"), "empty", "name the file")


@pytest.mark.parametrize(
    ("option", "suffix"),
    [
        ("-o", ".safetensors"),
        pytest.param("--permutation", ".safetensors", marks=pytest.mark.slow),
        pytest.param("--json-file", ".json", marks=pytest.mark.slow),
        ("--report", ".html"),
    ],
)
def test_outputs_are_checked_before_the_search(
    option: str, suffix: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*args: object, **kwargs: object) -> None:
        raise AssertionError("the search has started")

    monkeypatch.setattr(_pair, "align_networks", searched)
    (folder / f"folder{suffix}").mkdir()
    for path, mentions in {
        f"none/x{suffix}": ("does not exist", "create it first"),
        f"0.safetensors/x{suffix}": ("is a file", "another path"),
        f"folder{suffix}": ("is a folder", "inside it"),
        "x.onnx": ("unknown extension", suffix),
        **({} if option == "-o" else {"x": ("no extension", suffix)}),
    }.items():
        assert_refused(folder, (*PAIR, option, path), path, *mentions)
    monkeypatch.setattr(_outputs.os, "access", lambda path, mode: not mode & os.W_OK)
    assert_refused(folder, (*PAIR, option, f"x{suffix}"), "not writable", "choose another")


def test_inputs_are_not_overwritten(folder: Path) -> None:
    message = ("would overwrite an input", "choose another path")
    assert_refused(folder, (*PAIR, "-o", "0.safetensors"), *message)
    assert_refused(folder, (*PAIR, "--permutation", "1.safetensors"), *message)
    assert_refused(folder, (*PAIR, *OUT, "--permutation", "new.safetensors"), "paths of their own")


def test_what_the_format_would_lose_is_known_before_the_search(folder: Path) -> None:
    torch.save({"state_dict": mlp_state(1), "epoch": 3}, "1.pt")
    arguments = ("align", "1.pt", "0.safetensors", *OUT, "--seconds", "600")
    assert_refused(folder, arguments, '"epoch"', "choose a .pt output")


@pytest.mark.parametrize(
    ("model", "mentions"),
    [
        ("nets:needs_width", ("needs_width", "without arguments", "missing 1 required")),
        ("nets:raises", ("no [bold]weights[/bold]", "nets.py, line 17", "without arguments")),
        ("nets:leaves", ("SystemExit", "without arguments")),
        ("nets:returns_number", ("returns_number", "got int", "return the model itself")),
        ("nets:number", ("nets:number", "not a function or class")),
        ("nets:nothing", ("'nothing'", "needs_width")),
        ("no_such_module:mlp", ("no_such_module", "can be imported")),
        ("none.py:mlp", ("none.py", "no such file")),
        ("nets", ("package.module:factory", "'nets'")),
        ("none.pt2", ("none.pt2", "no such file")),
        ("0.safetensors.pt2", ("exported program", "torch.export.save")),
        ("nets:Broken", ("[red]broken[/red]", "pass inputs")),
        ("nets:wide", ("target does not fit", "[8, 6]", "[9, 6]", "check that both")),
    ],
)
def test_unusable_model(model: str, mentions: tuple[str, ...], folder: Path) -> None:
    Path("0.safetensors.pt2").write_bytes(Path("0.safetensors").read_bytes())
    arguments = (*PAIR, *OUT, "--model", model, "--input-shape", "2,6")
    assert_refused(folder, arguments, *mentions)


def test_module_that_cannot_be_imported(folder: Path) -> None:
    Path("wrong.py").write_text("\nimport does_not_exist\n", encoding="utf-8")
    arguments = (*PAIR, "--model", "wrong.py:mlp", "--input-shape", "2,6")
    assert_refused(folder, arguments, "does_not_exist", "wrong.py, line 2", "imported")


@pytest.mark.parametrize(
    ("shape", "mentions"),
    [
        ("2,5", ("forward fails", "2x5", "pass inputs")),
        ("2,x", ("'2,x'", "2,1,28,28")),
        ("", ("''", "2,1,28,28")),
        ("0,6", ("'0,6'", "2,1,28,28")),
        ("2,6:float8", ("'2,6:float8'", "bfloat16")),
        ("2,6:int64", ("number of tokens", "2,6:int64:100")),
        ("2,6:int64:0", ("number of tokens", "2,6:int64:100")),
        ("2,6:float32:7", ("only integers",)),
    ],
)
def test_unusable_input_shape(shape: str, mentions: tuple[str, ...], folder: Path) -> None:
    arguments = (*PAIR, *OUT, "--model", "nets:mlp", "--input-shape", shape)
    assert_refused(folder, arguments, *mentions)


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("--model", "nets:mlp"), ("--input-shape", "2,1,28,28")),
        (("--input-shape", "2,6"), ("--model", "add it")),
        (("--search", "magic"), ("'magic'", "portfolio", "annealing")),
        (("--search", "annealing", "--width", "3"), ("--width", "annealing", "layerwise")),
        (("--starts", "3"), ("--starts", "portfolio", "descent")),
        (("--metric", "l7"), ("'l7'", "normalized")),
        (("--device", "tpu"), ("'tpu'", "cuda")),
        (("--seconds", "-1"), ("seconds above 0",)),
        (("--seconds", "nan"), ("seconds above 0",)),
        (("--spec", "none.json"), ("none.json", "--save-spec")),
        (("--spec", "nets.py"), ("nets.py", "JSON")),
    ],
)
def test_unusable_options(
    options: tuple[str, ...], mentions: tuple[str, ...], folder: Path
) -> None:
    assert_refused(folder, (*PAIR, *OUT, *options), *mentions)


@pytest.mark.parametrize("options", [("--width", "0"), ("--seed", "-1"), ("--no-such-option",)])
def test_usage_errors(options: tuple[str, ...], folder: Path) -> None:
    assert_refused(folder, (*PAIR, *OUT, *options), options[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_not_replaced_silently(folder: Path) -> None:
    assert_refused(folder, (*PAIR, *OUT, "--device", "cuda"), "cuda", "--device")


def test_networks_that_are_no_chain(folder: Path) -> None:
    state = mlp_state(0) | {"shortcut.weight": torch.zeros(3, 6)}
    save_checkpoint("branch.safetensors", state)
    message = ("'shortcut.weight'", "--model", "--input-shape")
    assert_refused(folder, ("align", "branch.safetensors", "branch.safetensors"), *message)
    assert_refused(folder, ("inspect", "branch.safetensors"), *message)


def test_spec_of_another_network(folder: Path) -> None:
    spec = chain_spec(mlp_state(0, width=9))
    Path("other.json").write_text(spec.to_json(), encoding="utf-8")
    assert_refused(folder, (*PAIR, *OUT, "--spec", "other.json"), "[8, 6]", "check that both")
    assert_refused(folder, ("inspect", "0.safetensors", "--spec", "other.json"), "[8, 6]", "check")


def test_spec_that_is_not_a_symmetry(folder: Path) -> None:
    Path("wrong.json").write_text(
        json.dumps(
            {
                "format": "gpu-align/spec",
                "version": 1,
                "groups": {"g": 8},
                "tensors": {
                    "0.weight": ["g", 6], "0.bias": ["g"], "2.weight": [3, 8], "2.bias": [3],
                },
            }
        ),
        encoding="utf-8",
    )  # fmt: skip
    model = ("--model", "nets:mlp", "--input-shape", "2,6")
    message = ("changes the outputs", "spec is of another model")
    assert_refused(folder, (*PAIR, *OUT, "--spec", "wrong.json", *model), *message)


def test_inspect_without_anything(folder: Path) -> None:
    assert_refused(folder, ("inspect",), "nothing to look at", "--model")
    assert_refused(folder, ("inspect", "x.pt2", "--model", "nets:mlp"), "leave one out")
    assert_refused(folder, ("inspect", "0.safetensors", "--save-spec", "a.txt"), ".json")


def test_apply_of_something_else(folder: Path) -> None:
    advice = "align --permutation"
    assert_refused(folder, ("apply", "0.safetensors", "1.safetensors", *OUT), advice)
    assert_refused(folder, ("apply", "0.safetensors", "none.safetensors", *OUT), advice)
    other = chain_spec(mlp_state(0, width=9))
    Permutation.identity(other).save("p.safetensors")
    assert_refused(folder, ("apply", "0.safetensors", "p.safetensors", *OUT), "[8, 6]", "check")
    assert_refused(folder, ("apply", "0.safetensors", "p.safetensors"), "--out")


def test_report_of_something_else(folder: Path) -> None:
    Path("other.json").write_text("{}", encoding="utf-8")
    advice = "align --json-file"
    assert_refused(folder, ("report", "other.json", "-o", "page.html"), "other.json", advice)
    assert_refused(folder, ("report", "none.json", "-o", "page.html"), "none.json", advice)
    assert_refused(folder, ("report", "other.json", "-o", "page.txt"), "page.txt", ".html")


def test_demo_without_scikit_learn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert_refused(folder, ("demo", "-o", "made"), "pip install 'gpu-align[demo]'")


def test_demo_into_a_file(folder: Path) -> None:
    pytest.importorskip("sklearn")
    assert_refused(folder, ("demo", "-o", "0.safetensors"), "0.safetensors", "-o")


def test_a_failed_write_keeps_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise _outputs.CheckpointError("cannot write new.safetensors: No space left on device")

    monkeypatch.setattr(_outputs, "save_checkpoint", full)
    arguments = [*PAIR, *OUT, "--permutation", "p.safetensors", "--sweeps", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "No space left" in result.stderr
    assert Permutation.load("p.safetensors").perms
    assert not Path("new.safetensors").exists()


def test_changed_function_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "compare", lambda self, before, after: Comparison(0.5))
    model = ("--model", "nets:mlp", "--input-shape", "2,6", "--sweeps", "3")
    assert_refused(folder, (*PAIR, *OUT, *model), "0.5", "nothing was written", code=1)


def test_what_a_factory_prints_and_where_it_goes_does_no_harm(folder: Path) -> None:
    arguments = (*PAIR, "--model", "nets:noisy", "--input-shape", "2,6", "--search", "descent")
    result = CliRunner().invoke(app, [*arguments, "--json", *OUT])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["function_preserved"] is True
    assert "from the factory" in result.stderr
    assert (folder / "new.safetensors").exists()


def test_models_that_are_not_deterministic_are_named(folder: Path) -> None:
    model = ("--model", "nets:Dropped", "--input-shape", "2,6")
    assert_refused(folder, ("inspect", *model), "different outputs", "make it deterministic")


def test_what_a_prefix_does_not_explain_is_named(folder: Path) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in mlp_state(1).items()}
    save_file(prefixed | {"extra.weight": torch.ones(2)}, folder / "parallel.safetensors")
    arguments = ("align", "parallel.safetensors", "0.safetensors")
    assert_refused(folder, arguments, "unexpected: 'extra.weight'")


def test_budgets_that_never_end_are_refused(folder: Path) -> None:
    assert_refused(folder, (*PAIR, "--seconds", "inf"), "finite")
