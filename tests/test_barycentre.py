"""barycentre: many models in one frame, by rounds that never take them further from their mean."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from marks import slow
from networks import State, mlp, model_of, pair, random_pair, randomised
from oracles import assert_same_function
from torch import Tensor

from gpu_align import (
    InputError,
    Permutation,
    PermutationSpec,
    Progress,
    Status,
    align,
    barycentre,
    cycle_error,
    discover,
)
from gpu_align._align._barycentre import Barycentre

METHODS = ["batch", "one_by_one"]
UNLIKE = ["mlp", "cnn", "deep", "recurrent", "trilinear", "heads", "signed_gqa", "packed_heads"]


def scattered(
    name: str, count: int, noise: float = 0.0, seed: int = 0
) -> tuple[PermutationSpec, State, list[State], list[Permutation]]:
    """Return a spec, a network, copies of it reordered, and what reordered each."""
    found = pair(name)
    permutations = Permutation.random(found.spec, count, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    copies = []
    for permutation in permutations:
        noisy = {
            key: tensor + noise * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if found.spec.lookup(key).counted
            else tensor
            for key, tensor in found.target.items()
        }
        copies.append(permutation.apply(noisy))
    return found.spec, found.target, copies, permutations


def spread_of(spec: PermutationSpec, states: Sequence[State]) -> float:
    """Return the mean squared distance to the mean by the textbook."""
    total = 0.0
    for name, tensor in spec.tensors.items():
        if tensor.counted:
            stacked = torch.stack([state[name].double() for state in states])
            total += float(((stacked - stacked.mean(0)) ** 2).sum()) / len(states)
    return total


def assert_in_one_frame(spec: PermutationSpec, states: Sequence[State], found: Barycentre) -> None:
    """Assert what holds of every answer."""
    assert len(found.permutations) == len(found.state_dicts) == len(states)
    for state, permutation, moved in zip(
        states, found.permutations, found.state_dicts, strict=True
    ):
        again = permutation.apply(state)
        assert moved.keys() == state.keys()
        assert all(torch.equal(moved[key], again[key]) for key in state)
    assert found.spread_before == pytest.approx(spread_of(spec, states), rel=1e-12)
    assert found.spread == pytest.approx(spread_of(spec, found.state_dicts), rel=1e-12, abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(found.spreads))
    for name, tensor in spec.tensors.items():
        if tensor.counted:
            mean = torch.stack([state[name] for state in found.state_dicts]).mean(0)
            assert torch.allclose(found.mean[name], mean, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(found.mean[name], found.state_dicts[0][name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", slow(UNLIKE, but=["mlp", "recurrent", "signed_gqa"]))
def test_unlike_models_come_closer_to_their_mean(name: str, method: str) -> None:
    first = pair(name, 0)
    others = [random_pair(first.spec, seed) for seed in (1, 2)]
    states = [first.source, first.target, *(other.source for other in others)]
    found = barycentre(states, first.spec, method=method, device="cpu")
    assert_in_one_frame(first.spec, states, found)
    assert found.status is Status.CONVERGED
    assert found.spread < found.spread_before
    assert found.cycle_error() == 0


@pytest.mark.parametrize(("method", "start"), [("batch", 0), ("one_by_one", 2)])
@pytest.mark.parametrize("name", ["mlp", "cnn", "deep", "heads"])
def test_reordered_copies_fall_together(name: str, method: str, start: int) -> None:
    spec, _, copies, permutations = scattered(name, 4, noise=1e-3)
    found = barycentre(copies, spec, method=method, start=start, frame=1, device="cpu")
    assert found.spread < 1e-4 * found.spread_before
    for number, permutation in enumerate(permutations):
        planted = permutations[1].compose(permutation.inverse())
        mine, theirs = (
            found.permutations[number].apply(copies[number]),
            planted.apply(copies[number]),
        )
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_frame_is_the_order_of_the_chosen_model() -> None:
    spec, _, copies, _ = scattered("mlp", 4, noise=0.3)
    free = barycentre(copies, spec, start=None, device="cpu")
    chosen = barycentre(copies, spec, start=None, frame=2, device="cpu")
    assert not any(chosen.permutations[2].moved().values())
    assert chosen.spread == free.spread
    for i, j in itertools.permutations(range(4), 2):
        one, other = free.between(i, j), chosen.between(i, j)
        assert all(torch.equal(one[group], other[group]) for group in spec.groups)
    back = free.permutations[2].inverse().apply(free.mean)
    assert all(torch.equal(back[key], chosen.mean[key]) for key in back)


def test_pairwise_alignments_have_cycle_errors_and_the_frame_has_none() -> None:
    models = [randomised(mlp([4, 12, 12, 3]), seed) for seed in range(4)]
    spec = discover(models[0], torch.zeros(2, 4, dtype=torch.float64))
    states = [model.state_dict() for model in models]
    maps = {
        (i, j): align(states[i], states[j], spec=spec, search="descent", device="cpu").permutation
        for i, j in itertools.permutations(range(4), 2)
    }
    assert 0 < cycle_error(maps) <= 1
    assert barycentre(states, spec, device="cpu").cycle_error() == 0


def test_the_cycle_error_counts_units_that_do_not_return() -> None:
    spec = pair("shallow").spec  # one group of four units
    [group] = spec.groups
    identity = Permutation.identity(spec)
    swap = Permutation(spec, {group: torch.tensor([1, 0, 2, 3])})
    maps = dict.fromkeys(itertools.permutations(range(3), 2), identity)
    assert cycle_error(maps) == 0
    # Three of the six ordered triangles go from 0 to 1, and two of four units go astray in each.
    assert cycle_error({**maps, (0, 1): swap}) == pytest.approx(3 / 6 * 2 / 4)
    assert cycle_error({(0, 1): swap, (1, 0): identity}) == 0


@pytest.mark.parametrize("name", ["mlp", "signed_gqa"])
def test_the_cycle_error_is_that_of_compositions(name: str) -> None:
    spec = pair(name).spec
    drawn = iter(Permutation.random(spec, 12, seed=0))
    maps = {(i, j): next(drawn) for i, j in itertools.permutations((0, 2, 3, 7), 2)}
    moved = total = 0
    for i, j, k in itertools.permutations((0, 2, 3, 7), 3):
        cycle = maps[k, i].compose(maps[j, k]).compose(maps[i, j])
        moved += sum(cycle.moved().values())
        total += sum(map(len, cycle.perms.values()))
    assert cycle_error(maps) == pytest.approx(moved / total, rel=1e-12)


def test_functions_stay_and_nothing_is_shared() -> None:
    model, inputs = model_of("cnn")
    others = [model_of("cnn", seed)[0] for seed in (1, 2)]
    found = barycentre([model, *others], example_inputs=inputs, device="cpu")
    for network, state in zip([model, *others], found.state_dicts, strict=True):
        assert_same_function(network, inputs, network.state_dict(), state)
        memory = {t.data_ptr() for t in network.state_dict().values() if t.numel()}
        assert memory.isdisjoint(t.data_ptr() for t in state.values() if t.numel())


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_fixes_the_answer_and_batches_do_not_change_it(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _, copies, _ = scattered("mlp", 5, noise=1.0)
    one, two = (barycentre(copies, spec, method=method, seed=3, device="cpu") for _ in range(2))
    monkeypatch.setenv("GPU_ALIGN_MEMORY", "0")
    cut = barycentre(copies, spec, method=method, seed=3, device="cpu")
    for other in (two, cut):
        assert list(one.spreads) == list(other.spreads)
        for mine, theirs in zip(one.state_dicts, other.state_dicts, strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(("count", "method"), [(3, "one_by_one"), (33, "batch")])
def test_few_models_are_realigned_one_by_one(count: int, method: str) -> None:
    spec, _, copies, _ = scattered("tiny", count, noise=1.0)
    chosen = barycentre(copies, spec, method=method, device="cpu")
    assert barycentre(copies, spec, device="cpu").spreads == chosen.spreads


def test_mappings_and_stacks_are_collections() -> None:
    spec, _, copies, _ = scattered("mlp", 3, noise=0.5)
    plain = barycentre(copies, spec, device="cpu")
    named = barycentre(dict(zip("abc", copies, strict=True)), spec, device="cpu")
    stacked = {key: torch.stack([copy[key] for copy in copies]) for key in copies[0]}
    together = barycentre(stacked, spec, device="cpu")
    assert named.names == ["a", "b", "c"]
    assert plain.names == [None] * 3
    assert plain.spreads == named.spreads == together.spreads


def test_files_are_read_by_their_key_and_name_the_models(tmp_path: Path) -> None:
    spec, target, copies, _ = scattered("mlp", 3, noise=0.5)
    paths = []
    for number, copy in enumerate(copies):
        paths.append(tmp_path / f"{number}.pt")
        torch.save({"ema": copy, "model": target}, paths[-1])
    found = barycentre(paths, spec, key="ema", device="cpu")
    assert found.names == [str(path) for path in paths]
    assert found.spreads == barycentre(copies, spec, device="cpu").spreads


def test_single_precision_and_counts_are_kept() -> None:
    spec, _, copies, _ = scattered("cnn", 3, noise=0.5)
    short = [{k: t.float() if t.is_floating_point() else t for k, t in c.items()} for c in copies]
    found = barycentre(short, spec, device="cpu")
    assert {k: t.dtype for k, t in found.mean.items()} == {k: t.dtype for k, t in short[0].items()}


def test_one_model_is_its_own_mean() -> None:
    spec, target, _, _ = scattered("mlp", 1)
    for method in METHODS:
        found = barycentre([target], spec, method=method, device="cpu")
        assert (found.spread_before, found.spread, found.cycle_error()) == (0, 0, 0)
        assert all(torch.equal(found.mean[key], target[key]) for key in target)


@pytest.mark.parametrize("method", METHODS)
def test_an_interruption_leaves_the_last_whole_round(method: str) -> None:
    spec, _, copies, _ = scattered("mlp", 5, noise=1.0)
    whole = barycentre(copies, spec, method=method, start=None, device="cpu")
    assert len(whole.spreads) > 2

    def stop(entry: Progress) -> None:
        if entry.stage.startswith("round 2"):
            raise KeyboardInterrupt

    found = barycentre(copies, spec, method=method, start=None, device="cpu", progress=stop)
    assert found.status is Status.INTERRUPTED
    assert list(found.spreads) == list(whole.spreads[:2])
    assert_in_one_frame(spec, copies, found)


def test_rounds_can_be_limited() -> None:
    spec, _, copies, _ = scattered("mlp", 5, noise=1.0)
    found = barycentre(copies, spec, method="batch", start=None, rounds=1, device="cpu")
    assert (len(found.spreads), found.status) == (2, Status.SWEEP_BUDGET)


def test_bad_input_is_named() -> None:
    spec, target, copies, _ = scattered("mlp", 3)
    damaged = {**target, "0.weight": torch.full_like(target["0.weight"], math.nan)}
    bad: list[tuple[object, dict[str, object], str]] = [
        ([], {}, "at least one network"),
        (target, {}, "got one state dict"),
        ("file.pt", {}, "several networks"),
        ([target, damaged], {}, "model 1 cannot be used"),
        ({"x": target, "y": {"w": Tensor()}}, {}, r"model 1 \(y\) cannot be used"),
        (copies, {"start": 3}, "from 0 to 2"),
        (copies, {"frame": True}, "from 0 to 2"),
        (copies, {"method": "sum"}, "expected a method"),
        (copies, {"key": "ema"}, "no path was given"),
    ]
    for sources, arguments, message in bad:
        with pytest.raises(InputError, match=message):
            barycentre(sources, spec, device="cpu", **arguments)  # type: ignore[arg-type]
