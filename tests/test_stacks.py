"""Stacks of models, and of permutations: many in one state dict, one call, one file."""

import re
from pathlib import Path

import pytest
import torch
from networks import mlp, model_of, pair
from safetensors.torch import save_file
from test_permutation import assert_permutations_equal
from torch import Tensor
from typer.testing import CliRunner

from gpu_align import (
    CheckpointError,
    CoordinateDescent,
    InputError,
    Permutation,
    SpecError,
    align,
    save_checkpoint,
)
from gpu_align._cli._main import app

FAST = CoordinateDescent(order="forward")
State = dict[str, Tensor]


def stack(states: list[State]) -> State:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def states(name: str, count: int) -> list[State]:
    return [dict(model_of(name, seed=seed)[0].state_dict()) for seed in range(1, count + 1)]


@pytest.mark.parametrize(("kind", "name"), [("module", "mlp"), ("state dict", "cnn")])
def test_a_stack_of_sources_is_a_list_of_sources(kind: str, name: str) -> None:
    model, inputs = model_of(name)
    sources = states(name, 3)
    spec = pair(name).spec if kind == "state dict" else None
    target = model if kind == "module" else dict(model.state_dict())
    options = {"spec": spec, "search": FAST, "example_inputs": None if spec else inputs}
    expected = align(sources, target, **options)
    found = align(stack(sources), target, **options)
    assert [result.distance for result in found] == [result.distance for result in expected]
    assert [result.index for result in found] == [0, 1, 2]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(t, other.state_dict[n]) for n, t in one.state_dict.items())


def test_a_stack_in_a_file_or_of_targets_is_said(tmp_path: Path) -> None:
    sources = [dict(mlp([3, 4, 2]).state_dict()) for _ in range(3)]
    spec = align(sources[0], sources[1], search=FAST).permutation.spec
    save_checkpoint(tmp_path / "stack.safetensors", stack(sources))
    with pytest.raises(SpecError, match="it is a stack of 3 models: take one"):
        align(tmp_path / "stack.safetensors", sources[0], spec=spec, search=FAST)
    with pytest.raises(SpecError, match="it is a stack of 3 models: take one"):
        align(sources[0], stack(sources), spec=spec, search=FAST)


def test_a_stack_is_named_where_nothing_but_its_names_are_known(tmp_path: Path) -> None:
    sources = [dict(mlp([3, 4, 2]).state_dict()) for _ in range(3)]
    said = "a stack of 3 models: take one, as in tensor.0., of each name"
    for source in (sources[0], stack(sources)):
        with pytest.raises(SpecError, match=f"looks like {said}"):
            align(source, stack(sources), search=FAST)
    for name, state in {"stack": stack(sources), "one": sources[0]}.items():
        save_checkpoint(tmp_path / f"{name}.safetensors", state)
    one, many = (str(tmp_path / f"{name}.safetensors") for name in ("one", "stack"))
    for words in (["align", many, one], ["align", one, many], ["inspect", many]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2
        assert re.search(said, done.output)
    # What it says to do:
    taken = {name: tensor[1] for name, tensor in stack(sources).items()}
    assert align(taken, sources[1], search=FAST).distance == 0
    assert len(align(stack(sources), sources[1], search=FAST)) == 3


@pytest.mark.parametrize("name", ["cnn", "heads", "signed_heads"])
def test_a_permutation_reorders_every_model_of_a_stack(
    name: str, generator: torch.Generator
) -> None:
    networks = pair(name)
    permutation = Permutation.random(networks.spec, generator=generator)
    each = [dict(networks.source), dict(networks.target)]
    expected = stack([permutation.apply(state) for state in each])
    found = permutation.apply(stack(each))
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", ["cnn", "signed_heads"])
def test_many_are_drawn_and_kept_in_one_file(name: str, tmp_path: Path) -> None:
    spec = pair(name).spec
    drawn = Permutation.random(spec, 4, seed=3)
    assert len(drawn) == 4
    assert_permutations_equal(drawn[0], Permutation.random(spec, seed=3))
    generator = torch.Generator().manual_seed(3)
    for permutation in drawn:
        assert_permutations_equal(permutation, Permutation.random(spec, generator=generator))
    assert Permutation.random(spec, 0) == []
    Permutation.save_each(tmp_path / "many.safetensors", drawn)
    for one, other in zip(Permutation.load_each(tmp_path / "many.safetensors"), drawn, strict=True):
        assert_permutations_equal(one, other)
    with pytest.raises(CheckpointError, match="a stack of 4 permutations"):
        Permutation.load(tmp_path / "many.safetensors")
    drawn[1].save(tmp_path / "one.safetensors")
    (only,) = Permutation.load_each(tmp_path / "one.safetensors")
    assert_permutations_equal(only, drawn[1])


def test_what_is_no_stack_of_permutations_is_refused(tmp_path: Path) -> None:
    spec = pair("cnn").spec
    with pytest.raises(InputError, match="a seed or a generator"):
        Permutation.random(spec, seed=1, generator=torch.Generator())
    with pytest.raises(InputError, match="at least one permutation"):
        Permutation.save_each(tmp_path / "p.safetensors", [])
    others = [Permutation.random(spec), Permutation.random(pair("heads").spec)]
    with pytest.raises(InputError, match="all of one spec"):
        Permutation.save_each(tmp_path / "p.safetensors", others)
    perms = {name: torch.arange(spec.units(name)).expand(2, -1).clone() for name in spec.groups}
    for count, refused in (("3", "does not hold the 3"), ("x", "damaged"), ("9" * 50, "damaged")):
        metadata = {"gpu_align_spec": spec.to_json(), "gpu_align_count": count}
        save_file(perms, tmp_path / "p.safetensors", metadata=metadata)
        with pytest.raises(CheckpointError, match=refused):
            Permutation.load_each(tmp_path / "p.safetensors")
    metadata["gpu_align_count"] = "2"
    next(iter(perms.values()))[1, 0] = 1
    save_file(perms, tmp_path / "p.safetensors", metadata=metadata)
    with pytest.raises(SpecError, match="permutation of range"):
        Permutation.load_each(tmp_path / "p.safetensors")
