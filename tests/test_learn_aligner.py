"""Aligners: soft matrices, scores that follow the units, files, the search that goes by them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from learn_cases import chain, random_features, random_states, relative_error, spec_of
from marks import slow
from networks import Pair, pair
from safetensors.torch import save_file
from search_oracles import AtIdentity
from test_problem import problem_of
from torch import Tensor

from gpu_align import (
    AlignmentProblem,
    CheckpointError,
    CoordinateDescent,
    InputError,
    Learned,
    Permutation,
    Search,
    Status,
    align,
    run_search,
)
from gpu_align._device._random import RandomStream
from gpu_align._problem import SoftNetworks, families_of, is_signed, to_matrix, unsigned
from gpu_align.learn import (
    Aligner,
    AlignerLosses,
    AlignerSettings,
    Elements,
    SoftElements,
    WeightSpace,
)
from gpu_align.learn._aligner_losses import planted_loss
from gpu_align.learn._soft import log_sinkhorn
from gpu_align.learn._structure import Structure, natural

KINDS = (
    *("mlp", "deep", "cnn", "groupnorm", "recurrent", "trilinear", "heads", "grouped", "gqa"),
    *("signed", "signed_heads", "signed_gqa", "fixed_heads", "fixed_gqa", "packed_heads"),
)
SMALL = AlignerSettings(channels=8, rounds=2, features=16)


def random_perms(problem: AlignmentProblem, count: int) -> dict[str, Tensor]:
    return dict(problem.random(count, RandomStream(3)).perms)


def sure_scores(perms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return scores that leave no doubt: those of a signed matrix say the signs."""
    return {variable: 60 * to_matrix(perm, torch.float64) for variable, perm in perms.items()}


def random_scores(problem: AlignmentProblem) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        variable: torch.randn(1, n, n, generator=generator, dtype=torch.float64)
        for variable, n in problem.sizes.items()
    }


def test_sinkhorn_gives_doubly_stochastic_matrices_of_any_logits() -> None:
    ones = torch.ones(4, 9, dtype=torch.float64)
    matrix = log_sinkhorn(3 * torch.randn(4, 9, 9, dtype=torch.float64), 500).exp()
    torch.testing.assert_close(matrix.sum(-1), ones)
    torch.testing.assert_close(matrix.sum(-2), ones, atol=1e-6, rtol=0)
    far = log_sinkhorn(1e4 * torch.randn(4, 9, 9, dtype=torch.float64), 20)
    assert bool(far.isfinite().all())
    torch.testing.assert_close(far.exp().sum(-1), ones)


@pytest.mark.parametrize("name", KINDS)
def test_scores_without_doubt_give_the_reordered_networks(name: str) -> None:
    problem = problem_of(pair(name), dtype=torch.float64)
    perms = random_perms(problem, 3)
    families = tuple(problem.families.values())
    soft = SoftElements.of_scores(families, sure_scores(perms))
    space = WeightSpace(problem.spec)
    features = random_features(space, 3, 1)
    states = [space.to_state_dicts(tuple(x[n : n + 1] for x in features)) for n in range(3)]
    batch = problem.hypotheses(perms)
    moved = [
        permutation.apply({n: t[0] for n, t in full(state, problem).items()})
        for permutation, state in zip(problem.permutations(batch), states, strict=True)
    ]
    found = soft.act(features, space.cells)
    assert relative_error(found, space.from_state_dicts(moved)) < 1e-9


def full(state: Mapping[str, Tensor], problem: AlignmentProblem) -> dict[str, Tensor]:
    """Return a stack of one network with zeros for what has no cell."""
    tensors = problem.spec.tensors
    return {n: state.get(n, torch.zeros(1, *tensors[n].shape)) for n in problem.spec.tensors}


@pytest.mark.parametrize("name", KINDS)
def test_mixtures_are_those_of_the_problem(name: str) -> None:
    problem = problem_of(pair(name), dtype=torch.float64)
    families, scores = tuple(problem.families.values()), random_scores(problem)
    soft = SoftElements.of_scores(families, scores)
    joined: dict[str, Tensor] = {}
    for family in families:
        for member in family.members:
            if member is family.root:
                joined[member.group] = soft.roots[member.group]
            else:
                inner = soft.inner[member.group]
                if not family.fixed:
                    inner = inner * soft.roots[family.root.group][..., None, None]
                joined[member.group] = family.joined(inner)
            for variable in member.variables[1:]:
                joined[variable] = joined[member.group] * scores[variable].tanh()
    expected = SoftNetworks(problem).of(joined, 0)
    space = WeightSpace(problem.spec)
    source = {name: problem.sources[name] for name in problem.spec.tensors}
    found = space.to_state_dicts(soft.act(space.from_stacks(source, torch.float64), space.cells))
    for tensor, value in found.items():
        torch.testing.assert_close(value[0], expected[tensor], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", slow(KINDS, but=("mlp", "cnn", "signed_heads", "fixed_gqa")))
def test_scores_go_where_the_units_go(name: str) -> None:
    spec = pair(name).spec
    aligner = Aligner(spec, settings=SMALL).double()
    space = aligner.space
    a, b = random_features(space, 2, 1), random_features(space, 2, 1, seed=1)
    moves = [space.random_elements(2, seed=seed) for seed in (1, 2)]
    scores = aligner.compare(aligner(a), aligner(b))
    moved = aligner.compare(
        *(aligner(space.act(move, x)) for move, x in zip(moves, (a, b), strict=True))
    )
    for variable, found in moved.items():
        rows, columns = (matrix_of(move, variable) for move in moves)
        torch.testing.assert_close(found, rows @ scores[variable] @ columns.mT)


def matrix_of(elements: Elements, variable: str) -> Tensor:
    """Return what moves the units of a variable, [b, n, n]."""
    group = unsigned(variable)
    matrix = to_matrix(elements.perms[group], torch.float64)
    return matrix * elements.signs[group][..., None] if is_signed(variable) else matrix


@pytest.mark.parametrize("name", KINDS)
def test_it_recovers_a_planted_symmetry_without_any_training(name: str) -> None:
    networks = pair(name)
    planted = Permutation.random(networks.spec, seed=4)
    moved = Pair(networks.spec, planted.apply(networks.target), networks.target)
    outcome = run_search(Learned(Aligner(networks.spec, settings=SMALL)), problem_of(moved))
    assert float(outcome.best.objective) < 1e-9 * float(problem_of(moved).constant)
    assert outcome.status is Status.COMPLETED
    assert len(outcome.history) == 1
    alone = run_search(Learned(Aligner(networks.spec, settings=SMALL), looks=0), problem_of(moved))
    assert float(alone.best.objective) < 1e-9 * float(problem_of(moved).constant)


@pytest.mark.parametrize("name", ["mlp", "signed", "gqa", "fixed_gqa", "signed_heads"])
def test_whole_batches_are_aligned_as_the_search_does(name: str) -> None:
    spec = pair(name).spec
    aligner = Aligner(spec, settings=SMALL).double()
    space, states = aligner.space, random_states(spec, 4)
    a, b = (space.from_state_dicts(states[n : n + 2]) for n in (0, 2))
    together = aligner.align(a, b).permutations()
    for number, permutation in enumerate(together):
        problem = AlignmentProblem(states[2 + number], states[number], spec)
        outcome = run_search(Learned(aligner, looks=0), problem)
        found = problem.permutation(outcome.hypotheses)
        assert {g: p.tolist() for g, p in found.perms.items()} == {
            g: p.tolist() for g, p in permutation.perms.items()
        }


@pytest.mark.parametrize("name", ["mlp", "heads", "fixed_gqa", "signed_gqa"])
def test_the_planted_loss_is_least_where_the_truth_is_known(name: str) -> None:
    spec = pair(name).spec
    families, space = families_of(spec, signs=True), WeightSpace(spec)
    truth = space.random_elements(3, seed=5)
    problem = problem_of(pair(name), dtype=torch.float64)
    scores = {v: 60 * matrix_of(truth, v) for v in problem.sizes}
    assert float(planted_loss(families, scores, truth, 20)) < 1e-6
    none = {v: torch.zeros_like(x) for v, x in scores.items()}
    wrong = {v: 60 * matrix_of(space.random_elements(3, seed=6), v) for v in problem.sizes}
    assert 0.3 < float(planted_loss(families, none, truth, 20)) < 5
    assert float(planted_loss(families, wrong, truth, 20)) > 5


# The search


def test_another_search_goes_on_from_what_was_learned() -> None:
    problem = problem_of(pair("deep"))
    alone = run_search(Learned(AtIdentity()), problem, seed=1)
    start = alone.hypotheses.best()
    expected = run_search(CoordinateDescent(), problem, seed=1, start=start)
    found = run_search(Learned(AtIdentity(), then=CoordinateDescent()), problem, seed=1)
    assert torch.equal(found.best.objective, expected.best.objective)
    assert found.status is Status.CONVERGED
    stages = [entry.stage for entry in found.history]
    assert stages == ["Learned", *["CoordinateDescent"] * len(expected.history)]


def test_a_look_is_kept_only_if_it_is_better() -> None:
    problem = problem_of(pair("deep"))
    found = [run_search(Learned(AtIdentity(), looks=n), problem).hypotheses for n in range(4)]
    assert [hypotheses.each for hypotheses in found] == [1, 2, 3, 4]
    best = [float(hypotheses.best().objective) for hypotheses in found]
    assert best == sorted(best, reverse=True)
    assert best[1] < best[0]
    assert torch.equal(found[3].objective[:3], found[2].objective)


@pytest.mark.parametrize("then", [None, CoordinateDescent()])
def test_many_networks_are_aligned_as_each_alone(then: Search | None) -> None:
    spec = chain(4, 7, 6, 3)
    states, search = random_states(spec, 6), Learned(Aligner(spec, settings=SMALL), then)
    together = align(states[1:], states[0], spec=spec, search=search)
    for state, result in zip(states[1:], together, strict=True):
        alone = align(state, states[0], spec=spec, search=search)
        assert result.unwrap().distance == alone.distance


def test_names_and_orders_of_tensors_do_not_matter() -> None:
    spec = chain(4, 7, 6, 3)
    states, aligner = random_states(spec, 2), Aligner(spec, settings=SMALL)
    expected = align(*states, spec=spec, search=Learned(aligner))
    renamed = [{f"{6 * int(n[0])}.{n[2:]}": state[n] for n in sorted(state)} for state in states]
    found = align(*renamed, search=Learned(aligner))
    assert found.distance == pytest.approx(expected.distance, rel=1e-12)
    assert found.distance < found.distance_before
    assert natural("a.10.b") > natural("a.9.b")


@pytest.mark.parametrize("other", ["signed", "gqa", "deep"])
def test_networks_of_another_structure_are_refused(other: str) -> None:
    aligner = Aligner(chain(4, 7, 6, 3), settings=SMALL)
    with pytest.raises(InputError, match=r"trained for networks with parameters 7x4, .*digests"):
        run_search(Learned(aligner), problem_of(pair(other)))


def test_digests_tell_structures_apart_but_not_names() -> None:
    digests = {name: Structure.of(spec_of(name)).digest for name in KINDS}
    assert len(set(digests.values())) == len(KINDS)
    assert Structure.of(chain(3, 5, 2)) == Structure.of(chain(3, 5, 2))
    assert Structure.of(chain(3, 5, 2)).digest != Structure.of(chain(3, 4, 2)).digest


def test_what_is_no_aligner_or_no_search_is_refused() -> None:
    with pytest.raises(InputError, match="expected an aligner, got str"):
        Learned("digits.safetensors")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a search or None"):
        Learned(AtIdentity(), then="descent")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="looks of at least 0, got -1"):
        Learned(AtIdentity(), looks=-1)
    with pytest.raises(InputError, match="no units that could be reordered"):
        Aligner(chain(3, 2))
    for wrong in ({"features": 0}, {"scale": 0.0}, {"channels": 0}):
        with pytest.raises(InputError, match="expected at least one"):
            Aligner(chain(3, 4, 2), settings=AlignerSettings(**wrong))  # type: ignore[arg-type]
    for settings in (
        {"planted": -1},
        {"iterations": 0},
        dict.fromkeys(("planted", "distance", "path"), 0),
    ):
        with pytest.raises(InputError, match="expected losses"):
            AlignerLosses(**settings)  # type: ignore[arg-type]


# Files


@pytest.mark.parametrize("name", ["mlp", "signed_gqa"])
def test_a_file_gives_the_same_aligner(name: str, work: Path) -> None:
    networks = pair(name)
    space = WeightSpace(networks.spec)
    known = space.statistics(random_features(space, 3, 1))
    aligner = Aligner(networks.spec, known, SMALL)
    aligner.record = {"seed": 3, "epochs": [{"number": 1, "loss": 0.5, "held": None}]}
    aligner.save(work / "a.safetensors")
    again = Aligner.load(work / "a.safetensors")
    assert repr(again) == repr(aligner)
    assert again.record == aligner.record
    assert again.settings == SMALL
    problem = problem_of(networks)
    for variable, scores in again.scores(problem).items():
        assert torch.equal(scores, aligner.scores(problem)[variable])
    again.save(work / "b.safetensors")
    assert (work / "a.safetensors").read_bytes() == (work / "b.safetensors").read_bytes()


def test_files_without_an_aligner_are_refused(work: Path) -> None:
    path = work / "a.safetensors"
    aligner = Aligner(chain(3, 5, 2), settings=SMALL)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="holds no aligner"):
        Aligner.load(path)
    aligner.save(path)
    whole = path.read_bytes()
    for old, new in ((b"aligner/1", b"aligner/7"), (b'channels\\": 8', b'channels\\": 9')):
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(CheckpointError, match="holds no aligner that this release reads"):
            Aligner.load(path)
    path.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError):
        Aligner.load(path)
    with pytest.raises(CheckpointError):
        Aligner.load(work / "none.safetensors")


def test_other_weights_are_another_search() -> None:
    first, second = (Learned(Aligner(chain(3, 5, 2), settings=SMALL)) for _ in range(2))
    assert str(first) != str(second)
    assert dataclasses.replace(first, then=CoordinateDescent()) != first
