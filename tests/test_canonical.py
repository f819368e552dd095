"""canonicalize: one form for all networks that differ by signs and scales, by hand and as laws."""

import functools
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from marks import slow
from networks import CNN, Graph, ResNet, mlp, randomised
from oracles import assert_same_function
from test_gauge import drawn, multiplied
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from gpu_align import (
    InputError,
    PermutationSpec,
    SpecError,
    canonicalize,
    discover,
    load_checkpoint,
    save_checkpoint,
)
from gpu_align._cli._main import app

State = Mapping[str, Tensor]
TOLERANCE = 1e-9
"""Largest difference of two canonical forms, relative to the largest entry of a tensor."""


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3 * x)


class Block(nn.Module):
    """A pre-norm transformer block with RMS norms, four heads and a gated hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.norm1, self.norm2 = nn.RMSNorm(8), nn.RMSNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.o = nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        n = self.norm1(h)
        q, k, v = (
            part(n).unflatten(-1, (4, 2)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        h = h + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        n = self.norm2(h)
        return self.head(h + self.down(F.silu(self.gate(n)) * self.up(n)))


def depthwise() -> nn.Module:
    return Graph(
        lambda s, x: s.head(F.relu(s.dw(F.relu(s.conv(x)))).mean((2, 3))),
        conv=nn.Conv2d(2, 5, 3),
        dw=nn.Conv2d(5, 5, 3, groups=5),
        head=nn.Linear(5, 2),
    )


def joined() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        first = torch.relu(s.a(x))
        second = torch.cat([first, torch.tanh(s.b(first)), x], 1)
        return s.c(second)

    return Graph(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 5), c=nn.Linear(12, 2))


def repeated(normed: bool) -> nn.Module:
    """Two heads of 5 units, of which 2 go through a ReLU and 3 through tanh."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = s.norm(s.a(x)).unflatten(1, (2, 5))
        return s.b(torch.cat([F.relu(h[..., :2]), torch.tanh(h[..., 2:])], -1).flatten(1))

    norm = nn.BatchNorm1d(10) if normed else nn.Identity()
    return Graph(forward, a=nn.Linear(3, 10), norm=norm, b=nn.Linear(10, 2))


def recurrent(nonlinearity: str) -> nn.Module:
    rnn = nn.RNN(3, 5, nonlinearity=nonlinearity, batch_first=True)
    return Graph(lambda s, x: s.head(s.rnn(x)[0]), rnn=rnn, head=nn.Linear(5, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: mlp([3, 4, 5, 2]), (2, 3)),
    "relu_deep": (lambda: mlp([3, *[6] * 10, 2]), (2, 3)),
    "tanh": (lambda: mlp([3, 4, 5, 2], nn.Tanh), (2, 3)),
    "linear": (lambda: mlp([3, 4, 5, 2], nn.Identity), (2, 3)),
    "gelu": (lambda: mlp([3, 4, 5, 2], nn.GELU), (2, 3)),
    "siren": (lambda: mlp([3, 6, 6, 2], Sine), (2, 3)),
    "cnn": (lambda: CNN(2, hidden=3, side=16), (2, 1, 16, 16)),
    "resnet": (lambda: ResNet(2), (2, 1, 8, 8)),
    "transformer": (Block, (2, 5, 3)),
    "rnn_tanh": (lambda: recurrent("tanh"), (2, 4, 3)),
    "rnn_relu": (lambda: recurrent("relu"), (2, 4, 3)),
    "depthwise": (depthwise, (2, 2, 6, 6)),
    "joined": (joined, (2, 3)),
    "repeated": (lambda: repeated(normed=False), (2, 3)),
    "repeated_and_normed": (lambda: repeated(normed=True), (2, 3)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = MODELS[name]
    return randomised(build()), torch.randn(shape, dtype=torch.float64)


def difference(first: State, second: State) -> float:
    """Return the largest difference of two state dicts, relative to each tensor's largest entry."""
    assert list(first) == list(second)
    gaps = [0.0]
    for name, tensor in first.items():
        other = second[name].double()
        if tensor.numel():
            gaps.append(float((tensor - other).abs().max() / other.abs().max().clamp_min(1e-300)))
    return max(gaps)


def with_rows_scaled(spec: PermutationSpec, state: State) -> dict[str, Tensor]:
    """Scale each row in front of a batch norm, and its statistics with it."""
    generator = torch.Generator().manual_seed(0)
    moved = dict(state)
    for found in spec.norm_scales:
        scale = torch.rand(len(state[found.mean]), generator=generator, dtype=torch.float64) + 0.5
        weight = state[found.weight]
        moved[found.weight] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        moved[found.mean] = state[found.mean] * scale
        moved[found.variance] = (state[found.variance] + found.eps) * scale**2 - found.eps
        if found.bias is not None:
            moved[found.bias] = state[found.bias] * scale
    return moved


pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes? .*_flat_weights:UserWarning")


@pytest.mark.parametrize(
    "name", slow(MODELS, but=[name for name in MODELS if name not in ("relu_deep", "resnet")])
)
def test_one_form_for_all_networks_of_one_function(name: str) -> None:
    model, inputs = made(name)
    spec, state = discover(model, inputs), model.state_dict()
    canonical = canonicalize(model, spec=spec)
    assert list(canonical) == list(state)
    assert_same_function(model, inputs, state, canonical)
    assert difference(canonicalize(canonical, spec=spec), canonical) <= TOLERANCE
    generator = np.random.default_rng(0)
    for _ in range(2):
        other = multiplied(spec, with_rows_scaled(spec, state), drawn(spec, generator))
        assert difference(canonicalize(other, spec=spec), canonical) <= TOLERANCE


def test_by_hand_on_a_relu_network() -> None:
    """Scales and signs written out without any spec."""
    model, inputs = randomised(mlp([3, 4, 5, 2], nn.Identity)), torch.randn(2, 3)
    state = model.state_dict()
    canonical = canonicalize(model, example_inputs=inputs.double())
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.exp(torch.randn(n, generator=generator, dtype=torch.float64))
        * (2.0 * torch.randint(2, (n,), generator=generator) - 1)
        for n in (4, 5)
    )
    other = {
        "0.weight": first[:, None] * state["0.weight"],
        "0.bias": first * state["0.bias"],
        "2.weight": second[:, None] * state["2.weight"] / first,
        "2.bias": second * state["2.bias"],
        "4.weight": state["4.weight"] / second,
        "4.bias": state["4.bias"],
    }
    assert_same_function(model, inputs, state, other)
    model.load_state_dict(other)
    again = canonicalize(model, example_inputs=inputs.double())
    assert difference(again, canonical) <= TOLERANCE
    for layer, reader in (("0", "2"), ("2", "4")):
        into = canonical[f"{layer}.weight"].square().sum(1) + canonical[f"{layer}.bias"].square()
        assert torch.allclose(into, canonical[f"{reader}.weight"].square().sum(0), rtol=1e-9)
        assert (canonical[f"{layer}.weight"].sum(1) + canonical[f"{layer}.bias"] >= 0).all()


@pytest.mark.parametrize(
    "name",
    [
        *("relu", "rnn_relu", "depthwise", "transformer"),
        pytest.param("relu_deep", marks=pytest.mark.slow),
    ],
)
def test_no_other_scales_have_a_smaller_norm(name: str) -> None:
    model, inputs = made(name)
    spec = discover(model, inputs)

    def norm(state: State) -> float:
        return math.fsum(float(state[name].square().sum()) for name in spec.tensors)

    canonical = canonicalize(model, example_inputs=inputs)
    assert norm(canonical) < norm(model.state_dict())
    generator = np.random.default_rng(0)
    for size in (1e-3, 1e-1):
        draw = {key: np.abs(value) ** size for key, value in drawn(spec, generator).items()}
        assert norm(multiplied(spec, canonical, draw)) > norm(canonical)


def test_rows_in_front_of_batch_norms_have_norm_1() -> None:
    model, inputs = made("resnet")
    spec = discover(model, inputs)
    canonical = canonicalize(model, spec=spec)
    scales = spec.norm_scales
    assert len(scales) == 13
    for scale in scales:
        norms = canonical[scale.weight].flatten(1).norm(dim=1)
        assert torch.allclose(norms, torch.ones_like(norms), rtol=1e-9)


def test_no_variance_becomes_negative() -> None:
    model = randomised(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    inputs = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight *= 100
        model[0].weight[3] = 0
        model[1].running_var[:2] = torch.tensor([0.0, 1e-7])
    state = model.state_dict()
    canonical = canonicalize(model, example_inputs=inputs)
    assert_same_function(model, inputs, state, canonical)
    variance, weight = canonical["1.running_var"], canonical["0.weight"]
    assert (variance >= 0).all()
    assert variance[:2].tolist() == [0, 0]
    assert torch.equal(weight[3], torch.zeros(3).double())
    assert torch.equal(canonical["1.running_mean"][3], state["1.running_mean"][3])
    assert weight[2].norm() == pytest.approx(1)
    spec = discover(model, inputs)
    assert difference(canonicalize(canonical, spec=spec), canonical) <= TOLERANCE


def test_units_that_nothing_makes_or_reads_keep_their_scale() -> None:
    model = randomised(mlp([3, 4, 2]))
    inputs = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[0] = model[0].bias[0] = 0
        model[2].weight[:, 1] = 0
    state = model.state_dict()
    canonical = canonicalize(model, example_inputs=inputs)
    for unit in (0, 1):
        assert torch.equal(canonical["0.weight"][unit], state["0.weight"][unit])
        assert torch.equal(canonical["2.weight"][:, unit], state["2.weight"][:, unit])
    assert not torch.equal(canonical["0.weight"][2], state["0.weight"][2])
    assert_same_function(model, inputs, state, canonical)


def test_where_a_sum_is_0_the_first_entry_decides() -> None:
    model = mlp([3, 2, 2], nn.Tanh).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, -1.0, 1.0], [0.0, 1.0, -1.0]]))
        model[0].bias.zero_()
    canonical = canonicalize(model, example_inputs=torch.randn(2, 3, dtype=torch.float64))
    expected = torch.tensor([[0.0, 1.0, -1.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    assert torch.equal(canonical["0.weight"], expected)
    assert torch.equal(canonical["2.weight"][:, 0], -model[2].weight[:, 0])


def test_later_groups_do_not_decide_the_signs_of_earlier_ones() -> None:
    """The residual stream is made by the stem and by what comes later; the stem decides."""
    model = randomised(
        Graph(
            lambda s, x: s.head((h := s.stem(x)) + s.down(torch.tanh(s.up(h)))),
            stem=nn.Linear(3, 4),
            up=nn.Linear(4, 5),
            down=nn.Linear(5, 4),
            head=nn.Linear(4, 2),
        )
    )
    canonical = canonicalize(model, example_inputs=torch.randn(2, 3, dtype=torch.float64))
    # The bias of `down` has no other units on it, so it counts too.
    made = canonical["stem.weight"].sum(1) + canonical["stem.bias"] + canonical["down.bias"]
    assert (made >= 0).all()
    assert (canonical["up.weight"].sum(1) + canonical["up.bias"] >= 0).all()


@functools.cache
def tied_cnn() -> tuple[nn.Module, PermutationSpec]:
    """Return a network one of whose layers has two names, and its spec."""
    model = CNN(2, hidden=3, side=16)
    model.again = model.fc1
    return model, discover(model, torch.randn(2, 1, 16, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_ties_and_integers_are_kept(dtype: torch.dtype) -> None:
    model, spec = tied_cnn()
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    state["again.weight"] = state["fc1.weight"]
    canonical = canonicalize(state, spec=spec)
    assert [t.dtype for t in canonical.values()] == [t.dtype for t in state.values()]
    assert canonical["again.weight"] is canonical["fc1.weight"]
    for name in ("n1.num_batches_tracked", "fc2.bias"):
        assert canonical[name].data_ptr() == state[name].data_ptr()
    wide = canonicalize({name: tensor.double() for name, tensor in state.items()}, spec=spec)
    rounded = {name: tensor.to(state[name].dtype) for name, tensor in wide.items()}
    assert all(torch.equal(canonical[name], rounded[name]) for name in state)


def test_networks_as_paths_and_partial_ties(tmp_path: Path) -> None:
    layer = nn.Linear(3, 4)
    model = randomised(
        Graph(lambda s, x: s.b(s.a(x).relu()), a=layer, again=layer, b=nn.Linear(4, 2))
    )
    inputs = torch.randn(2, 3, dtype=torch.float64)
    spec = discover(model, inputs)
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("again")}
    save_checkpoint(tmp_path / "model.safetensors", state)
    canonical = canonicalize(tmp_path / "model.safetensors", spec=spec)
    expected = canonicalize(model, example_inputs=inputs)
    assert set(canonical) == set(state)
    assert all(torch.equal(canonical[name], expected[name]) for name in state)


def test_a_network_without_signs_or_scales_is_passed_on() -> None:
    model, inputs = made("gelu")
    state = model.state_dict()
    canonical = canonicalize(state, spec=discover(model, inputs))
    assert all(canonical[name].data_ptr() == t.data_ptr() for name, t in state.items())


def test_what_cannot_be_canonicalised() -> None:
    model = mlp([3, 4, 2])
    with pytest.raises(InputError, match="depends on the activations"):
        canonicalize(model.state_dict())
    with pytest.raises(InputError, match="without example_inputs"):
        canonicalize(model)
    spec = discover(model, torch.randn(2, 3))
    with pytest.raises(SpecError, match="does not fit"):
        canonicalize(mlp([3, 5, 2]).state_dict(), spec=spec)


# The command line

NETS = """
import torch
from torch import nn

def tanh():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

def relu():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
"""
SHAPE = ("--input-shape", "2,3")


@pytest.fixture
def cli(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    Path("nets.py").write_text(NETS, encoding="utf-8")
    save_checkpoint("tanh.safetensors", mlp([3, 4, 2]).state_dict())
    norm = nn.BatchNorm1d(4)
    relu = nn.Sequential(nn.Linear(3, 4), norm, nn.ReLU(), nn.Linear(4, 2))
    save_checkpoint("relu.pt", relu.state_dict())

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["canonicalize", *map(str, arguments)])

    return run


def test_command_writes_the_canonical_checkpoint(cli: Callable[..., Result]) -> None:
    result = cli("relu.pt", "-o", "new.pt", "--model", "nets:relu", *SHAPE)
    assert result.exit_code == 0, result.output
    for text in ("4 units balanced", "rows of 1 layers", "preserved", "canonical checkpoint: new"):
        assert text in result.stdout
    before, after = load_checkpoint("relu.pt").tensors, load_checkpoint("new.pt").tensors
    assert list(after) == list(before)
    assert {t.dtype for t in after.values()} == {torch.float32, torch.int64}
    assert torch.allclose(after["0.weight"].norm(dim=1), torch.ones(4))


def test_command_prints_one_document(cli: Callable[..., Result]) -> None:
    # OUT may be the checkpoint itself, and what is canonical stays as it is.
    options = ("-o", "tanh.safetensors", "--model", "nets.py:tanh", *SHAPE, "--json")
    first = json.loads(cli("tanh.safetensors", *options).stdout)
    assert first["function_difference"] < 1e-12
    assert first["rounding_difference"] < 1e-5
    assert first["squared_norm"] == pytest.approx(first["squared_norm_before"])
    again = json.loads(cli("tanh.safetensors", *options).stdout)
    assert again["negated"] == {"0": 0}
    assert again["scaled"] == again["norm_scales"] == again["warnings"] == []
    assert again["written"] == {"out": "tanh.safetensors"}
    assert not list(Path().glob("*.tmp*"))


def test_command_with_a_spec_says_that_nothing_was_checked(cli: Callable[..., Result]) -> None:
    spec = discover(mlp([3, 4, 2], nn.Tanh), torch.randn(2, 3))
    Path("spec.json").write_text(spec.to_json(), encoding="utf-8")
    result = cli("tanh.safetensors", "-o", "n.safetensors", "--spec", "spec.json", "--json")
    assert result.exit_code == 0, result.output
    assert "not checked" in result.stderr
    assert json.loads(result.stdout)["function_difference"] is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-o", "n.safetensors"), "depends on the activations"),
        (("-o", "n.safetensors", "--model", "nets:relu", *SHAPE), "does not fit"),
        (("-o", "n.safetensors", "--model", "nets:tanh"), "needs an example input"),
    ],
    ids=["no_model", "other_model", "no_shape"],
)
def test_command_on_bad_input(
    arguments: tuple[str, ...], text: str, cli: Callable[..., Result]
) -> None:
    result = cli("tanh.safetensors", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert not list(Path().glob("n.*"))
