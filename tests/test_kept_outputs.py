"""Outputs that need not stay: by-products of a forward no longer keep units in place."""

import json
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from marks import slow
from networks import Graph
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from gpu_align import (
    InputError,
    PermutationSpec,
    SpecError,
    align,
    canonicalize,
    discover,
)
from gpu_align._cli._main import app

Pair = namedtuple("Pair", "logits hidden")


class Cache:
    """What no tensor is reached in."""


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor
    cache: object = None


FORMS = {
    "dict": lambda y, h: {"logits": y, "hidden": h},
    "tuple": lambda y, h: (y, h),
    "named": Pair,
    "dataclass": Answer,
    "nested": lambda y, h: {"logits": y, "states": (h, h)},
    "with_cache": lambda y, h: Answer(y, h, Cache()),
}


def net(form: str = "dict", seed: int = 0) -> nn.Module:
    """Return a network with 5 hidden units, and 4 that its second output names one by one."""
    torch.manual_seed(seed)

    def run(s: nn.Module, x: Tensor) -> object:
        hidden = F.relu(s.b(F.relu(s.a(x))))
        return FORMS[form](s.head(hidden), hidden)

    return Graph(run, a=nn.Linear(3, 5), b=nn.Linear(5, 4), head=nn.Linear(4, 2))


def sizes(spec: PermutationSpec) -> list[int]:
    return [group.size for group in spec.groups.values()]


INPUTS = torch.randn(2, 3)


@pytest.mark.parametrize("form", slow(FORMS, but=("dict", "tuple", "with_cache")))
def test_what_need_not_stay_pins_nothing(form: str) -> None:
    model = net(form)
    spec = discover(model, INPUTS)
    assert sizes(spec) == [5]
    logits, hidden = list(spec.outputs)[:2]
    assert (spec.outputs[logits], spec.outputs[hidden]) == (0, 4)
    assert f"graph output {hidden}" in {pin.reason for pin in spec.pins}
    for kept in (logits, [logits], 0, [0]) if form == "tuple" else (logits, [0]):
        free = discover(model, INPUTS, outputs=kept)
        assert sizes(free) == [5, 4]
        assert free.outputs == {}
        assert f"for its output {logits}" in free.origin
        free.verify(model, INPUTS, outputs=kept)
        with pytest.raises(SpecError, match="changes the outputs"):
            free.verify(model, INPUTS)


def test_outputs_inside_others_are_named_with_dots() -> None:
    model = net("nested")
    assert list(discover(model, INPUTS).outputs) == ["logits", "states.0", "states.1"]
    assert sizes(discover(model, INPUTS, outputs="states")) == [5, 2]
    assert sizes(discover(model, INPUTS, outputs=["states.1", "logits"])) == [5]


@pytest.mark.parametrize("kept", ["hiden", 2, -1, ["logits", "x"]])
def test_unknown_outputs_are_refused_with_the_names_that_exist(kept: object) -> None:
    with pytest.raises(InputError, match="it has: logits, hidden"):
        discover(net(), INPUTS, outputs=kept)


def test_at_least_one_output_is_kept() -> None:
    with pytest.raises(InputError, match="at least one output"):
        discover(net(), INPUTS, outputs=[])


def test_a_single_output_keeps_its_short_reason() -> None:
    spec = discover(nn.Linear(3, 2), INPUTS)
    assert {pin.reason for pin in spec.pins} == {"graph input", "graph output"}
    assert spec.outputs == {}
    assert sizes(discover(nn.Linear(3, 2), INPUTS, outputs="output")) == []


def test_what_holds_no_tensor_is_passed_over_and_named() -> None:
    spec = discover(net("with_cache"), INPUTS)
    assert "without its output cache (Cache)" in spec.origin


def test_exported_programs_have_named_outputs() -> None:
    program = torch.export.export(net(), (INPUTS,))
    assert discover(program, None).outputs == {"logits": 0, "hidden": 4}
    assert sizes(discover(program, None, outputs="logits")) == [5, 4]


def test_the_spec_keeps_what_outputs_hold_in_its_file() -> None:
    spec = discover(net(), INPUTS)
    assert PermutationSpec.from_json(spec.to_json()).outputs == spec.outputs
    for wrong in ({"logits": -1}, {"logits": "4"}, {"logits": True}):
        document = json.loads(spec.to_json()) | {"outputs": wrong}
        with pytest.raises(SpecError, match="outputs"):
            PermutationSpec.from_json(json.dumps(document))


def test_alignment_and_canonical_form_keep_what_is_asked_for() -> None:
    target = net(seed=1)
    source = net(seed=1)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        source.b.weight.copy_(target.b.weight[order])
        source.b.bias.copy_(target.b.bias[order])
        source.head.weight.copy_(target.head.weight[:, order])
    held = align(source, target, example_inputs=INPUTS)
    assert held.distance > 1e-3
    free = align(source, target, example_inputs=INPUTS, outputs="logits")
    assert free.distance < 1e-12
    assert free.function_difference < 1e-9
    source.load_state_dict(canonicalize(source, example_inputs=INPUTS, outputs="logits"))
    torch.testing.assert_close(source(INPUTS)["logits"], target(INPUTS)["logits"])


MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(3, 32), nn.Linear(32, 2)

    def forward(self, x):
        hidden = torch.relu(self.a(x))
        return {"logits": self.head(hidden), "encoder_last_hidden_state": hidden}
"""


def test_the_command_names_the_output_that_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("made.py").write_text(MODEL, encoding="utf-8")
    model = ("--model", "made.py:Net", "--input-shape", "2,3")
    said = CliRunner().invoke(app, ["inspect", *model]).output
    line = "graph output encoder_last_hidden_state pins 32 units; --output logits would free them"
    assert line in said
    done = CliRunner().invoke(app, ["inspect", *model, "--json"])
    assert json.loads(done.stdout)["outputs"] == {"logits": 0, "encoder_last_hidden_state": 32}
    free = CliRunner().invoke(app, ["inspect", *model, "--output", "logits", "--json"])
    assert [group["size"] for group in json.loads(free.stdout)["groups"]] == [32]
    bad = CliRunner().invoke(app, ["inspect", *model, "--output", "hidden"])
    assert bad.exit_code == 2
    assert "it has: logits, encoder_last_hidden_state" in bad.output
    alone = CliRunner().invoke(app, ["inspect", "--output", "logits"])
    assert alone.exit_code == 2
    assert "--output is of no use without --model" in alone.output
