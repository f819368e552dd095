"""Many models in one call: the same answers as one by one, and one bad model stops no other."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import each_once, slow
from networks import FAMILIES, State, mlp, model_of, pair, random_pair
from oracles import assert_same_function
from safetensors.torch import save_file
from test_permutation import assert_permutations_equal
from torch import Tensor, nn

from gpu_align import (
    METRICS,
    AlignmentFailure,
    AlignmentProblem,
    AlignmentResult,
    Annealing,
    AssignmentError,
    BeamDescent,
    Budget,
    CheckpointError,
    CoordinateDescent,
    FrankWolfe,
    GpuAlignError,
    InputError,
    LayerwiseBeam,
    ModelError,
    Noise,
    PermutationSpec,
    Portfolio,
    Progress,
    Recombination,
    Search,
    SpecError,
    Status,
    align,
)
from gpu_align._align import _many as many
from gpu_align._align._batches import batch_ranges, bytes_per_model
from gpu_align._device._memory import _left_in_control_group, free_bytes
from gpu_align._problem import compute_dtype

FORWARD = CoordinateDescent(order="forward")
"""A search that draws nothing, so that it does the same to a model alone and among others."""


def zoo(name: str, count: int) -> tuple[PermutationSpec, list[State], State]:
    """Return a spec, some sources, and a target."""
    if name in FAMILIES or name in ("recurrent", "trilinear"):
        spec = pair(name).spec
        pairs = [random_pair(spec, seed) for seed in range(count)]
    else:
        pairs = [pair(name, seed) for seed in range(count)]
    return pairs[0].spec, [networks.source for networks in pairs], pairs[0].target


def single(state: State) -> State:
    return {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


def assert_equal_results(one: AlignmentResult, other: AlignmentResult) -> None:
    """Assert the same permutation with the same certificate; float32 searches may round apart."""
    assert_permutations_equal(one.permutation, other.permutation)
    assert one.distance == pytest.approx(other.distance, rel=1e-12)
    assert one.distance_before == pytest.approx(other.distance_before, rel=1e-12)
    assert one.lower_bound == pytest.approx(other.lower_bound, rel=1e-9, abs=1e-9)
    assert (one.status, one.search) == (other.status, other.search)
    for mine, theirs in zip(one.groups, other.groups, strict=True):
        scale = 1e-9 * (1 + abs(mine.dual))
        assert (mine.name, mine.units, mine.inside) == (theirs.name, theirs.units, theirs.inside)
        assert mine.moved == theirs.moved
        assert mine.distance_before == pytest.approx(theirs.distance_before)
        assert mine.distance_after == pytest.approx(theirs.distance_after)
        assert mine.primal == pytest.approx(theirs.primal, abs=scale)
        assert mine.dual == pytest.approx(theirs.dual, abs=scale)
        assert mine.gap == pytest.approx(theirs.gap, abs=scale)
    assert one.state_dict.keys() == other.state_dict.keys()
    for name, tensor in one.state_dict.items():
        assert torch.equal(tensor, other.state_dict[name])
        assert tensor.dtype == other.state_dict[name].dtype


SHOWN = ("mlp", "cnn", "trilinear", "heads", "gqa", "signed", "fixed_gqa", "packed_heads")


@pytest.mark.parametrize(
    ("metric", "name"),
    each_once(METRICS, ["mlp", "cnn", "groupnorm", "recurrent", "trilinear", *FAMILIES], but=SHOWN),
)
def test_batch_is_what_single_calls_give(metric: str, name: str) -> None:
    spec, sources, target = zoo(name, 2)
    options = {"spec": spec, "search": FORWARD, "metric": metric}
    results = align(sources, target, **options)
    for source, result in zip(sources, results, strict=True):
        assert result.ok
        assert result.unwrap() is result
        assert result.batch_size == 2
        assert_equal_results(result, align(source, target, **options))


def test_batch_in_float32_is_as_good_as_single_calls() -> None:
    spec, sources, target = zoo("deep", 5)
    sources, target = [single(source) for source in sources], single(target)
    results = align(sources, target, spec=spec, search=FORWARD)
    for source, result in zip(sources, results, strict=True):
        alone = align(source, target, spec=spec, search=FORWARD)
        assert result.distance == pytest.approx(alone.distance, rel=1e-6)
        assert result.lower_bound == pytest.approx(alone.lower_bound, rel=1e-9)


def test_default_search_serves_every_model() -> None:
    spec, sources, target = zoo("mlp", 2)
    for result in align(sources, target, spec=spec):
        assert result.lower_bound <= result.distance < result.distance_before
        for group in result.groups:
            assert group.gap <= 1e-9 * (1 + abs(group.primal))


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda states: (s for s in states)])
def test_sources_come_in_any_sequence(kind: Callable) -> None:
    spec, sources, target = zoo("mlp", 3)
    results = align(kind(sources), target, spec=spec, search=FORWARD)
    assert isinstance(results, list)
    expected = [align(source, target, spec=spec, search=FORWARD).distance for source in sources]
    assert [result.distance for result in results] == pytest.approx(expected)
    alone = align(kind(sources[:1]), target, spec=spec, search=FORWARD)
    assert isinstance(alone, list)
    assert [result.distance for result in alone] == pytest.approx(expected[:1])


# Failures


def nan(state: State) -> State:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    return {**state, name: torch.full_like(state[name], torch.nan)}


def infinite_buffer(state: State) -> State:
    return {**state, "n1.running_var": torch.full_like(state["n1.running_var"], torch.inf)}


def integers(state: State) -> State:
    return {**state, "fc2.bias": state["fc2.bias"].long()}


def other_shape(state: State) -> State:
    return {**state, "fc2.bias": state["fc2.bias"][:-1]}


def without_a_tensor(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "fc2.bias"}


BAD = {
    "nan": (nan, CheckpointError, "NaN"),
    "infinite_buffer": (infinite_buffer, CheckpointError, "n1.running_var"),
    "integers": (integers, CheckpointError, "int64"),
    "other_shape": (other_shape, SpecError, "fc2.bias"),
    "missing_tensor": (without_a_tensor, SpecError, "missing"),
    "missing_file": (lambda state: "no_such_file.safetensors", CheckpointError, "no such file"),
    "number": (lambda state: 3, GpuAlignError, "int"),
    "not_a_tensor": (lambda state: {**state, "fc2.bias": 1.0}, GpuAlignError, "float"),
}


@functools.cache
def results_alone() -> list[AlignmentResult]:
    """Return what is found for each of four networks in a call of its own."""
    spec, sources, target = zoo("cnn", 4)
    return [align(source, target, spec=spec, search=FORWARD) for source in sources]


@pytest.mark.parametrize("place", slow([0, 1, 3], but=[1]))
@pytest.mark.parametrize(("spoil", "error", "text"), BAD.values(), ids=BAD)
def test_a_bad_source_stops_no_other(
    spoil: Callable, error: type[GpuAlignError], text: str, place: int
) -> None:
    spec, sources, target = zoo("cnn", 4)
    spoiled = [spoil(s) if number == place else s for number, s in enumerate(sources)]
    results = align(spoiled, target, spec=spec, search=FORWARD)
    for number, (expected, result) in enumerate(zip(results_alone(), results, strict=True)):
        if number != place:
            assert_equal_results(result, expected)
            continue
        assert isinstance(result, AlignmentFailure)
        assert not result.ok
        assert result.index == place
        assert result.status is Status.UNUSABLE
        assert isinstance(result.error, error)
        assert text in str(result.error)
        assert result.name == (spoiled[place] if isinstance(spoiled[place], str) else None)
        with pytest.raises(error, match=text):
            result.unwrap()
    with pytest.raises(error, match=text):
        align(spoiled[place], target, spec=spec, search=FORWARD)


def test_several_failures_of_several_kinds_keep_their_places(tmp_path: Path) -> None:
    sources = zoo("cnn", 4)[1]
    for number, source in enumerate(sources):
        save_file(source if number != 2 else nan(source), tmp_path / f"{number}.safetensors")
    paths = [tmp_path / f"{number}.safetensors" for number in (0, 7, 1, 2, 3)]
    (tmp_path / "7.safetensors").write_bytes(b"no checkpoint")
    model, inputs = model_of("cnn", seed=0)
    results = align([*paths, mlp([3, 4, 2])], model, example_inputs=inputs, search=FORWARD)
    assert [result.ok for result in results] == [True, False, True, False, True, False]
    names = [None if result.ok else result.name for result in results]
    assert names == [None, str(paths[1]), None, str(paths[3]), None, None]
    assert [result.index for result in results if not result.ok] == [1, 3, 5]
    for number, place in enumerate((0, 2, None, 4)):
        if place is not None:
            assert results[place].function_preserved
            expected = align(sources[number], model, example_inputs=inputs, search=FORWARD)
            assert_equal_results(results[place], expected)


def test_all_bad_is_a_list_of_failures_and_a_bad_target_an_error() -> None:
    spec, sources, target = zoo("cnn", 2)
    results = align([nan(sources[0]), "no.pt"], target, spec=spec, search=FORWARD)
    assert [result.ok for result in results] == [False, False]
    with pytest.raises(CheckpointError, match="the target cannot be aligned"):
        align(sources, nan(target), spec=spec, search=FORWARD)
    with pytest.raises(SpecError, match="the target does not fit"):
        align(sources, other_shape(target), spec=spec, search=FORWARD)
    with pytest.raises(CheckpointError):
        align(sources, "no.pt", spec=spec, search=FORWARD)


def test_a_model_whose_assignments_fail_stops_no_other() -> None:
    """Weights whose products overflow float32 are finite themselves: only the solver can tell."""
    spec, sources, target = zoo("deep", 5)
    sources, target = [single(source) for source in sources], single(target)
    sources[3] = {name: tensor * 3e37 for name, tensor in sources[3].items()}
    target = {name: tensor * 1e3 for name, tensor in target.items()}
    results = align(sources, target, spec=spec, search=FORWARD)
    assert [result.ok for result in results] == [True, True, True, False, True]
    assert results[3].status is Status.NOT_FINITE
    assert results[3].index == 3
    assert isinstance(results[3].error, AssignmentError)
    for number in (0, 1, 2, 4):
        alone = align(sources[number], target, spec=spec, search=FORWARD)
        assert results[number].distance == pytest.approx(alone.distance, rel=1e-6)
    with pytest.raises(AssignmentError):
        align(sources[3], target, spec=spec, search=FORWARD)


def test_a_module_that_cannot_run_stops_no_other() -> None:
    class Broken(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("broken")

    models = [mlp([3, 4, 2]) for _ in range(3)]
    models[1] = Broken(*models[1])
    inputs = torch.randn(2, 3)
    results = align(models, mlp([3, 4, 2]), example_inputs=inputs, search=FORWARD)
    assert [result.ok for result in results] == [True, False, True]
    assert isinstance(results[1].error, ModelError)
    for number in (0, 2):
        result = results[number]
        assert result.function_preserved
        assert_same_function(models[number], inputs, models[number].state_dict(), result.state_dict)


def test_the_symmetries_come_from_a_source_that_fits_the_target() -> None:
    target = mlp([3, 4, 2]).state_dict()
    sources = [mlp([3, 5, 2]), mlp([3, 4, 2]), {}]
    for order in (sources, sources[::-1]):
        results = align(order, target, example_inputs=torch.randn(2, 3), search=FORWARD)
        assert [result.ok for result in results] == [source is sources[1] for source in order]
        assert results[1].function_preserved


def test_a_problem_of_many_names_the_source_it_cannot_take() -> None:
    spec, sources, target = zoo("cnn", 3)
    with pytest.raises(CheckpointError, match="source 1: "):
        AlignmentProblem([sources[0], nan(sources[1]), sources[2]], target, spec)


# Memory


def with_memory(
    monkeypatch: pytest.MonkeyPatch,
    models: int,
    sources: list[State],
    spec: PermutationSpec,
    search: Search = FORWARD,
    missing: int = 0,
) -> None:
    """Let so many models fit the memory at once, but for some bytes, beside the results of all."""
    need = bytes_per_model(spec, METRICS["l2"], search, compute_dtype(spec, sources))
    held = sum(tensor.nbytes for source in sources for tensor in source.values())
    monkeypatch.setenv("GPU_ALIGN_MEMORY", str(2 * models * need + held - missing))


@pytest.mark.parametrize("fitting", [1, 3, 7])
def test_batches_give_what_one_batch_gives(fitting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, sources, target = zoo("signed", 7)
    sources[4] = nan(sources[4])
    whole = align(sources, target, spec=spec, search=FORWARD)
    with_memory(monkeypatch, fitting, sources, spec)
    seen: list[Progress] = []
    parts = align(sources, target, spec=spec, search=FORWARD, progress=seen.append)
    for one, other in zip(whole, parts, strict=True):
        assert one.ok == other.ok
        if one.ok:
            assert_equal_results(one, other)
            assert one.batch_size == 6
            assert other.batch_size <= fitting
            assert other.to_json()["batch_size"] == other.batch_size
    named = {entry.stage.partition(", ")[2] for entry in seen}
    if fitting >= 6:
        assert named == {""}
    else:
        assert f"models 1 to {parts[0].batch_size} of 6" in named
        assert len(named) == -(-6 // fitting)


DRAWING = {
    "descent": CoordinateDescent(starts=3, initial="random"),
    "annealing": Annealing(starts=2),
    "frank_wolfe": FrankWolfe(starts=2),
    "recombination": Recombination(population=4, children=4, generations=2),
    "beam": BeamDescent(patience=2),
    "noise": LayerwiseBeam(3, Noise(4)),
    "portfolio": Portfolio(
        (CoordinateDescent(), Annealing(starts=2)), (BeamDescent(patience=2),), width=4
    ),
}


@pytest.mark.parametrize("name", slow(["mlp", "signed", "heads"], but=["mlp"]))
@pytest.mark.parametrize("search", DRAWING.values(), ids=DRAWING)
def test_what_is_found_for_a_model_does_not_depend_on_the_others(search: Search, name: str) -> None:
    spec, sources, target = zoo(name, 3)
    together = align(sources, target, spec=spec, search=search, seed=3)
    for source, result in zip(sources[1:], together[1:], strict=True):
        alone = align(source, target, spec=spec, search=search, seed=3)
        assert result.distance == pytest.approx(alone.distance, rel=1e-9)


def test_the_default_search_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, sources, target = zoo("mlp", 4)
    chosen: list[Search] = []

    def noted(search: Search, *args: object, **options: object) -> object:
        chosen.append(search)
        return run(search, *args, **options)

    run = many.run_search
    monkeypatch.setattr(many, "run_search", noted)
    align(sources, target, spec=spec, budget=Budget(steps=1))
    with_memory(monkeypatch, 1, sources, spec, chosen[0])
    align(sources, target, spec=spec, budget=Budget(steps=1))
    assert len(chosen) == 5
    assert all(search == chosen[0] for search in chosen)


def test_a_batch_that_runs_out_of_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, sources, target = zoo("mlp", 5)
    whole = align(sources, target, spec=spec, search=FORWARD)

    def small(problem: AlignmentProblem, *args: object, **options: object) -> object:
        if problem.models > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return certify(problem, *args, **options)

    certify = many.certificates
    monkeypatch.setattr(many, "certificates", small)
    for one, other in zip(whole, align(sources, target, spec=spec, search=FORWARD), strict=True):
        assert_equal_results(one, other)
        assert other.batch_size <= 2


def test_interrupt_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, sources, target = zoo("mlp", 4)
    with_memory(monkeypatch, 1, sources, spec)

    def interrupt(entry: Progress) -> None:
        if "models 2 to 2" in entry.stage:
            raise KeyboardInterrupt

    results = align(sources, target, spec=spec, search=FORWARD, progress=interrupt)
    assert [result.ok for result in results] == [True, True, False, False]
    assert results[0].status is Status.CONVERGED
    assert {result.status for result in results[1:]} == {Status.INTERRUPTED}


@given(st.integers(0, 500), st.integers(0, 10**9), st.integers(0, 10**12))
def test_batch_ranges_cover_all_and_fit(models: int, need: int, free: int) -> None:
    ranges = batch_ranges(models, need, free)
    assert [number for part in ranges for number in part] == list(range(models))
    sizes = [len(part) for part in ranges]
    assert all(sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert all(size == 1 or size * need <= free for size in sizes)


def test_memory_is_measured_and_needs_grow_with_what_is_held() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50
    spec = pair("cnn").spec

    def need(search: Search, dtype: torch.dtype = torch.float32) -> int:
        return bytes_per_model(spec, METRICS["l2"], search, dtype)

    weights = sum(t.numel() for t in pair("cnn").source.values())
    assert need(FORWARD) > 4 * weights
    assert need(CoordinateDescent(starts=500)) > 10 * need(FORWARD)
    assert need(Annealing(starts=64), torch.float64) > need(Annealing(starts=64))


@pytest.mark.parametrize("limit", ["0", "4096"])
def test_the_environment_limits_the_memory(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_ALIGN_MEMORY", limit)
    assert free_bytes(torch.device("cpu")) == int(limit)


def test_a_limit_of_memory_beyond_what_is_free_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GPU_ALIGN_MEMORY", str(2**60))
    assert free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("limit", ["8G", "-1", "1e9", " "])
def test_a_limit_of_memory_is_a_number_of_bytes(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_ALIGN_MEMORY", limit)
    with pytest.raises(InputError, match="GPU_ALIGN_MEMORY: expected a number of bytes, got"):
        free_bytes(torch.device("cpu"))


def test_memory_of_a_container_is_what_its_control_group_has_left(tmp_path: Path) -> None:
    assert _left_in_control_group(tmp_path) == math.inf
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1500\ninactive_file 900\nactive_file 100\n")
    for limit, left in {"max": math.inf, "4096": 2096, "1000": 0}.items():
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert _left_in_control_group(tmp_path) == left


class Own(Search):
    name = "Own"

    def init(self, run: object, start: object) -> None: ...

    def step(self, run: object, state: object) -> None: ...


def test_hypotheses_are_counted_for_every_search() -> None:
    searches = [
        *(LayerwiseBeam(width=3), CoordinateDescent(starts=3), Annealing(starts=3)),
        *(FrankWolfe(starts=3), BeamDescent(width=3), Recombination(population=3), Own()),
    ]
    for search in searches:
        assert search.hypotheses_per_model >= 3
    assert Portfolio().hypotheses_per_model >= Portfolio().width
