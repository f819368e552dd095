"""Proofs in `align`, on the command line, in results and on the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import mlp, pair, randomised
from safetensors.torch import save_file
from typer.testing import CliRunner

from gpu_align import (
    AlignmentProblem,
    CoordinateDescent,
    InputError,
    Permutation,
    Proof,
    Status,
    align,
    chain_spec,
    check_proof,
    prove,
)
from gpu_align._align import ResultRecord
from gpu_align._align import _proving as proving
from gpu_align._cli._main import app
from gpu_align._proof import narrowed
from gpu_align._report import render_report


def noisy(widths: tuple[int, ...], seed: int, noise: float = 0.5) -> tuple[dict, dict]:
    """Return a network reordered and with noise, and the network."""
    target = randomised(mlp(widths), seed).state_dict()
    generator = torch.Generator().manual_seed(seed)
    source = Permutation.random(chain_spec(target), generator=generator).apply(target)
    return {
        name: tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in source.items()
    }, target


def test_a_result_has_its_proof() -> None:
    source, target = noisy((6, 8, 7, 3), 0)
    plain = align(source, target)
    result = align(source, target, prove=30)
    assert (plain.proof, "proof" in plain.to_json()) == (None, False)
    assert result.status is Status.PROVED_OPTIMAL
    assert isinstance(result.proof, Proof)
    assert result.proof.distance == pytest.approx(result.distance)
    assert result.lower_bound == pytest.approx(result.distance)
    assert result.lower_bound <= result.distance == plain.distance
    assert "proved" in result.summary()
    check_proof(AlignmentProblem(source, target, chain_spec(target)), result.proof)
    again = ResultRecord.from_json(json.loads(json.dumps(result.to_json())))
    assert again.status is Status.PROVED_OPTIMAL
    assert again.proof is not None
    assert again.proof.to_json() == result.proof.to_json()


def test_every_source_has_a_proof() -> None:
    target = noisy((4, 5, 5, 2), 0)[1]
    sources = [noisy((4, 5, 5, 2), 0, noise)[0] for noise in (0.1, 0.5)]
    for result in align(sources, target, prove=30, search=CoordinateDescent(starts=4)):
        assert result.ok
        assert isinstance(result.proof, Proof)
        assert result.proof.distance == pytest.approx(result.distance)


def test_ctrl_c_ends_the_proof_and_keeps_the_result() -> None:
    networks = pair("mlp")

    def interrupt(step: object) -> None:
        if getattr(step, "stage", "") == "Proof":
            raise KeyboardInterrupt

    options = {"spec": networks.spec, "search": CoordinateDescent(order="forward")}
    plain = align(networks.source, networks.target, **options)
    result = align(networks.source, networks.target, prove=30, progress=interrupt, **options)
    assert result.proof is not None
    assert result.proof.status in (Status.INTERRUPTED, Status.PROVED_OPTIMAL)
    assert result.distance == plain.distance
    assert plain.lower_bound <= result.lower_bound <= result.distance


def test_what_a_proof_leaves_is_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descent that stops early is replaced by what is found among the candidates."""
    found = []
    searched = proving._searched

    def watched(*given: object) -> object:
        found.append(searched(*given))
        return found[-1]

    monkeypatch.setattr(proving, "_searched", watched)
    for seed in range(20):
        source, target = noisy((4, 9, 9, 2), seed, 1.0)
        search = CoordinateDescent(order="forward")
        plain = align(source, target, search=search)
        result = align(source, target, search=search, prove=30)
        assert result.distance <= plain.distance * (1 + 1e-12)
        if found[-1] is not None:
            assert result.distance < plain.distance
            return
    pytest.fail("no descent of these ended in an optimum that a proof could improve")


def test_a_narrowed_problem_is_the_same_for_what_is_left() -> None:
    networks = pair("signed")
    problem = AlignmentProblem(networks.source, networks.target, networks.spec)
    proof = prove(problem, Permutation.identity(networks.spec), seconds=30)
    alive = {group: torch.ones_like(mask) for group, mask in proof.alive.items()}
    alive["a"][0, 1] = alive["a"][0, 1 + 3] = False  # with either sign
    alive["a"][1, 2] = False
    left = narrowed(problem, replace(proof, alive=alive))
    perms = problem.vectors(Permutation.identity(networks.spec))
    for order, is_left in (([0, 1, 2], True), ([0, 2, 1], True), ([1, 0, 2], False)):
        perms |= {name: torch.tensor([order]) for name in ("a", "a±")}
        here, there = (float(p.hypotheses(perms).objective) for p in (problem, left))
        assert (there == pytest.approx(here)) == is_left
        assert there >= here - 1e-9


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), "many", True])
def test_seconds_are_checked(seconds: object) -> None:
    networks = pair("tiny")
    with pytest.raises(InputError, match="seconds above 0"):
        align(networks.source, networks.target, spec=networks.spec, prove=seconds)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = [tmp_path / "b.safetensors", tmp_path / "a.safetensors"]
    for path, state in zip(paths, noisy((6, 8, 7, 3), 0), strict=True):
        save_file(state, path)
    return str(paths[0]), str(paths[1])


def test_the_command_proves_and_writes(files: tuple[str, str], tmp_path: Path) -> None:
    proof, result = tmp_path / "proof.safetensors", tmp_path / "result.json"
    options = ["--prove", "30", "--proof", str(proof), "--json-file", str(result)]
    done = CliRunner().invoke(app, ["align", *files, *options])
    assert done.exit_code == 0, done.output
    assert "proved optimal" in done.output
    data = json.loads(result.read_text())
    assert data["status"] == "proved_optimal"
    assert data["proof"]["status"] == "proved_optimal"
    assert Proof.load(proof).is_optimal
    page = render_report(data)
    assert "Optimal over all groups" in page
    assert "Lower bound from" in page


def test_the_command_wants_seconds_for_a_proof(files: tuple[str, str], tmp_path: Path) -> None:
    options = ["--proof", str(tmp_path / "proof.safetensors")]
    done = CliRunner().invoke(app, ["align", *files, *options])
    assert done.exit_code == 2
    assert "--prove" in done.output
