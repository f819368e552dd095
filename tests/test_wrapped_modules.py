"""Modules around the network: DataParallel, averages, compiled ones; models named by a library."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from marks import slow
from networks import mlp
from torch import nn
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

from gpu_align import align, canonicalize, discover
from gpu_align._cli._main import app

INPUTS = torch.randn(2, 3)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mlp([3, 8, 2])


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def partly_compiled(model: nn.Module) -> nn.Module:
    model[0] = compiled(model[0])
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "data_parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled": compiled,
    "both": lambda model: compiled(nn.DataParallel(model)),
    "partly_compiled": partly_compiled,
    "compiled_in_place": compiled_in_place,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize(
    "name", slow(WRAPPED, but=("data_parallel", "averaged", "both", "compiled_in_place"))
)
def test_a_wrapped_module_is_aligned_as_what_it_holds(name: str) -> None:
    wrap = WRAPPED[name]
    plain = align(net(1), net(0), example_inputs=INPUTS)
    source = wrap(net(1))
    for target in (net(0), wrap(net(0))):
        result = align(source, target, example_inputs=INPUTS)
        assert result.distance == plain.distance
        assert result.function_difference < 1e-9
    outputs = source(INPUTS)
    source.load_state_dict(result.state_dict)
    torch.testing.assert_close(source(INPUTS), outputs)
    spec = discover(source, INPUTS)
    spec.verify(source, INPUTS)
    assert canonicalize(source, example_inputs=INPUTS).keys() == source.state_dict().keys()


def run(*arguments: str):
    return CliRunner().invoke(app, ["inspect", "--input-shape", "2,3", *arguments])


def test_libraries_make_models_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool) -> nn.Module:
        assert not pretrained
        return {"tiny.a1_in1k": mlp([3, 8, 2])}[name]

    def get_model(name: str, weights: object) -> nn.Module:
        assert weights is None
        return {"tiny": mlp([3, 8, 2])}[name]

    models = SimpleNamespace(get_model=get_model)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    for name in ("timm:tiny.a1_in1k", "torchvision:tiny"):
        done = run("--model", name)
        assert done.exit_code == 0, done.output
        assert "1 of 8 units" in done.output
    done = run("--model", "timm:huge")
    assert done.exit_code == 2
    assert "timm cannot make a model 'huge'" in done.output


@pytest.mark.parametrize("zoo", ["timm", "torchvision"])
def test_libraries_that_are_missing_are_named(zoo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, zoo, None)
    monkeypatch.setitem(sys.modules, f"{zoo}.models", None)
    done = run("--model", f"{zoo}:resnet50")
    assert done.exit_code == 2
    assert f"pip install {zoo}" in done.output


PARALLEL = """
from torch import nn

def plain():
    conv, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    return nn.Sequential(conv, norm, nn.ReLU(), *head)

def parallel():
    return nn.DataParallel(plain())
"""


@pytest.mark.parametrize("factory", ["plain", "parallel"])
def test_one_command_for_what_an_old_training_script_saved(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(PARALLEL, encoding="utf-8")
    made: dict[str, Callable[[], nn.Module]] = {}
    exec(PARALLEL, made)
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = made["parallel"]().state_dict()
        old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
        torch.save({"state_dict": old, "best_prec1": 91.7}, f"{seed}.th")
    model = ("--model", f"nets.py:{factory}", "--input-shape", "2,3,8,8")
    done = CliRunner().invoke(app, ["align", "0.th", "1.th", "-o", "new.th", *model])
    assert done.exit_code == 0, done.output
    assert "preserved" in done.output
    source, written = torch.load("0.th"), torch.load("new.th")
    assert written["best_prec1"] == source["best_prec1"]
    assert list(written["state_dict"]) == list(source["state_dict"])
