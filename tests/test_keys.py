"""Which state dict of a file is meant, in Python as on the command line."""

from pathlib import Path

import pytest
import torch
from networks import mlp
from torch import Tensor, nn
from typer.testing import CliRunner

from gpu_align import (
    AlignmentFailure,
    CheckpointError,
    CoordinateDescent,
    InputError,
    Permutation,
    align,
    canonicalize,
    chain_spec,
    discover,
    save_checkpoint,
)
from gpu_align._cli._main import app

FAST = CoordinateDescent(order="forward")
State = dict[str, Tensor]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mlp([3, 6, 2])


def planted(state: State, seed: int) -> State:
    return Permutation.random(chain_spec(state), seed=seed).apply(state)


@pytest.fixture
def work(tmp_path: Path) -> dict[str, State]:
    """Write target.pt, and b.pt whose student is a reordered copy of target's."""
    states = {
        "student": dict(network(0).state_dict()),
        "teacher": dict(network(1).state_dict()),
    }
    torch.save(states, tmp_path / "target.pt")
    torch.save({name: planted(s, seed=3) for name, s in states.items()}, tmp_path / "b.pt")
    torch.save(planted(states["teacher"], seed=4), tmp_path / "plain.pt")
    return states


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_a_key_is_of_both_files(name: str, work: dict[str, State], tmp_path: Path) -> None:
    result = align(tmp_path / "b.pt", tmp_path / "target.pt", key=name, search=FAST)
    assert result.distance == 0
    assert all(torch.equal(t, work[name][n]) for n, t in result.state_dict.items())


def test_a_target_may_have_a_key_of_its_own(work: dict[str, State], tmp_path: Path) -> None:
    files = (tmp_path / "b.pt", tmp_path / "target.pt")
    crossed = align(*files, key="student", target_key="teacher", search=FAST)
    expected = align(planted(work["student"], seed=3), work["teacher"], search=FAST)
    assert crossed.distance == expected.distance > 0
    alone = align(tmp_path / "plain.pt", files[1], key="", target_key="teacher", search=FAST)
    assert alone.distance == 0
    for only in ({"key": "teacher"}, {"target_key": "teacher"}):
        assert align(work["teacher"], files[1], **only, search=FAST).distance == 0


def test_a_key_is_of_every_file_of_a_list(work: dict[str, State], tmp_path: Path) -> None:
    sources = {"file": tmp_path / "b.pt", "state": work["teacher"], "bad": tmp_path / "plain.pt"}
    found = align(sources, work["student"], key="student", search=FAST)
    assert found["file"].unwrap().distance == 0
    assert found["state"].unwrap().distance > 0
    assert isinstance(found["bad"], AlignmentFailure)
    assert 'no state dict under the key "student"' in str(found["bad"].error)


def test_the_errors_are_those_of_the_command(work: dict[str, State], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", work["student"])
    b, safe = tmp_path / "b.pt", tmp_path / "a.safetensors"
    for source, target, options in [
        (b, b, {}),
        (b, b, {"key": "nope"}),
        (b, b, {"key": "student", "target_key": "nope"}),
        (safe, b, {"key": "student"}),
    ]:
        with pytest.raises(CheckpointError) as refused:
            align(source, target, **options, search=FAST)
        flags = [w for n, v in options.items() for w in (f"--{n.replace('_', '-')}", v)]
        said = CliRunner().invoke(app, ["align", str(source), str(target), *flags, "--json"])
        assert said.exit_code == 2
        assert str(refused.value) in said.output.replace("\\\\", "\\").replace('\\"', '"')


def test_a_key_without_a_file_is_refused(work: dict[str, State]) -> None:
    one, other = work.values()
    for options in ({"key": "student"}, {"target_key": "student"}):
        with pytest.raises(InputError, match="no path was given; leave it out"):
            align(one, other, **options)
    with pytest.raises(InputError, match="no path was given"):
        canonicalize(network(0), example_inputs=torch.randn(2, 3), key="student")
    with pytest.raises(InputError, match="expected a key as a str"):
        align("b.pt", "a.pt", key=3)


def test_canonicalize_reads_the_state_dict_under_a_key(tmp_path: Path) -> None:
    model, inputs = network(0), torch.randn(2, 3)
    spec, state = discover(model, inputs), dict(network(1).state_dict())
    torch.save({"one": dict(model.state_dict()), "two": state}, tmp_path / "both.pt")
    with pytest.raises(CheckpointError, match="choose one by key"):
        canonicalize(tmp_path / "both.pt", spec=spec)
    found = canonicalize(tmp_path / "both.pt", spec=spec, key="two")
    expected = canonicalize(state, spec=spec)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
