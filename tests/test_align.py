"""align: end to end, from modules, state dicts and files to a certified result."""

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from marks import each_once, slow
from networks import CNN, FAMILIES, Pair, State, mlp, model_of, pair, planted, randomised
from oracles import assert_same_function, children_of, is_free, objective, symmetry_of
from safetensors.torch import save_file
from test_permutation import assert_permutations_equal
from torch import nn

from gpu_align import (
    METRICS,
    AlignmentProblem,
    AlignmentResult,
    Annealing,
    BeamDescent,
    Budget,
    CheckpointError,
    CoordinateDescent,
    GpuAlignError,
    InputError,
    LayerwiseBeam,
    ModelError,
    Permutation,
    Portfolio,
    SpecError,
    Status,
    UnavailableError,
    align,
    backends,
    discover,
)
from gpu_align._align._certificate import certificates

FAST = CoordinateDescent()
QUADRATIC = ["recurrent", "signed_recurrent", "grouped", "gqa", "fixed_gqa", "signed_gqa"]
GAP_TOLERANCE = 1e-9
"""Of a duality gap, relative to the size of its assignment: potentials are in float64."""


def assert_certified(result: AlignmentResult, networks: Pair, metric: str = "l2") -> None:
    """Assert distances equal to the oracle's, a bound below them, and gaps that are none."""
    spec = result.permutation.spec
    for distance, permutation in (
        (result.distance, result.permutation),
        (result.distance_before, Permutation.identity(spec)),
    ):
        given = symmetry_of(permutation), networks.source, networks.target, metric
        expected = objective(spec, *given)
        assert distance == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert 0 <= result.lower_bound <= result.distance * (1 + 1e-9)
    assert result.distance <= result.distance_before
    for group in result.groups:
        assert group.units == spec.groups[group.name].size
        moved = result.permutation.moved()
        assert group.moved == moved[group.name]
        inside = [g for g in children_of(spec, group.name) if is_free(spec, g.name)]
        reported = {part.name: (part.units, part.moved) for part in group.inside}
        assert reported == {g.name: (g.size, moved[g.name]) for g in inside}
        assert group.gap >= 0
        assert group.gap == pytest.approx(max(group.dual - group.primal, 0.0))
    for name, tensor in result.permutation.apply(networks.source).items():
        assert torch.equal(tensor, result.state_dict[name])


def assert_converged(result: AlignmentResult) -> None:
    for group in result.groups:
        assert group.gap <= GAP_TOLERANCE * (1 + abs(group.primal))


@pytest.mark.usefixtures("nan_filled_empty")
@pytest.mark.parametrize(
    "name",
    slow(["mlp", "tiny", "wide", "cnn", "resnet", "groupnorm"], but=["mlp", "wide", "groupnorm"]),
)
def test_modules_end_to_end(name: str) -> None:
    source, inputs = model_of(name, seed=1)
    target, _ = model_of(name, seed=2)
    result = align(source, target, example_inputs=inputs)
    networks = Pair(result.permutation.spec, source.state_dict(), target.state_dict())
    assert_certified(result, networks)
    assert_converged(result)
    assert_same_function(source, inputs, networks.source, result.state_dict)
    assert result.function_preserved
    assert result.function_difference <= 1e-9
    assert result.status in (Status.CONVERGED, Status.COMPLETED)
    assert result.log10_symmetries == result.permutation.spec.log10_symmetries
    source.load_state_dict(dict(result.state_dict))
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "metric"),
    each_once(["mlp", "cnn", "groupnorm", "recurrent", "trilinear", *FAMILIES], METRICS),
)
def test_every_metric_and_kind_of_spec(name: str, metric: str) -> None:
    networks = pair(name)
    result = align(networks.source, networks.target, spec=networks.spec, metric=metric, search=FAST)
    assert_certified(result, networks, metric)
    if name not in QUADRATIC:
        assert_converged(result)
    assert result.function_preserved is None
    assert "not checked" in result.function_note
    assert result.metric == metric
    assert result.search == "CoordinateDescent"


def chain() -> nn.Module:
    """Return a network that its state dict tells: its flatten leaves one place of each channel."""
    return CNN(2, hidden=3, side=8)


def as_module(state: dict, folder: Path) -> nn.Module:
    model = chain().double()
    model.load_state_dict(state)
    return model


def as_safetensors(state: dict, folder: Path) -> Path:
    save_file(state, folder / f"{id(state)}.safetensors")
    return folder / f"{id(state)}.safetensors"


def as_torch_file(state: dict, folder: Path) -> str:
    torch.save(state, folder / f"{id(state)}.pt")
    return str(folder / f"{id(state)}.pt")


FORMS = {
    "module": as_module,
    "state_dict": lambda state, folder: state,
    "safetensors": as_safetensors,
    "torch_file": as_torch_file,
}


@functools.cache
def aligned_chains() -> tuple[State, State, AlignmentResult]:
    """Return two networks as state dicts, and what is found for them with a spec."""
    source, target = (randomised(chain(), seed).state_dict() for seed in (1, 0))
    spec = discover(chain().double(), torch.randn(2, 1, 8, 8, dtype=torch.float64))
    return source, target, align(source, target, spec=spec, search=FAST)


@pytest.mark.parametrize(
    ("source_form", "target_form"),
    [*((form, "state_dict") for form in FORMS), *(("safetensors", form) for form in FORMS)],
)
def test_every_form_of_network_gives_the_same(
    source_form: str, target_form: str, tmp_path: Path
) -> None:
    source, target, expected = aligned_chains()
    traced = "module" in (source_form, target_form)
    result = align(
        FORMS[source_form](source, tmp_path),
        FORMS[target_form](target, tmp_path),
        example_inputs=torch.randn(2, 1, 8, 8, dtype=torch.float64) if traced else None,
        search=FAST,
    )
    assert result.distance == pytest.approx(expected.distance)
    assert ("traced" if traced else "chain") in result.origin
    assert (result.function_difference is None) == (not traced)
    assert set(result.state_dict) == set(source)


def test_list_of_sources_is_a_batch() -> None:
    pairs = [pair("cnn", seed) for seed in range(3)]
    target, spec = pairs[0].target, pairs[0].spec
    sources = [networks.source for networks in pairs]
    search = CoordinateDescent(order="forward")
    results = align(sources, target, spec=spec, search=search)
    assert isinstance(results, list)
    for source, result in zip(sources, results, strict=True):
        assert_certified(result, Pair(spec, source, target))
        alone = align(source, target, spec=spec, search=search)
        assert result.distance == pytest.approx(alone.distance)
    assert len(align((sources[0],), target, spec=spec, search=search)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtype_comes_back(dtype: torch.dtype) -> None:
    networks = pair("cnn")
    source, target = (
        {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
        for state in (networks.source, networks.target)
    )
    result = align(source, target, spec=networks.spec, search=FAST)
    for name, tensor in result.state_dict.items():
        assert tensor.dtype == source[name].dtype
    assert_certified(result, Pair(networks.spec, source, target))


def test_tied_weights_stay_tied() -> None:
    def tied() -> nn.Module:
        model = mlp([3, 4, 4, 4, 2])
        model[4].weight = model[2].weight
        return model

    source, target, inputs = tied(), tied(), torch.randn(2, 3)
    result = align(source, target, example_inputs=inputs, search=FAST)
    moved = result.state_dict
    assert moved["4.weight"].data_ptr() == moved["2.weight"].data_ptr()
    assert result.function_preserved
    assert_same_function(source, inputs, source.state_dict(), moved)


def test_same_seed_same_result() -> None:
    networks = pair("deep")
    options = {"spec": networks.spec, "seed": 3, "budget": Budget(steps=40)}
    first, same = (align(networks.source, networks.target, **options) for _ in range(2))
    assert first.distance == same.distance
    assert first.seed == 3
    assert_permutations_equal(first.permutation, same.permutation)


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        *(("deep", 1.0), ("cnn", 0.0)),
        *(
            pytest.param(name, noise, marks=pytest.mark.slow)
            for name, noise in (("deep", 3.0), ("cnn", 3.0), ("resnet", 0.0), ("resnet", 2.0))
        ),
    ],
)
def test_planted_permutation_is_reached(name: str, noise: float) -> None:
    networks, permutation = planted(name, noise)
    given = networks.source, networks.target
    hidden = objective(networks.spec, symmetry_of(permutation), *given)
    result = align(networks.source, networks.target, spec=networks.spec)
    assert_certified(result, networks)
    assert result.distance <= hidden * (1 + 1e-12) + 1e-20
    if noise == 0:
        assert_permutations_equal(result.permutation, permutation)


def test_relabelling_the_source_changes_nothing() -> None:
    networks = pair("cnn")
    relabelled = Permutation.random(networks.spec).apply(networks.source)
    distances = [
        align(source, networks.target, spec=networks.spec).distance
        for source in (networks.source, relabelled)
    ]
    assert distances[0] == pytest.approx(distances[1])


@pytest.mark.parametrize(
    ("search", "name"),
    [
        (LayerwiseBeam(), "LayerwiseBeam"),
        (Annealing(starts=2), "Annealing"),
        (Portfolio((Annealing(starts=2),), ()), "Annealing"),
        (Portfolio((Annealing(starts=2),), (BeamDescent(patience=1),)), "Annealing"),
    ],
    ids=["layerwise", "annealing", "portfolio", "refined"],
)
def test_result_names_the_search(search: object, name: str) -> None:
    networks, _ = planted("deep", noise=0.0)
    assert align(networks.source, networks.target, spec=networks.spec, search=search).search == name


def test_equal_networks_are_trivial() -> None:
    networks = pair("cnn")
    result = align(networks.target, networks.target, spec=networks.spec)
    assert result.status is Status.TRIVIAL
    assert result.distance == result.distance_before == 0
    assert result.lower_bound == pytest.approx(0, abs=1e-9)


def test_network_without_hidden_units() -> None:
    source, target = mlp([3, 2]), mlp([3, 2])
    result = align(source, target, example_inputs=torch.randn(1, 3))
    assert result.status is Status.TRIVIAL
    assert result.groups == ()
    assert result.cost_matrix is None
    assert result.function_preserved
    assert result.lower_bound == pytest.approx(result.distance)


def test_cost_matrix_is_of_row_distances() -> None:
    networks, _ = planted("wide", noise=0.0)
    result = align(networks.source, networks.target, spec=networks.spec, search=FAST)
    matrix = result.cost_matrix
    assert matrix.group == "0"
    assert matrix.units == 63
    after = torch.tensor(matrix.after)
    assert after.shape == (63, 63)
    assert after.diagonal().abs().max() < 1e-6
    assert sorted(matrix.before[0]) == sorted(matrix.after[0])


REFUSED = {
    "number": (lambda s: align(3, s), InputError),
    "metric": (lambda s: align(s, s, metric="nope"), InputError),
    "device": (lambda s: align(s, s, device="tpu"), InputError),
    "no_file": (lambda s: align("missing.safetensors", s), CheckpointError),
    "other_network": (lambda s: align(mlp([3, 5, 2]).state_dict(), s), SpecError),
    "module_alone": (lambda s: align(mlp([3, 4, 2]), s), InputError),
    "not_a_tensor": (lambda s: align({**s, "0.bias": 3}, s), InputError),
    "inputs": (lambda s: align(mlp([3, 4, 2]), s, example_inputs=torch.ones(1, 9)), ModelError),
}


@pytest.mark.parametrize(("call", "error"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_aligned_is_refused(call: Callable, error: type[GpuAlignError]) -> None:
    with pytest.raises(error):
        call(mlp([3, 4, 2]).state_dict())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none() -> None:
    state = mlp([3, 4, 2]).state_dict()
    with pytest.raises(UnavailableError, match="cuda"):
        align(state, state, device="cuda")
    assert all(backend.detail for backend in backends())


def test_inputs_are_not_changed() -> None:
    source, inputs = model_of("cnn", seed=1)
    target, _ = model_of("cnn", seed=2)
    source.train()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    align(source, target, example_inputs=inputs, search=FAST)
    assert source.training
    assert all(torch.equal(t, before[name]) for name, t in source.state_dict().items())


def test_spec_of_the_model_is_used() -> None:
    model, inputs = model_of("groupnorm")
    other, _ = model_of("groupnorm", seed=1)
    result = align(other.state_dict(), model, example_inputs=inputs, search=FAST)
    assert result.permutation.spec.groups == discover(model, inputs).groups
    assert result.function_preserved


def test_a_module_that_ties_more_than_the_spec_is_refused() -> None:
    def build(tied: bool) -> nn.Module:
        model = nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)
        )
        if tied:
            model[4].weight = model[2].weight
        return model.double()

    inputs = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"shares one tensor under the names 2\.weight, 4\.weight"):
        align(build(True), build(False), example_inputs=inputs)
    result = align(build(False), build(False), example_inputs=inputs, search=FAST)
    assert result.function_preserved


def test_certificate_of_a_group_on_two_axes_is_a_proof() -> None:
    """Brute force over the one group: the dual is never below what some order of it reaches."""
    networks = pair("recurrent")
    problem = AlignmentProblem(networks.source, networks.target, networks.spec, dtype=torch.float64)
    (group,) = [name for name in problem.order if problem.is_quadratic(name)]
    others = {name: torch.arange(size)[None] for name, size in problem.sizes.items()}
    found = problem.identity()
    report = next(r for r in certificates(problem, found)[0].groups if r.name == group)
    reached = [
        float(
            problem.family_value(
                group, {**others, group: torch.tensor([order])}, torch.zeros(1).long()
            )
        )
        for order in itertools.permutations(range(problem.sizes[group]))
    ]
    assert report.primal == pytest.approx(reached[0])
    assert report.dual >= max(reached) - 1e-9
    assert report.gap >= max(reached) - reached[0] - 1e-9
