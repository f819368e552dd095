"""Phases of sines: which units have them, worked out by hand; the group laws; files; one form."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import Graph, randomised
from oracles import assert_same_function
from torch import Tensor, nn
from typer.testing import CliRunner

from gpu_align import (
    AlignmentProblem,
    Permutation,
    PermutationSpec,
    SpecError,
    canonicalize,
    discover,
    load_checkpoint,
    save_checkpoint,
)
from gpu_align._cli._main import app
from gpu_align.learn import Siren

INPUTS = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def siren(widths: list[int], w0: float = 6.0) -> Siren:
    """A network in float64, the half periods of its biases many."""
    net = Siren(widths, w0).double()
    generator = torch.Generator().manual_seed(len(widths))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def spec_of(model: Siren) -> PermutationSpec:
    """The symmetries of a network; those of like networks are traced once."""
    return _traced(tuple(layer.weight.shape for layer in model), model.w0)


@functools.cache
def _traced(shapes: tuple[torch.Size, ...], w0: float) -> PermutationSpec:
    return discover(siren([shapes[0][1], *(shape[0] for shape in shapes)], w0), INPUTS)


def drawn(spec: PermutationSpec, seed: int, most: int = 3) -> Permutation:
    """A random symmetry with phases."""
    generator = torch.Generator().manual_seed(seed)
    order = Permutation.random(spec, generator=generator)
    phases = {
        name: torch.randint(-most, most + 1, (spec.units(name),), generator=generator)
        for name in spec.phases
    }
    return Permutation(spec, order.perms, order.signs, phases)


def between(run: Callable[[nn.Module, Tensor], Tensor], **more: object) -> nn.Module:
    """Linear(3, 4), some ops, and Linear to the outputs."""
    layers = {name: make() for name, make in more.items()}
    return Graph(
        lambda s, x: s.head(run(s, x)), first=nn.Linear(3, 4), head=nn.Linear(4, 2), **layers
    )


def shared_bias() -> nn.Module:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        h = torch.sin(s.first(x))
        return s.head(torch.sin(nn.functional.linear(h, s.weight, s.first.bias)))

    layers = {"first": nn.Linear(3, 4), "head": nn.Linear(4, 2)}
    return Graph(run, **layers, weight=nn.Parameter(torch.empty(4, 4)))


def conv_net() -> nn.Module:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        return s.head(torch.sin(3 * s.conv(x[:, None, None, :])).flatten(1))

    return Graph(run, conv=nn.Conv2d(1, 4, (1, 2)), head=nn.Linear(8, 2))


def learned_frequency() -> nn.Module:
    return between(
        lambda s, x: torch.sin(s.w0 * s.first(x)), w0=lambda: nn.Parameter(torch.empty(()))
    )


def parameter(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.empty(shape))


SHIFTS: dict[str, tuple[Callable[[], nn.Module], list[float]]] = {
    "sin": (lambda: between(lambda s, x: torch.sin(s.first(x))), [math.pi]),
    "frequency": (lambda: between(lambda s, x: torch.sin(30 * s.first(x))), [math.pi / 30]),
    "divided": (lambda: between(lambda s, x: torch.sin(-s.first(x) / 2)), [2 * math.pi]),
    "attribute": (lambda: siren([3, 4, 5, 2], 7.0), [math.pi / 7] * 2),
    "added": (
        lambda: between(
            lambda s, x: torch.sin(2 * (3 * (x @ s.w) + s.b)), w=parameter(3, 4), b=parameter(4)
        ),
        [math.pi / 2],
    ),
    "modulated": (
        lambda: between(
            lambda s, x: torch.sin(s.scale(x) * s.first(x) + s.shift(x)),
            scale=lambda: nn.Linear(3, 4, bias=False),
            shift=lambda: nn.Linear(3, 4),
        ),
        [math.pi],
    ),
    "convolution": (conv_net, [math.pi / 3]),
    "even_behind": (lambda: between(lambda s, x: torch.sin(s.first(x)).square()), [math.pi]),
    "two_sines": (
        lambda: between(lambda s, x: torch.sin(torch.sin(s.first(x)) + s.b), b=parameter(4)),
        [math.pi],
    ),
}
NONE: dict[str, Callable[[], nn.Module]] = {
    "no_bias": lambda: Graph(
        lambda s, x: s.head(torch.sin(s.first(x))),
        first=nn.Linear(3, 4, bias=False),
        head=nn.Linear(4, 2),
    ),
    "shared_bias": shared_bias,
    "one_bias_for_all": lambda: between(
        lambda s, x: torch.sin(x @ s.w + s.b), w=parameter(3, 4), b=parameter(1)
    ),
    "learned_frequency": learned_frequency,
    "read_by_relu": lambda: between(lambda s, x: torch.relu(torch.sin(s.first(x)))),
    "argument_read_too": lambda: between(lambda s, x: torch.sin(z := s.first(x)) + torch.tanh(z)),
    "residual": lambda: between(
        lambda s, x: (h := torch.sin(s.first(x))) + torch.sin(s.second(h)),
        second=lambda: nn.Linear(4, 4),
    ),
    "tanh": lambda: between(lambda s, x: torch.tanh(s.first(x))),
    "cosine": lambda: between(lambda s, x: torch.cos(s.first(x))),
    "rectified_before": lambda: between(lambda s, x: torch.sin(torch.relu(s.first(x)))),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_phases_are_found_and_keep_the_function(name: str) -> None:
    build, expected = SHIFTS[name]
    model = randomised(build())
    spec = discover(model, INPUTS)
    assert [phase.shift for phase in spec.phases.values()] == pytest.approx(expected)
    assert spec.verify(model, INPUTS, draws=2) < 1e-9
    moved = drawn(spec, 0).apply(dict(model.state_dict()))
    assert_same_function(model, INPUTS, model.state_dict(), moved)
    for phase in spec.phases.values():
        assert not torch.equal(moved[phase.bias].sort()[0], model.state_dict()[phase.bias])


@pytest.mark.parametrize("name", NONE)
def test_without_a_bias_of_its_own_or_linear_readers_there_is_no_phase(name: str) -> None:
    assert discover(randomised(NONE[name]()), INPUTS).phases == {}


def test_whole_periods_change_the_bias_alone_and_half_periods_what_reads_it() -> None:
    model = siren([3, 4, 2], 6.0)
    spec, state = spec_of(model), dict(model.state_dict())
    still = Permutation.identity(spec)
    moved = Permutation(spec, still.perms, {}, {"0": torch.tensor([0, 1, 2, -3])}).apply(state)
    steps = torch.tensor([0, 1, 2, -3], dtype=torch.float64) * (math.pi / 6)
    assert torch.equal(moved["0.bias"], state["0.bias"] + steps)
    assert torch.equal(moved["0.weight"], state["0.weight"])
    assert torch.equal(moved["1.weight"], state["1.weight"] * torch.tensor([1, -1, 1, -1]))
    assert torch.equal(moved["1.bias"], state["1.bias"])


def largest_gap(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("seed", range(5))
def test_group_laws(seed: int) -> None:
    model = siren([3, 4, 5, 2], 6.0)
    spec, state = spec_of(model), dict(model.state_dict())
    a, b, c = (drawn(spec, 3 * seed + number) for number in range(3))
    assert largest_gap(a.compose(b).apply(state), a.apply(b.apply(state))) < 1e-12
    assert largest_gap(a.inverse().apply(a.apply(state)), state) < 1e-12
    for one, other in (
        (a.compose(b).compose(c), a.compose(b.compose(c))),
        (a.compose(b).inverse(), b.inverse().compose(a.inverse())),
        (a.compose(a.inverse()), drawn(spec, seed).compose(drawn(spec, seed).inverse())),
    ):
        for kind in ("perms", "signs", "phases"):
            mine, others = getattr(one, kind), getattr(other, kind)
            assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_the_distance_of_a_problem_is_that_of_the_shifted_network() -> None:
    model, other = siren([3, 4, 5, 2]), siren([3, 4, 5, 2])
    spec, state = spec_of(model), dict(model.state_dict())
    order = drawn(spec, 1)
    problem = AlignmentProblem(state, dict(other.state_dict()), spec)
    moved = order.apply(state)
    expected = sum(float((moved[n] - t).square().sum()) for n, t in other.state_dict().items())
    assert problem.distance(order) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shorter_weights_are_shifted_in_float64_and_rounded_once(dtype: torch.dtype) -> None:
    model = siren([3, 4, 2])
    spec = spec_of(model)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    order = drawn(spec, 2)
    wide = order.apply({name: tensor.double() for name, tensor in state.items()})
    for name, tensor in order.apply(state).items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, wide[name].to(dtype))


def test_permutations_and_specs_go_through_files(tmp_path: Path) -> None:
    spec = spec_of(siren([3, 4, 5, 2]))
    assert PermutationSpec.from_json(spec.to_json()) == spec
    one, two = drawn(spec, 1), drawn(spec, 2)
    one.save(tmp_path / "one.safetensors")
    Permutation.save_each(tmp_path / "both.safetensors", [one, two])
    read = [Permutation.load(tmp_path / "one.safetensors")]
    read += Permutation.load_each(tmp_path / "both.safetensors")
    for known, found in zip((one, one, two), read, strict=True):
        assert found.spec == spec
        for kind in ("perms", "signs", "phases"):
            mine, others = getattr(known, kind), getattr(found, kind)
            assert mine.keys() == others.keys()
            assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_specs_without_phases_are_read_as_before() -> None:
    spec = spec_of(siren([3, 4, 2]))
    document = json.loads(spec.to_json())
    del document["groups"]["0"]["phase"]
    read = PermutationSpec.from_json(json.dumps(document))
    assert read.phases == {}
    assert read.groups["0"].signed


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (["0.bias", 1.0], "a phase as an object"),
        ({"bias": "0.bias"}, "a phase as an object"),
        ({"bias": "0.bias", "shift": True}, "a phase as an object"),
        ({"bias": "0.bias", "shift": 1.0, "more": 1}, "a phase as an object"),
        ({"bias": "0.bias", "shift": 0.0}, "half a period"),
        ({"bias": "0.bias", "shift": math.inf}, "half a period"),
        ({"bias": "1.bias", "shift": 1.0}, "one axis is that signed group"),
        ({"bias": "0.weight", "shift": 1.0}, "one axis is that signed group"),
        ({"bias": "nowhere", "shift": 1.0}, "one axis is that signed group"),
    ],
)
def test_a_damaged_phase_is_refused(phase: object, message: str) -> None:
    document = json.loads(spec_of(siren([3, 4, 2])).to_json())
    document["groups"]["0"]["phase"] = phase
    with pytest.raises(SpecError, match=message):
        PermutationSpec.from_json(json.dumps(document))


def test_phases_of_a_permutation_are_checked() -> None:
    spec = spec_of(siren([3, 4, 2]))
    perms = Permutation.identity(spec).perms
    with pytest.raises(SpecError, match="not a group with a phase"):
        Permutation(spec, perms, {}, {"1": torch.zeros(4, dtype=torch.int64)})
    with pytest.raises(SpecError, match="number of half periods"):
        Permutation(spec, perms, {}, {"0": torch.zeros(4)})
    with pytest.raises(SpecError, match="number of half periods"):
        Permutation(spec, perms, {}, {"0": torch.zeros(3, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("widths", "w0"),
    [
        ([3, 4, 2], 6.0),
        ([3, 4, 5, 2], 6.0),
        pytest.param([3, 4, 5, 2], 1.0, marks=pytest.mark.slow),
        pytest.param([3, 4, 5, 4, 2], 30.0, marks=pytest.mark.slow),
    ],
)
def test_canonical_forms_of_symmetric_networks_are_one(widths: list[int], w0: float) -> None:
    model = siren(widths, w0)
    spec, state = spec_of(model), dict(model.state_dict())
    form = canonicalize(state, spec=spec)
    assert_same_function(model, INPUTS, state, form)
    for phase in spec.phases.values():
        assert float(form[phase.bias].abs().max()) <= phase.shift / 2
    order = drawn(spec, 4)
    still = Permutation.identity(spec).perms
    moved = Permutation(spec, still, order.signs, order.phases).apply(state)
    assert largest_gap(canonicalize(moved, spec=spec), form) < 1e-11
    assert largest_gap(canonicalize(form, spec=spec), form) == 0


def test_the_command_line_shows_applies_and_removes_phases(tmp_path: Path) -> None:
    model = siren([3, 4, 5, 2])
    spec, state = spec_of(model), dict(model.state_dict())
    save_checkpoint(tmp_path / "net.safetensors", state)
    (tmp_path / "spec.json").write_text(spec.to_json())
    order = drawn(spec, 0)
    order.save(tmp_path / "order.safetensors")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    files = {name: str(tmp_path / name) for name in ("net.safetensors", "spec.json", "a", "b")}
    net, spec_file = files["net.safetensors"], files["spec.json"]
    shown = json.loads(run("inspect", "--spec", spec_file, "--json"))
    assert [group["phase"]["bias"] for group in shown["groups"]] == ["0.bias", "1.bias"]
    assert "sign + phase" in run("inspect", "--spec", spec_file)
    out, back = str(tmp_path / "out.safetensors"), str(tmp_path / "back.safetensors")
    order_file = str(tmp_path / "order.safetensors")
    applied = json.loads(run("apply", net, order_file, "-o", out, "--json"))
    assert applied["shifted"] == {n: int((k != 0).sum()) for n, k in order.phases.items()}
    assert "biases shifted" in run("apply", out, order_file, "--inverse", "-o", back)
    assert_same_function(model, INPUTS, state, load_checkpoint(out).tensors)
    assert largest_gap(dict(load_checkpoint(back).tensors), state) < 1e-12
    made = json.loads(run("canonicalize", out, "--spec", spec_file, "-o", back, "--json"))
    assert made["shifted"].keys() == {"0", "1"}
    assert "biases shifted" in run("canonicalize", out, "--spec", spec_file, "-o", back)
