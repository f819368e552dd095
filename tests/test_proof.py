"""Proofs against brute force: never above the optimum, often at it, and not to be tampered with."""

import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from marks import slow
from networks import Pair, pair, planted_in, random_pair, resized
from oracles import all_symmetries
from test_problem import as_batch
from torch import Tensor

from gpu_align import (
    AlignmentProblem,
    CheckpointError,
    CoordinateDescent,
    GpuAlignError,
    InputError,
    Permutation,
    PermutationSpec,
    Progress,
    Proof,
    Status,
    check_proof,
    lower_bound,
    prove,
    run_search,
)
from gpu_align._proof import _effort
from gpu_align._proof._leftover import Leftover


def chain(*widths: int, depth: int = 1) -> PermutationSpec:
    """Layers between groups of these widths, with some fixed places of each weight between two."""
    names = [f"g{n}" for n in range(len(widths))]
    tensors: dict[str, list] = {"first": [names[0], 3], "last": [2, names[-1]]}
    tensors |= {f"b{n}": [name] for n, name in enumerate(names)}
    for n, (below, above) in enumerate(itertools.pairwise(names)):
        tensors[f"w{n}"] = [above, below, depth]
    groups = dict(zip(names, widths, strict=True))
    about = {"format": "gpu-align/spec", "version": 1, "groups": groups, "tensors": tensors}
    return PermutationSpec.from_json(json.dumps(about))


KINDS = {
    "two": chain(4, 5),
    "two, equal": chain(4, 4),
    "three": chain(3, 4, 3),
    "places": chain(4, 3, depth=3),
    "signs": resized("signed", a=3, b=3),
    "recurrent": resized("recurrent", h=4, o=3),
    "signed_recurrent": resized("signed_recurrent", h=3),
    "grouped": resized("grouped"),
    "heads": resized("heads"),
    "trilinear": resized("trilinear"),
}
SECONDS = 30.0


@functools.cache
def all_of(kind: str) -> dict[str, Tensor]:
    """Return every permutation of a kind as a batch."""
    networks = random_pair(KINDS[kind], 0)
    problem = AlignmentProblem(networks.source, networks.target, networks.spec)
    return as_batch(problem, list(all_symmetries(networks.spec)))


def optimum(kind: str, problem: AlignmentProblem) -> tuple[float, Permutation]:
    """Return the smallest distance of all permutations, and one that has it."""
    hypotheses = problem.hypotheses(all_of(kind))
    best = int(hypotheses.objective.argmin())
    return float(hypotheses.objective[best]), problem.permutation(hypotheses, best)


def proved(kind: str, networks: Pair) -> bool:
    """Prove the optimum of a pair, assert that it holds, and say whether it is proved optimal."""
    problem = AlignmentProblem(networks.source, networks.target, networks.spec)
    distance, best = optimum(kind, problem)
    proof = prove(problem, best, seconds=SECONDS)
    assert lower_bound(problem) <= distance * (1 + 1e-12)
    assert proof.lower_bound <= distance
    assert proof.distance == pytest.approx(distance)
    assert check_proof(problem, proof) >= proof.lower_bound - 1e-9 * distance
    bounds = [step.bound for step in proof.history]
    assert bounds == sorted(bounds)
    if proof.is_optimal:
        assert distance - proof.lower_bound <= 2 * proof.tolerance
    return proof.is_optimal


@pytest.mark.parametrize("kind", slow(KINDS, but=("two, equal", "signs", "heads", "trilinear")))
def test_a_bound_is_never_above_the_optimum(kind: str) -> None:
    proved(kind, random_pair(KINDS[kind], 0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_forty_optima_of_each_kind_are_proved(kind: str) -> None:
    assert all(proved(kind, random_pair(KINDS[kind], seed)) for seed in range(10, 50))


@pytest.mark.parametrize("kind", KINDS)
def test_planted_optima_are_proved(kind: str) -> None:
    for seed in range(3):
        assert proved(kind, planted_in(random_pair(KINDS[kind], seed), 0.5, seed)[0])


def case(kind: str = "two, equal", seed: int = 4) -> tuple[AlignmentProblem, Proof]:
    networks = random_pair(KINDS[kind], seed)
    problem = AlignmentProblem(networks.source, networks.target, networks.spec)
    return problem, prove(problem, optimum(kind, problem)[1], seconds=SECONDS)


def searched(
    spec: PermutationSpec, seed: int, seconds: float = SECONDS
) -> tuple[AlignmentProblem, Proof]:
    """Prove what a search finds, of more units than can be gone through."""
    networks = random_pair(spec, seed)
    problem = AlignmentProblem(networks.source, networks.target, spec)
    best = run_search(CoordinateDescent(starts=8, initial="random"), problem).best
    return problem, prove(problem, problem.permutation(best), seconds=seconds)


@functools.cache
def unproved() -> tuple[AlignmentProblem, Proof]:
    """Return a proof that has no time to end."""
    return searched(chain(16, 24), 0, seconds=1.0)


def test_a_proof_with_one_changed_dual_is_refused(tmp_path: Path) -> None:
    problem, proof = case()
    for name, dual in proof.stages[-1].tensors():
        dual.view(-1)[0] += 1e-6
        with pytest.raises(GpuAlignError, match="changed after it was made"):
            check_proof(problem, proof)
        proof.save(tmp_path / "changed.safetensors")
        with pytest.raises(GpuAlignError, match="changed after it was made"):
            check_proof(problem, Proof.load(tmp_path / "changed.safetensors"))
        dual.view(-1)[0] -= 1e-6
        assert name
    check_proof(problem, proof.sealed())


@pytest.mark.parametrize("kind", ["two, equal", "signs"])
def test_duals_that_prove_less_are_refused_whoever_seals_them(kind: str) -> None:
    problem, proof = case(kind)
    for _, dual in proof.stages[0].tensors():
        dual += 1.0
        with pytest.raises(GpuAlignError, match="its duals prove"):
            check_proof(problem, replace(proof, stages=proof.stages[:1]).sealed())
        dual -= 1.0


def test_a_better_claim_is_refused() -> None:
    problem, proof = unproved()
    assert not proof.is_optimal
    for claim in ({"lower_bound": proof.lower_bound * 1.001}, {"status": Status.PROVED_OPTIMAL}):
        with pytest.raises(GpuAlignError, match="its duals prove"):
            check_proof(problem, replace(proof, **claim))


def test_what_is_left_is_gone_through_and_not_taken_on_trust(tmp_path: Path) -> None:
    problem, proof = case("trilinear", 0)
    assert isinstance(proof.stages[-1], Leftover)
    proof.save(tmp_path / "proof.safetensors")
    again = Proof.load(tmp_path / "proof.safetensors")
    assert check_proof(problem, again) == pytest.approx(proof.distance)
    worse = Permutation.identity(problem.spec)
    claimed = prove(problem, worse, seconds=SECONDS)
    assert claimed.lower_bound == pytest.approx(proof.distance)
    assert not claimed.is_optimal


def test_more_than_can_be_gone_through_is_refused() -> None:
    problem, proof = unproved()
    with pytest.raises(GpuAlignError, match="more than 32768"):
        check_proof(problem, replace(proof, stages=(*proof.stages, Leftover())).sealed())


def test_a_proof_of_another_pair_or_permutation_is_refused() -> None:
    problem, proof = case()
    networks = random_pair(problem.spec, 9)
    with pytest.raises(GpuAlignError, match="distance"):
        check_proof(AlignmentProblem(networks.source, networks.target, networks.spec), proof)
    with pytest.raises(GpuAlignError, match="distance"):
        check_proof(
            problem, replace(proof, permutation=Permutation.identity(problem.spec)).sealed()
        )
    other = pair("tiny")
    with pytest.raises(GpuAlignError, match="another spec"):
        check_proof(AlignmentProblem(other.source, other.target, other.spec), proof)


@pytest.mark.parametrize("kind", ["two", "signs", "heads"])
def test_a_proof_comes_back_from_its_file(kind: str, tmp_path: Path) -> None:
    problem, proof = case(kind)
    path = tmp_path / "proof.safetensors"
    proof.save(path)
    again = Proof.load(path)
    assert again.to_json() == proof.to_json()
    assert check_proof(problem, again) == pytest.approx(check_proof(problem, proof), rel=1e-12)


@pytest.mark.parametrize("content", [b"", b"{}", b"not safetensors"])
def test_what_is_no_proof_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "proof.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="proof"):
        Proof.load(path)
    Permutation.identity(KINDS["two"]).save(path)
    with pytest.raises(CheckpointError, match="not a proof"):
        Proof.load(path)


def test_an_interrupted_proof_keeps_its_bound() -> None:
    networks = random_pair(chain(12, 9), 0)
    problem = AlignmentProblem(networks.source, networks.target, networks.spec)
    seen = []

    def interrupt(step: object) -> None:
        seen.append(step)
        if len(seen) == 3:
            raise KeyboardInterrupt

    proof = prove(problem, Permutation.identity(networks.spec), progress=interrupt)
    assert proof.status is Status.INTERRUPTED
    assert proof.lower_bound > 0
    assert check_proof(problem, proof) >= proof.lower_bound * (1 - 1e-12)


def test_any_stop_within_a_sweep_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The duals of a sweep are fed back in parts; each part may be the last one."""
    monkeypatch.setattr("gpu_align._proof._ascent._ON_HOST", 1)
    kind = "two, equal"
    networks = random_pair(KINDS[kind], 4)
    problem = AlignmentProblem(networks.source, networks.target, networks.spec)
    distance, best = optimum(kind, problem)
    for stop in (1, 5, 17, 20, 33, 47, 150):
        calls = itertools.count()

        def heartbeat(effort: object, stop: int = stop, calls: itertools.count = calls) -> None:
            if next(calls) == stop:
                raise _effort.OutOfTime

        monkeypatch.setattr(_effort.Effort, "heartbeat", heartbeat)
        proof = prove(problem, best, seconds=SECONDS)
        assert proof.lower_bound <= distance
        assert check_proof(problem, proof) == pytest.approx(proof.lower_bound)


def test_each_of_several_sources_has_its_proof() -> None:
    one, other = (random_pair(KINDS["two"], seed) for seed in (1, 2))
    both = AlignmentProblem([one.source, other.source], one.target, one.spec)
    for model, source in enumerate((one.source, other.source)):
        alone = AlignmentProblem(source, one.target, one.spec)
        distance, best = optimum("two", alone)
        proof = prove(both, best, model=model, seconds=SECONDS)
        assert proof.distance == pytest.approx(distance)
        assert proof.lower_bound == pytest.approx(prove(alone, best, seconds=SECONDS).lower_bound)
        check_proof(both, proof)


def test_wrong_arguments_say_what_is_expected() -> None:
    problem, proof = case()
    for options in ({"seconds": 0.0}, {"seconds": float("nan")}, {"model": 1}):
        with pytest.raises(InputError, match="expected"):
            prove(problem, proof.permutation, **options)
    with pytest.raises(InputError, match="another spec"):
        prove(problem, Permutation.identity(KINDS["two"]))


@pytest.mark.slow
def test_pairs_are_excluded_by_supposing_them(tmp_path: Path) -> None:
    """What sweeps alone leave open; the pair that a stage supposes is part of the proof."""
    for seed in range(30):
        problem, proof = searched(chain(8, 8), seed)
        supposing = [stage for stage in proof.stages if getattr(stage, "given", None)]
        if supposing:
            break
    else:
        pytest.fail("no proof excludes a pair by supposing it")
    proof.save(tmp_path / "proof.safetensors")
    again = Proof.load(tmp_path / "proof.safetensors")
    assert [getattr(s, "given", None) for s in again.stages] == [
        getattr(s, "given", None) for s in proof.stages
    ]
    check_proof(problem, again)
    group, i, j = supposing[0].given
    for pair_given in ((group, (i + 1) % 8, j), None):
        forged = [replace(s, given=pair_given) if s is supposing[0] else s for s in proof.stages]
        with pytest.raises(GpuAlignError, match=r"prove|exclude"):
            check_proof(problem, replace(proof, stages=tuple(forged)).sealed())


def test_the_convex_relaxation_takes_over_where_there_is_no_time() -> None:
    problem, proof = searched(chain(16, 24), 0, seconds=0.03)
    assert proof.method == "convex relaxation"
    assert 0 < proof.lower_bound <= proof.distance
    assert check_proof(problem, proof) == pytest.approx(proof.lower_bound)
    point = next(iter(proof.stages[-1].tensors()))[1]
    point[0, 0] += 10.0
    with pytest.raises(GpuAlignError, match="its duals prove"):
        check_proof(problem, proof.sealed())


@pytest.mark.parametrize(
    "kind", slow(["two", "two, equal", "three", "places"], but=["two, equal", "three"])
)
def test_the_convex_relaxation_is_never_above_the_optimum(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_ALIGN_MEMORY", "0")

    def interrupt(step: Progress) -> None:
        if step.step == 15:  # of those that are judged
            raise KeyboardInterrupt

    for seed in range(2):
        networks = random_pair(KINDS[kind], seed)
        problem = AlignmentProblem(networks.source, networks.target, networks.spec)
        distance, best = optimum(kind, problem)
        proof = prove(problem, best, seconds=SECONDS, progress=interrupt)
        assert proof.method == "convex relaxation"
        assert "MiB" in proof.note
        assert 0 < proof.lower_bound <= distance
        assert check_proof(problem, proof) == pytest.approx(proof.lower_bound)


def test_signs_without_memory_leave_the_plain_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_ALIGN_MEMORY", "0")
    problem, proof = case("signs")
    assert (proof.method, proof.lower_bound, proof.stages) == ("none", 0.0, ())
    check_proof(problem, proof)
