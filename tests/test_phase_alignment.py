"""Alignment over phases: planted symmetries, brute force, bounds, and what it does not touch."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_phases import INPUTS, drawn, largest_gap, siren, spec_of
from torch import Tensor

from gpu_align import (
    AlignmentProblem,
    AlignmentResult,
    CoordinateDescent,
    InputError,
    Permutation,
    PermutationSpec,
    Progress,
    SearchStore,
    Status,
    align,
    canonicalize,
    prove,
)
from gpu_align._align import ResultRecord, Settings, align_networks
from gpu_align._search import ProgressCallback
from gpu_align.learn import Elements, Siren, WeightSpace

State = dict[str, Tensor]
CHEAP = {"search": CoordinateDescent(16, initial="random")}


def without_phases(spec: PermutationSpec) -> PermutationSpec:
    groups = {name: replace(group, phase=None) for name, group in spec.groups.items()}
    return replace(spec, groups=groups)


def random_state(like: Siren, seed: int, dtype: torch.dtype = torch.float64) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, tensor in like.state_dict().items()
    }


def squared(first: State, second: State) -> float:
    return sum(float((first[name] - second[name]).double().square().sum()) for name in first)


def least_distance(source: State, target: State, sizes: list[int], w0: float) -> float:
    """The least distance over all orders, signs and phases of -2 to 2 half periods.

    Layer after layer: what the layers before cost at least for each order and signs of the last.
    """
    shift, costs, before = math.pi / w0, torch.zeros(1, dtype=torch.float64), None
    for layer, size in enumerate(sizes):
        orders = torch.tensor(list(itertools.permutations(range(size))))
        signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=size))).double()
        perm = orders.repeat_interleave(len(signs) ** 2, 0)
        going_in = signs.repeat_interleave(len(signs), 0).repeat(len(orders), 1)
        coming_out = signs.repeat(len(orders) * len(signs), 1)
        bias = going_in * source[f"{layer}.bias"][perm]
        k = torch.arange(-2, 3).double()
        gaps = (target[f"{layer}.bias"] - bias)[..., None] - k * shift
        allowed = (k % 2 == 1) == (going_in != coming_out)[..., None]
        own = torch.where(allowed, gaps.square(), math.inf).amin(2).sum(1)
        a, b = target[f"{layer}.weight"], source[f"{layer}.weight"]
        rows = going_in[..., None] * b[perm]
        if before is None:
            costs = own + (a - rows).square().sum((1, 2))
        else:
            last, negated = before
            parts = []
            for some in rows.split(64):
                moved = some[:, :, last] * negated
                apart = (a[:, None] - moved).square().sum((1, 3))
                parts.append((apart + costs).amin(1))
            costs = own + torch.cat(parts)
        before = (perm, coming_out)
    last, negated = before
    layer = len(sizes)
    moved = source[f"{layer}.weight"][:, last] * negated
    head = (target[f"{layer}.weight"][:, None] - moved).square().sum((0, 2))
    biases = (target[f"{layer}.bias"] - source[f"{layer}.bias"]).square().sum()
    return float((costs + head).min() + biases)


@pytest.mark.parametrize(
    ("widths", "w0"),
    [
        ([3, 4, 5, 2], 6.0),
        *(
            pytest.param(widths, w0, marks=pytest.mark.slow)
            for widths in ([3, 6, 5, 2], [3, 5, 6, 4, 2])
            for w0 in (1.0, 6.0, 30.0)
        ),
    ],
)
def test_planted_symmetries_are_recovered(widths: list[int], w0: float) -> None:
    model = siren(widths, w0)
    spec, target = spec_of(model), dict(model.state_dict())
    sources = [drawn(spec, seed).apply(target) for seed in range(3)]
    for source, result in zip(sources, align(sources, target, spec=spec, **CHEAP), strict=True):
        found = result.unwrap()
        assert found.distance <= 1e-24 * found.distance_before
        assert found.lower_bound <= found.distance
        assert found.shifted == found.permutation.shifted()
        assert found.distance_before == pytest.approx(squared(source, target))
        assert largest_gap(found.permutation.apply(source), dict(found.state_dict)) < 1e-14
        assert largest_gap(dict(found.state_dict), target) < 1e-12


@pytest.mark.parametrize(
    ("sizes", "w0"),
    [
        ([2, 3], 6.0),
        pytest.param([3], 6.0, marks=pytest.mark.slow),
        pytest.param([2, 3], 1.0, marks=pytest.mark.slow),
        pytest.param([3, 2], 30.0, marks=pytest.mark.slow),
    ],
)
def test_brute_force_finds_nothing_closer_to_planted_networks(sizes: list[int], w0: float) -> None:
    model = siren([3, *sizes, 2], w0)
    spec, target = spec_of(model), dict(model.state_dict())
    for seed in range(2):
        planted = drawn(spec, seed, most=1).apply(target)
        noise = random_state(model, seed)
        source = {name: tensor + 0.02 * noise[name] / w0 for name, tensor in planted.items()}
        least = least_distance(source, target, sizes, w0)
        found = align(source, target, spec=spec, **CHEAP)
        assert found.distance <= least * (1 + 1e-9)
        assert found.lower_bound <= least * (1 + 1e-9)


@pytest.mark.parametrize(
    "w0", [6.0, *(pytest.param(w0, marks=pytest.mark.slow) for w0 in (1.0, 30.0))]
)
def test_of_random_networks_the_bound_holds_and_phases_only_bring_closer(w0: float) -> None:
    sizes = [2, 3]
    model = siren([3, *sizes, 2], w0)
    spec = spec_of(model)
    target = random_state(model, 100)
    sources = [random_state(model, seed) for seed in range(4)]
    with_phases = align(sources, target, spec=spec, **CHEAP)
    plain = align(sources, target, spec=without_phases(spec), **CHEAP)
    for source, result, other in zip(sources, with_phases, plain, strict=True):
        found = result.unwrap()
        assert found.distance <= other.unwrap().distance * (1 + 1e-12)
        least = least_distance(source, target, sizes, w0)
        assert found.lower_bound <= least * (1 + 1e-9)
        assert found.distance == pytest.approx(squared(dict(found.state_dict), target))


def test_the_answer_does_not_depend_on_the_batch() -> None:
    model = siren([3, 4, 5, 2])
    spec, target = spec_of(model), random_state(model, 9)
    sources = [drawn(spec, 1).apply(target), *(random_state(model, seed) for seed in range(2))]
    together = align(sources, target, spec=spec, **CHEAP)
    for source, result in zip(sources, together, strict=True):
        alone = align(source, target, spec=spec, **CHEAP)
        assert alone.distance == pytest.approx(result.unwrap().distance, rel=1e-12, abs=1e-20)


@pytest.mark.parametrize("metric", ["l2", "row"])
def test_metrics_to_which_a_shift_is_a_shift(metric: str) -> None:
    model = siren([3, 4, 5, 2])
    spec, target = spec_of(model), dict(model.state_dict())
    found = align(drawn(spec, 3).apply(target), target, spec=spec, metric=metric, **CHEAP)
    assert found.distance <= 1e-24 * found.distance_before
    assert found.lower_bound <= found.distance


def test_what_leaves_phases_as_they_are_says_so() -> None:
    model = siren([3, 4, 2])
    spec, target = spec_of(model), dict(model.state_dict())
    source = drawn(spec, 3).apply(target)
    for options in ({"metric": "normalized"}, {"prove": 1.0}):
        found = align(source, target, spec=spec, **CHEAP, **options)
        assert found.shifted is None
        assert found.permutation.phases == {}
        assert "shifted" not in found.to_json()
    assert align(source, target, spec=without_phases(spec), **CHEAP).shifted is None


def test_a_result_says_what_is_proved_of_phases() -> None:
    model = siren([3, 4, 2])
    spec, target = spec_of(model), dict(model.state_dict())
    found = align(drawn(spec, 3).apply(target), target, spec=spec, **CHEAP)
    assert found.status is not Status.PROVED_OPTIMAL
    assert "the lower bound is over all phases, gaps are with these" in found.summary()
    document = found.to_json()
    assert document["shifted"] == found.shifted
    assert ResultRecord.from_json(document).shifted == found.shifted
    problem = AlignmentProblem(drawn(spec, 3).apply(target), target, spec)
    with pytest.raises(InputError, match="shifts phases too"):
        prove(problem, found.permutation, seconds=1.0)


def test_the_function_of_short_weights_is_compared_before_they_are_rounded() -> None:
    model = siren([3, 4, 5, 2]).float()
    target = random_state(model, 1, torch.float32)
    found = align(model, target, example_inputs=INPUTS.float(), **CHEAP)
    assert found.shifted
    assert found.function_preserved
    assert "rounded to their dtype" in found.function_note
    assert {tensor.dtype for tensor in found.state_dict.values()} == {torch.float32}


def test_weights_are_shifted_by_elements_as_by_permutations() -> None:
    model = siren([3, 4, 5, 2])
    spec = spec_of(model)
    space = WeightSpace(spec)
    orders = [drawn(spec, seed) for seed in range(3)]
    states = [random_state(model, seed) for seed in range(3)]
    elements = Elements.of(orders)
    features = space.from_state_dicts(states)
    moved = space.to_state_dicts(space.act(elements, features))
    for number, (order, state) in enumerate(zip(orders, states, strict=True)):
        expected = order.apply(state)
        assert max(float((moved[n][number] - t).abs().max()) for n, t in expected.items()) < 1e-14
    back = space.act(elements.inverse(), space.act(elements, features))
    assert max(float((a - b).abs().max()) for a, b in zip(back, features, strict=True)) < 1e-12
    for order, read in zip(orders, elements.permutations(), strict=True):
        assert all(torch.equal(order.phases[name], k) for name, k in read.phases.items())
    wide = tuple(torch.cat([x, x], -1) for x in features)
    with pytest.raises(InputError, match="weights only"):
        space.act(elements, wide, channels=2)


def test_drawn_elements_with_phases_keep_canonical_forms() -> None:
    model = siren([3, 4, 5, 2])
    spec, state = spec_of(model), dict(model.state_dict())
    space = WeightSpace(spec)
    elements = space.random_elements(4, phases=3, seed=0)
    assert {int(k.abs().max()) for k in elements.phases.values()} == {3}
    moved = space.to_state_dicts(space.act(elements, space.from_state_dicts([state] * 4)))
    form = canonicalize(state, spec=spec)
    for number, order in enumerate(elements.permutations()):
        one = {name: tensor[number] for name, tensor in moved.items()}
        back = Permutation(spec, order.perms).inverse().apply(one)
        assert largest_gap(canonicalize(back, spec=spec), form) < 1e-11
    assert space.random_elements(2, seed=0).phases == {}


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupted_search_over_phases_is_resumed(number: int, tmp_path: Path) -> None:
    """With the phases as they are and with canonical ones there are two searches."""
    model = siren([3, 6, 7, 2])
    spec, states = spec_of(model), [random_state(model, seed) for seed in (1, 2)]
    second_steps = []

    def stop(entry: Progress) -> None:
        second_steps.extend([entry] if entry.step == 2 else [])
        if len(second_steps) == number:
            raise KeyboardInterrupt

    def found(store: SearchStore | None, progress: ProgressCallback | None) -> AlignmentResult:
        settings = Settings(CoordinateDescent(4, initial="random"), progress=progress)
        [result] = align_networks(states[:1], states[1], settings, spec=spec, store=store)
        return result.unwrap()

    whole = found(None, None)
    part = found(SearchStore(tmp_path / "s"), stop)
    assert part.status is Status.INTERRUPTED
    stages: list[Progress] = []
    resumed = found(SearchStore(tmp_path / "s", resume=True), stages.append)
    assert resumed.distance == whole.distance
    assert largest_gap(resumed.state_dict, whole.state_dict) == 0
    assert len([entry for entry in stages if entry.step == 2]) == 2 - number
