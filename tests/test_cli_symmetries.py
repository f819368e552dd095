"""How the command line shows symmetries richer than reordered layers."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from gpu_align import Permutation, PermutationSpec, save_checkpoint
from gpu_align._cli._main import app

Cli = Callable[..., Result]

ATTENTION = """{"format": "gpu-align/spec", "version": 2, "origin": "by hand",
    "groups": {"wide": {"size": 4, "scaled": true}, "heads": 3, "wide.é[1]": {"size": 2,
        "parent": "heads", "signed": true, "scaled": true}},
    "tensors": {"first.weight": ["wide^1", 5], "first.bias": ["wide^1"],
        "value.weight": [{"product": ["heads", "wide.é[1]^1"]}, "wide^-1"],
        "out.weight": [2, {"product": ["heads", "wide.é[1]^-1"]}]},
    "pins": [["first.weight", 1, "graph input"], ["out.weight", 0, "op made_up has no rule"]]}"""


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    Path("spec.json").write_text(ATTENTION, encoding="utf-8")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def rows(text: str) -> list[list[str]]:
    """Return the cells of every line, which two spaces set apart."""
    lines = [line for line in text.splitlines() if line.strip()]
    return [[cell.strip() for cell in re.split(" {2,}", line.strip())] for line in lines]


def test_inspect_shows_groups_inside_others_and_what_multiplies_units(cli: Cli) -> None:
    result = cli("inspect", "--spec", "spec.json")
    assert result.exit_code == 0, result.output
    said = rows(result.stdout)
    # 4! 3! (2!)^3 = 1152
    assert ["symmetries", "10^3.1 permutations leave the function unchanged"] in said
    assert ["groups", "3 of 13 units in all, 1 of them inside others"] in said
    assert ["signs", "2^6 sign flips of single units leave it unchanged too"] in said
    assert ["scales", "10 units may be multiplied by any positive number"] in said
    assert not any("norm scales" in row for row in said)
    names = [row[0] for row in said]
    assert names.index("wide.é[1]") == names.index("heads") + 1
    child = said[names.index("wide.é[1]")]
    assert child[1:3] == ["2 in each of 3", "sign + scale"]
    assert said[names.index("wide")][1:3] == ["4", "scale"]
    assert said[names.index("heads")][1:] == ["3", "value.weight[0] (3×2), out.weight[1] (3×2)"]
    assert "   wide.é[1]" in result.stdout, "it is indented"
    assert "op made_up has no rule" in result.stdout
    assert "indented:" in result.stdout
    assert "gauge:" in result.stdout


def test_inspect_document(cli: Cli) -> None:
    result = cli("inspect", "--spec", "spec.json", "--json", "--report", "page.html")
    document = json.loads(result.stdout)
    spec = PermutationSpec.from_json(ATTENTION)
    assert document["log10_symmetries"] == pytest.approx(3.0614525)
    assert (document["signed_units"], document["scaled_units"]) == (6, 10)
    assert document["norm_scales"] == 0
    assert [group["name"] for group in document["groups"]] == ["wide", "heads", "wide.é[1]"]
    child = document["groups"][2]
    assert (child["units"], child["size"], child["parent"]) == (6, 2, "heads")
    assert (child["signed"], child["scaled"]) == (True, True)
    assert child["members"] == [list(member) for member in spec.perm_to_axes("wide.é[1]")]
    assert document["ops_without_rule"] == ["op made_up"]
    assert document["written"] == {"report": "page.html"}
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<h1>Symmetries of spec.json</h1>" in page
    assert page.count("data:image/svg+xml") == 1


def test_norm_scales_are_counted(cli: Cli) -> None:
    tensors = {"c.weight": ["g", 2], "n.running_mean": ["g"], "n.running_var": ["g"]}
    scale = {"weight": "c.weight", "bias": None, "mean": "n.running_mean"}
    document = json.loads(ATTENTION) | {"groups": {"g": 3}, "tensors": tensors, "pins": []}
    document["norm_scales"] = [{**scale, "variance": "n.running_var", "eps": 1e-5}]
    Path("spec.json").write_text(json.dumps(document), encoding="utf-8")
    result = cli("inspect", "--spec", "spec.json", "--report", "page.html")
    assert "the rows of 1 layer may be multiplied" in " ".join(result.stdout.split())
    assert "rows of 1 layer may be" in Path("page.html").read_text(encoding="utf-8")
    assert json.loads(cli("inspect", "--spec", "spec.json", "--json").stdout)["norm_scales"] == 1


def test_inspect_without_groups(cli: Cli) -> None:
    document = json.loads(ATTENTION) | {"groups": {}, "tensors": {"w": [3]}, "pins": []}
    Path("spec.json").write_text(json.dumps(document), encoding="utf-8")
    result = cli("inspect", "--spec", "spec.json", "--report", "page.html")
    assert result.exit_code == 0, result.output
    assert "0 of 0 units" in result.stdout
    assert "<img" not in Path("page.html").read_text(encoding="utf-8")


def test_inspect_prints_long_names_whole(cli: Cli) -> None:
    name = "层" + "x" * 99
    document = json.loads(ATTENTION) | {"groups": {name: 3}, "tensors": {"w": [name]}, "pins": []}
    Path("spec.json").write_text(json.dumps(document), encoding="utf-8")
    printed = cli("inspect", "--spec", "spec.json").stdout
    assert "".join(printed.split()).count("x") >= 99
    assert "层" in printed


def test_report_must_not_overwrite_what_is_read(cli: Cli) -> None:
    result = cli("inspect", "--spec", "spec.json", "--report", "page.txt")
    assert (result.exit_code, "choose .html" in result.stderr) == (2, True)
    Path("spec.html").symlink_to("spec.json")
    result = cli("inspect", "--spec", "spec.json", "--report", "spec.html")
    assert result.exit_code == 2
    assert "overwrite an input" in result.stderr


def test_model_that_prints_leaves_the_document_whole(cli: Cli) -> None:
    code = "import torch\nprint('hello')\ndef make():\n    return torch.nn.Linear(2, 3)\n"
    Path("talking.py").write_text(code, encoding="utf-8")
    model = ("--model", "talking.py:make", "--input-shape", "2,2")
    assert json.loads(cli("inspect", *model, "--json").stdout)["groups"] == []


def test_align_and_apply_tell_of_groups_inside_others(cli: Cli) -> None:
    spec = PermutationSpec.from_json(ATTENTION)
    generator = torch.Generator().manual_seed(3)
    target = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in spec.tensors.items()
    }
    source = Permutation.random(spec, generator=generator).apply(target)
    save_checkpoint("target.safetensors", target)
    save_checkpoint("source.safetensors", source)
    options = ("--spec", "spec.json", "--permutation", "p.safetensors", "--json-file", "r.json")
    result = cli("align", "source.safetensors", "target.safetensors", *options)
    assert result.exit_code == 0, result.output
    said = rows(result.stdout)
    assert ["symmetries", "10^3.1 and 2^6 sign flips, by hand"] in said
    names = [row[0] for row in said]
    assert names.index("wide.é[1]") == names.index("heads") + 1
    moved = Permutation.load("p.safetensors").moved()
    assert said[names.index("wide.é[1]")][1:] == ["3 × 2", str(moved["wide.é[1]"])]
    document = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert document["groups"][1]["inside"][0]["name"] == "wide.é[1]"
    assert document["outline"]["groups"][2]["parent"] == "heads"
    result = cli("apply", "source.safetensors", "p.safetensors", "-o", "moved.safetensors")
    assert f"{sum(moved.values())} of 13 units in 3 groups moved or negated" in result.stdout
    assert cli("report", "r.json", "-o", "page.html").exit_code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Groups over the network" in page
    assert "<dd>2<sup>6</sup></dd>" in page
