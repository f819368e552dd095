"""The command line on good input: what it prints, what it writes, and how it ends."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import child
from typer.testing import CliRunner, Result

from gpu_align import (
    METRICS,
    AlignmentProblem,
    Permutation,
    PermutationSpec,
    chain_spec,
    load_checkpoint,
    save_checkpoint,
)
from gpu_align._cli import _options, _pair, _terminal
from gpu_align._cli._main import app
from gpu_align._cli._searches import NAMES
from gpu_align._search import SEARCHES

Cli = Callable[..., Result]

MODELS = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner = nn.Embedding(50, 8), nn.Linear(8, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens, scale):
        return self.head(self.inner(self.embedding(tokens)).renorm(2, 2, 9.0)) * scale
"""
FEW = ("--search", "descent", "--sweeps", "4")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def folder(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two checkpoints and the model that they belong to; we are in it."""
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    (inside / "nets.py").write_text(MODELS, encoding="utf-8")
    for number in (0, 1):
        save_checkpoint(inside / f"{number}.safetensors", mlp_state(number))
    return inside


def mlp_state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0": (8, 6), "2": (8, 8), "4": (3, 8)}
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = torch.randn(shape[:1], generator=generator)
    return state


def no_leftovers(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]


def test_align_writes_everything_and_tells_so(cli: Cli, folder: Path) -> None:
    outputs = ("-o", "new.safetensors", "--permutation", "p.safetensors", "--json-file", "r.json")
    result = cli("align", "1.safetensors", "0.safetensors", *outputs, "--report", "page.html")
    assert result.exit_code == 0, result.output
    for text in ("distance before", "lower bound", "Annealing", "not checked", "new.safetensors"):
        assert text in result.stdout
    before, target = load_checkpoint("1.safetensors"), load_checkpoint("0.safetensors")
    permutation = Permutation.load("p.safetensors")
    moved = permutation.apply(before.tensors)
    written = load_checkpoint("new.safetensors")
    assert all(torch.equal(written.tensors[name], moved[name]) for name in moved)
    assert written.metadata == before.metadata
    document = json.loads(Path("r.json").read_text(encoding="utf-8"))
    problem = AlignmentProblem(before.tensors, target.tensors, permutation.spec)
    assert document["distance"] == pytest.approx(problem.distance(permutation))
    assert document["distance"] < document["distance_before"]
    assert Path("page.html").read_text(encoding="utf-8").lower().startswith("<!doctype html")
    no_leftovers(folder)


def test_json_is_one_document(cli: Cli, folder: Path) -> None:
    result = cli("align", "1.safetensors", "0.safetensors", *FEW, "--json", "-o", "n.safetensors")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert "the function was not checked" in result.stderr
    assert len(document["warnings"]) == 1
    assert document["written"] == {"out": "n.safetensors"}
    assert document["source"] == "1.safetensors"
    # What is printed is a result, so the report can be made from it.
    Path("printed.json").write_text(result.stdout, encoding="utf-8")
    assert cli("report", "printed.json", "-o", "page.html").exit_code == 0


def test_quiet_prints_warnings_only(cli: Cli, folder: Path) -> None:
    pair = ("1.safetensors", "0.safetensors", *FEW, "-q", "-o", "n.safetensors")
    result = cli("align", *pair)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("warning: the function was not checked")
    result = cli("align", *pair, "--model", "nets:mlp", "--input-shape", "2,6")
    assert (result.exit_code, result.output) == (0, "")
    assert Path("n.safetensors").exists()


def test_without_outputs_it_says_that_nothing_is_kept(cli: Cli, folder: Path) -> None:
    result = cli("align", "1.safetensors", "0.safetensors", *FEW)
    assert result.exit_code == 0
    assert "nothing was written" in result.stdout


def test_same_seed_same_file(cli: Cli, folder: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        cli("align", "1.safetensors", "0.safetensors", "--seed", "5", "-q", "-o", name)
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


ALONE = [name for name, its in SEARCHES.items() if not (its.needs_data or its.needs_aligner)]


@pytest.mark.parametrize("name", ALONE)
def test_every_search_has_a_name(name: str, cli: Cli, folder: Path) -> None:
    result = cli("align", "1.safetensors", "0.safetensors", "--search", name, "--json")
    document = json.loads(result.stdout)
    assert document["distance"] <= document["distance_before"]
    assert document["lower_bound"] <= document["distance"]


def test_the_help_names_what_there_is() -> None:
    assert sorted(_options.SEARCHES) == sorted(NAMES)
    assert tuple(METRICS) == _options.METRICS


@pytest.mark.parametrize("option", ["--steps", "--sweeps"])
def test_the_steps_may_be_limited(option: str, cli: Cli, folder: Path) -> None:
    search = ("--search", "annealing", option, "2", "--json")
    document = json.loads(cli("align", "1.safetensors", "0.safetensors", *search).stdout)
    assert document["status"] == "sweep_budget"


def test_settings_of_searches(cli: Cli, folder: Path) -> None:
    for arguments in (("layerwise", "--width", "3"), ("annealing", "--starts", "2")):
        result = cli("align", "1.safetensors", "0.safetensors", "--search", *arguments)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("model", ["nets:mlp", "nets.py:mlp"])
def test_function_is_checked_with_a_model(model: str, cli: Cli, folder: Path) -> None:
    options = ("--model", model, "--input-shape", "2,6")
    result = cli("align", "1.safetensors", "0.safetensors", *FEW, *options, "--json")
    document = json.loads(result.stdout)
    assert document["function_preserved"] is True
    assert document["function_difference"] < 1e-12


def test_exported_program_is_a_model(cli: Cli, folder: Path) -> None:
    model = torch.nn.Sequential(
        *(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8)),
        *(torch.nn.ReLU(), torch.nn.Linear(8, 3)),
    )
    torch.export.save(torch.export.export(model, (torch.randn(2, 6),)), "net.pt2")
    result = cli("align", "1.safetensors", "0.safetensors", *FEW, "--model", "net.pt2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["function_preserved"] is True
    assert '"0"' in cli("inspect", "net.pt2", "--json").stdout


def test_source_may_be_replaced(cli: Cli, folder: Path) -> None:
    before = load_checkpoint("1.safetensors").tensors
    kept = {name: tensor.clone() for name, tensor in before.items()}
    result = cli("align", "1.safetensors", "0.safetensors", "-o", "1.safetensors", "--json")
    assert result.exit_code == 0
    after = load_checkpoint("1.safetensors").tensors
    assert not all(torch.equal(kept[name], after[name]) for name in kept)
    assert json.loads(result.stdout)["distance"] == pytest.approx(
        sum(
            float((after[name].double() - other.double()).square().sum())
            for name, other in load_checkpoint("0.safetensors").tensors.items()
        )
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype, cli: Cli, folder: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in mlp_state(7).items()}
    save_checkpoint("other.safetensors", state)
    result = cli("align", "other.safetensors", "0.safetensors", *FEW, "-o", "n.safetensors")
    assert result.exit_code == 0, result.output
    assert {t.dtype for t in load_checkpoint("n.safetensors").tensors.values()} == {dtype}


def test_equal_networks(cli: Cli, folder: Path) -> None:
    outputs = ("-o", "n.safetensors", "--permutation", "p.safetensors")
    result = cli("align", "0.safetensors", "0.safetensors", *outputs)
    assert result.exit_code == 0, result.output
    assert "the networks are equal" in result.stdout
    assert sum(Permutation.load("p.safetensors").moved().values()) == 0


@pytest.mark.parametrize("widths", [(4, 3), (4, 1, 3)])
def test_networks_without_groups(widths: tuple[int, ...], cli: Cli, folder: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        pairs = enumerate(itertools.pairwise(widths))
        save_checkpoint(file, {f"{n}.weight": torch.randn(o, i) for n, (i, o) in pairs})
    outputs = ("-o", "n.safetensors", "--report", "page.html")
    result = cli("align", "a.safetensors", "b.safetensors", *outputs)
    assert result.exit_code == 0, result.output
    assert "nothing to search" in result.stdout
    assert Path("n.safetensors").exists()


def test_warnings_of_a_checkpoint_are_shown(cli: Cli, folder: Path) -> None:
    torch.save({"state_dict": mlp_state(1), "optimizer": {"lr": 0.1}}, "1.pt")
    result = cli("align", "1.pt", "0.safetensors", *FEW, "-o", "n.pt", "--json")
    assert result.exit_code == 0, result.output
    assert "optimizer" in result.stderr
    assert "optimizer" in json.loads(result.stdout)["warnings"][0]
    assert torch.load("n.pt")["optimizer"] == {"lr": 0.1}


def test_interrupted_search_is_written(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object, step: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_terminal.Display, "search", interrupt)
    result = cli("align", "1.safetensors", "0.safetensors", "-o", "n.safetensors")
    assert result.exit_code == 1
    assert "interrupted" in result.stdout
    assert set(load_checkpoint("n.safetensors").tensors) == set(mlp_state(1))


def test_interrupt_outside_of_the_search(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_pair, "align_networks", interrupt)
    result = cli("align", "1.safetensors", "0.safetensors", "-o", "n.safetensors")
    assert (result.exit_code, result.stderr) == (1, "interrupted\n")
    assert not Path("n.safetensors").exists()
    no_leftovers(folder)


def test_ctrl_c_keeps_the_best_found(folder: Path) -> None:
    """Interrupt a search on a terminal once its progress line shows a sweep."""
    pty = pytest.importorskip("pty")
    command = [sys.executable, "-m", "gpu_align", "align", "1.safetensors", "0.safetensors"]
    command += ["-o", "new.safetensors", "--seconds", "120"]
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    shown = b""
    with child(command, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        while b"sweep" not in shown:
            shown += os.read(master, 4096)  # an error once the child has ended
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate()
    os.close(master)
    assert process.returncode == 1
    assert "interrupted; this is the best permutation found" in stdout
    assert b"Traceback" not in shown
    assert load_checkpoint("new.safetensors").tensors.keys() == mlp_state(1).keys()
    no_leftovers(folder)


def test_apply_and_its_inverse(cli: Cli, folder: Path) -> None:
    cli("align", "1.safetensors", "0.safetensors", "-q", "--permutation", "p.safetensors")
    applied = cli("apply", "1.safetensors", "p.safetensors", "-o", "moved.safetensors", "--json")
    assert json.loads(applied.stdout)["written"] == {"out": "moved.safetensors"}
    back = cli("apply", "moved.safetensors", "p.safetensors", "-o", "back.safetensors", "--inverse")
    assert back.exit_code == 0
    assert "16 units in 2 groups" in back.stdout
    first, last = load_checkpoint("1.safetensors"), load_checkpoint("back.safetensors")
    assert all(torch.equal(last.tensors[name], t) for name, t in first.tensors.items())


def test_sharded_checkpoint(cli: Cli, folder: Path) -> None:
    shards = folder / "shards"
    shards.mkdir()
    names = list(mlp_state(1))
    files = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, part in files.items():
        save_checkpoint(shards / file, {name: mlp_state(1)[name] for name in part})
    weight_map = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    result = cli("align", "shards", "0.safetensors", *FEW, "-o", "aligned")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (folder / "aligned").iterdir()) == sorted(
        path.name for path in shards.iterdir()
    )


def test_inspect_prints_groups_and_pins(cli: Cli, folder: Path) -> None:
    result = cli("inspect", "0.safetensors")
    assert result.exit_code == 0
    for text in ("10^9.2", "0.weight[0]", "2.weight[1]", "input or output of the chain"):
        assert text in result.stdout


def test_inspect_names_ops_without_a_rule(cli: Cli, folder: Path) -> None:
    shapes = ("--input-shape", "2,4:int64:50", "--input-shape", "2,4,5")
    result = cli("inspect", "--model", "nets:Tokens", *shapes)
    assert result.exit_code == 0, result.output
    assert "op renorm has no rule" in result.stdout
    assert "CONTRIBUTING.md" in result.stdout
    document = json.loads(cli("inspect", "--model", "nets:Tokens", *shapes, "--json").stdout)
    assert document["ops_without_rule"] == ["op renorm"]
    assert [group["name"] for group in document["groups"]] == ["embedding"]


def test_saved_spec_is_used(cli: Cli, folder: Path) -> None:
    result = cli("inspect", "0.safetensors", "--save-spec", "spec.json")
    assert result.exit_code == 0
    spec = PermutationSpec.from_json(Path("spec.json").read_text(encoding="utf-8"))
    assert spec.groups == chain_spec(load_checkpoint("0.safetensors").tensors).groups
    model = ("--model", "nets:mlp", "--input-shape", "2,6")
    options = ("--spec", "spec.json", *model, *FEW, "--json")
    document = json.loads(cli("align", "1.safetensors", "0.safetensors", *options).stdout)
    assert document["function_preserved"] is True
    assert cli("inspect", "1.safetensors", "--spec", "spec.json").exit_code == 0


def test_env_names_remedies(cli: Cli) -> None:
    assert "scipy" in cli("env").stdout
    document = json.loads(cli("env", "--json").stdout)
    assert "torch" in document["versions"]
    for backend in document["backends"]:
        assert (
            backend["available"] or "install" in backend["detail"] or "check" in backend["detail"]
        )


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("gpu-align ")
    listed = cli("--help").stdout
    for command in ("align", "merge", "repair", "inspect", "apply", "report", "env", "demo"):
        assert command in listed
        assert cli(command, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("argument", "code", "stdout", "stderr"),
    [("--version", 0, "gpu-align ", ""), ("nope", 2, "", "No such command 'nope'")],
)
def test_module_is_the_command(argument: str, code: int, stdout: str, stderr: str) -> None:
    command = [sys.executable, "-m", "gpu_align", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    for text, expected in ((done.stdout, stdout), (done.stderr, stderr)):
        assert expected in text if expected else text == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (185, "3:05 min"), (3723, "1:02:03 h")],
)
def test_duration(value: float, text: str) -> None:
    assert _terminal.duration(value) == text


@pytest.mark.slow
def test_demo_and_the_commands_it_names(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    result = cli("demo", "-o", "made", "--quick", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    for model in document["models"]:
        rows = model["comparison"]
        assert {row["search"] for row in rows} >= {"LayerwiseBeam", "Annealing", "Portfolio"}
        assert min(row["gap_percent"] for row in rows) == 0
        assert model["function_difference"] < 1e-9
        assert all(row["distance"] < model["distance_before"] for row in rows)
        best = min(rows, key=lambda row: row["distance"])
        assert best["accuracy_after"] > best["accuracy_before"]
        assert 0 <= model["barrier"] < model["barrier_before"]
        chosen, trials = model["merge"]["chosen"], model["merge"]["trials"]
        assert chosen["loss"] == min(trial["loss"] for trial in trials if trial["method"])
        assert model["merge"]["test_accuracy"] > best["accuracy_before"]
        assert load_checkpoint(f"made/{model['name']}_merged.safetensors").tensors
    assert all(os.path.getsize(path) for path in document["written"])
    for command in document["next"]:
        _, name, *words = shlex.split(command)
        few = ("--sweeps", "5") if name == "align" else ("--search", "descent")
        assert cli(name, *words, *few).exit_code == 0


def test_a_search_that_was_split_says_so(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_ALIGN_MEMORY", "1")
    result = cli("align", "1.safetensors", "0.safetensors", "--search", "descent", "--starts", "3")
    assert "1 of 3 hypotheses at a time" in " ".join(result.stdout.split())
