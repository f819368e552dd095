"""The alignment problem: objective, gains, similarities and metrics against plain NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import each_once
from networks import FAMILIES, PAIRS, Pair, mlp, pair
from oracles import (
    ODD,
    Symmetry,
    all_symmetries,
    brute_force,
    form,
    form_gradient,
    hypothesis,
    matrices_of,
    objective,
)
from strategies import tiny_pairs
from test_permutation import assert_permutations_equal
from torch import Tensor

from gpu_align import (
    METRICS,
    AlignmentProblem,
    CheckpointError,
    InputError,
    Metric,
    Permutation,
    PermutationSpec,
    SpecError,
    chain_spec,
)
from gpu_align._device._random import RandomStream
from gpu_align._problem import (
    Hypotheses,
    SiblingTerm,
    concatenate,
    index_of,
    is_signed,
    picked,
    to_matrix,
    unsigned,
)

MODEL = torch.zeros(5, dtype=torch.int64)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative to the constant of the form: a few thousand roundings of the dtype."""


def problem_of(networks: Pair, **options: object) -> AlignmentProblem:
    return AlignmentProblem(networks.source, networks.target, networks.spec, **options)


def oracle_objectives(networks: Pair, perms: dict[str, Tensor], metric: str = "l2") -> list[float]:
    count = len(next(iter(perms.values())))
    given = networks.source, networks.target, metric
    return [
        objective(networks.spec, hypothesis(networks.spec, perms, index), *given)
        for index in range(count)
    ]


def as_batch(problem: AlignmentProblem, symmetries: list[Symmetry]) -> dict[str, Tensor]:
    """Return symmetries as vectors of the problem's matrices."""
    vectors = [problem.vectors(as_permutation(problem.spec, s)) for s in symmetries]
    return {matrix: torch.cat([v[matrix] for v in vectors]) for matrix in problem.sizes}


def as_permutation(spec: PermutationSpec, symmetry: Symmetry) -> Permutation:
    perms = {name: torch.tensor(perm) for name, perm in symmetry.perms.items()}
    return Permutation(spec, perms, {n: torch.tensor(s) for n, s in symmetry.signs.items()})


def random_soft(problem: AlignmentProblem, generator: torch.Generator, batch: int = 5) -> dict:
    """Return arbitrary matrices: the form is multilinear on all of them."""
    return {
        group: torch.rand(batch, n, n, generator=generator, dtype=problem.dtype)
        for group, n in problem.sizes.items()
    }


@pytest.fixture(params=PAIRS)
def networks(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


@pytest.mark.parametrize(("name", "way"), each_once(PAIRS, [*METRICS, "l2 in float32"]))
def test_objective_equals_numpy(name: str, way: str, stream: RandomStream) -> None:
    networks, metric = pair(name), way.partition(" ")[0]
    dtype = torch.float32 if way.endswith("float32") else torch.float64
    problem = problem_of(networks, metric=metric, dtype=dtype)
    batch = problem.random(5, stream)
    expected = torch.tensor(oracle_objectives(networks, batch.perms, metric), dtype=torch.float64)
    slack = TOLERANCE[dtype] * float(problem.constant.abs())
    assert torch.allclose(batch.objective, expected, rtol=0, atol=slack)
    for index in range(5):
        permutation = problem.permutation(batch, index)
        assert problem.distance(permutation) == pytest.approx(float(expected[index]), rel=1e-10)


def test_tensor_distances_add_up(networks: Pair, generator: torch.Generator) -> None:
    problem = problem_of(networks)
    permutation = Permutation.random(networks.spec, generator=generator)
    parts = problem.tensor_distances(permutation)
    assert set(parts) == {n for n, t in networks.spec.tensors.items() if t.counted}
    assert sum(parts.values()) == pytest.approx(problem.distance(permutation))


def test_batch_equals_one_by_one(networks: Pair, stream: RandomStream) -> None:
    problem = problem_of(networks)
    batch = problem.random(5, stream)
    matrix = list(problem.sizes)[-1]
    together = problem.similarity(matrix, batch.perms, MODEL)
    for index in range(5):
        one = batch.select(torch.tensor([index]))
        assert torch.allclose(problem.objective(one.perms, one.model), batch.objective[[index]])
        alone = problem.similarity(matrix, one.perms, one.model)
        assert torch.allclose(alone[0], together[index])


def test_chunks_change_nothing(
    networks: Pair, generator: torch.Generator, stream: RandomStream
) -> None:
    problem = problem_of(networks)
    perms, soft = problem.random(5, stream).perms, random_soft(problem, generator)
    for whole in problem.terms:
        cut = replace(whole, chunk_elements=1)
        assert torch.allclose(cut.inner(perms, MODEL), whole.inner(perms, MODEL))
        for mode in range(len(whole.variables)):
            hard, mixed = (
                [term.similarity(mode, perms, MODEL), term.soft_similarity(mode, soft, MODEL)]
                for term in (cut, whole)
            )
            assert all(map(torch.allclose, hard, mixed))


def test_gain_is_the_difference_of_objectives(networks: Pair, stream: RandomStream) -> None:
    problem = problem_of(networks)
    batch, other = problem.random(5, stream), problem.random(5, stream)
    for group in problem.order:
        similarity = problem.similarities(group, batch.perms, MODEL)
        after = {matrix: other.perms[matrix] for matrix in problem.families[group].variables}
        gain = problem.decrease(group, similarity, after, batch)
        moved = problem.objective({**batch.perms, **after}, MODEL)
        assert torch.allclose(batch.objective - moved, gain, rtol=1e-10, atol=1e-10)


def test_similarity_is_the_derivative_of_the_form(networks: Pair, stream: RandomStream) -> None:
    problem = problem_of(networks)
    batch = problem.random(1, stream)
    matrices = matrices_of(networks.spec, hypothesis(networks.spec, batch.perms, 0))
    expected = form_gradient(networks.spec, matrices, networks.source, networks.target)
    for matrix in problem.sizes:
        similarity = problem.similarity(matrix, batch.perms, MODEL[:1])[0].numpy()
        # What couples children of one parent with each other is known where their units are.
        root = next(f.root for f in problem.families.values() if matrix in f.variables)
        if problem.sibling_terms(root.group) and problem.sizes[matrix] > root.size:
            outer = matrices.get(root.group, np.eye(root.size))
            here = np.kron(outer, np.ones([problem.sizes[matrix] // root.size] * 2))
            similarity, expected[matrix] = similarity * here, expected[matrix] * here
        slack = 1e-12 * np.abs(expected[matrix]).max()
        assert np.allclose(similarity, expected[matrix], rtol=0, atol=slack)


def test_soft_objective_equals_the_dense_form(networks: Pair, generator: torch.Generator) -> None:
    problem = problem_of(networks)
    soft = random_soft(problem, generator, batch=2)
    fixed = {name: np.eye(networks.spec.units(name)) for name in networks.spec.groups}
    zero = {m: np.zeros((n, n)) for m, n in problem.sizes.items()}
    free = form(networks.spec, fixed | zero, networks.source, networks.target)
    for index, value in enumerate(problem.soft_value(soft, MODEL[:2]).tolist()):
        matrices = fixed | {m: matrix[index].numpy() for m, matrix in soft.items()}
        whole = form(networks.spec, matrices, networks.source, networks.target)
        assert value == pytest.approx(whole - free, rel=1e-9)


def test_soft_similarity_is_the_gradient(networks: Pair, generator: torch.Generator) -> None:
    problem = problem_of(networks)
    soft = {g: m.requires_grad_() for g, m in random_soft(problem, generator).items()}
    problem.soft_value(soft, MODEL).sum().backward()
    for group, matrix in problem.soft_similarity(soft, MODEL).items():
        assert torch.allclose(matrix, soft[group].grad, rtol=1e-9, atol=1e-9)


def test_soft_permutations_agree_with_hard_ones(networks: Pair, stream: RandomStream) -> None:
    problem = problem_of(networks)
    batch = problem.random(5, stream)
    soft = {matrix: to_matrix(p, problem.dtype) for matrix, p in batch.perms.items()}
    value = problem.constant[MODEL] - 2 * problem.soft_value(soft, MODEL)
    assert torch.allclose(value, batch.objective, rtol=1e-10)
    for name, matrix in problem.soft_similarity(soft, MODEL).items():
        picked_soft, hard = (
            picked(similarity, batch.perms[name])
            for similarity in (matrix, problem.similarity(name, batch.perms, MODEL))
        )
        assert torch.allclose(picked_soft, hard)
        if not any(isinstance(term, SiblingTerm) for term in problem.terms_of(name)):
            assert torch.allclose(matrix, problem.similarity(name, batch.perms, MODEL))


@pytest.mark.parametrize("name", ["mlp", "cnn", "groupnorm", "recurrent", "trilinear", *FAMILIES])
def test_several_models_equal_several_problems(
    name: str, generator: torch.Generator, stream: RandomStream
) -> None:
    one, other = pair(name), pair(name, seed=3)
    sources = [one.source, other.source, other.target]
    problem = AlignmentProblem(sources, one.target, one.spec)
    batch, soft = problem.random(2, stream), random_soft(problem, generator, batch=6)
    assert batch.model.tolist() == [0, 0, 1, 1, 2, 2]
    hard = {m: problem.similarity(m, batch.perms, batch.model) for m in problem.sizes}
    gradient = problem.soft_similarity(soft, batch.model)
    value = problem.soft_value(soft, batch.model)
    for model, source in enumerate(sources):
        alone = AlignmentProblem(source, one.target, one.spec)
        chosen = batch.model == model
        zeros = torch.zeros(2, dtype=torch.int64)
        perms = {g: p[chosen] for g, p in batch.perms.items()}
        part = {g: m[chosen] for g, m in soft.items()}
        assert torch.allclose(alone.objective(perms, zeros), batch.objective[chosen])
        assert torch.allclose(alone.soft_value(part, zeros), value[chosen])
        single = alone.soft_similarity(part, zeros)
        for matrix in problem.sizes:
            assert torch.allclose(alone.similarity(matrix, perms, zeros), hard[matrix][chosen])
            assert torch.allclose(single[matrix], gradient[matrix][chosen])


def test_evidence_enters_linearly(generator: torch.Generator, stream: RandomStream) -> None:
    networks = pair("mlp")
    evidence = torch.rand(5, 5, generator=generator)
    problem = problem_of(networks, evidence={"2": evidence})
    batch = problem.random(5, stream)
    expected = oracle_objectives(networks, batch.perms)
    for index, perm in enumerate(batch.perms["2"]):
        extra = float(evidence[torch.arange(5), perm].double().sum())
        assert float(batch.objective[index]) == pytest.approx(expected[index] - 2 * extra)
    difference = problem.similarity("2", batch.perms, MODEL) - problem_of(networks).similarity(
        "2", batch.perms, MODEL
    )
    assert torch.allclose(difference, evidence.double().expand_as(difference))


@pytest.mark.parametrize(
    "evidence",
    [
        {"2": torch.zeros(4, 4)},
        {"nope": torch.zeros(5, 5)},
        {"2": torch.zeros(5)},
        {"2": torch.full((5, 5), torch.nan)},
    ],
    ids=["size", "name", "rank", "not a number"],
)
def test_evidence_that_does_not_fit_is_refused(evidence: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="evidence"):
        problem_of(pair("mlp"), evidence=evidence)


def test_evidence_for_a_signed_matrix_counts_with_the_signs(stream: RandomStream) -> None:
    plain = problem_of(pair("signed"))
    variable = next(filter(is_signed, plain.sizes))
    evidence = torch.rand(plain.sizes[variable], plain.sizes[variable], dtype=torch.float64)
    batch = plain.random(5, stream)
    problem = problem_of(pair("signed"), evidence={variable: evidence})
    change = problem.objective(batch.perms, MODEL) - plain.objective(batch.perms, MODEL)
    for index, vector in enumerate(batch.perms[variable]):
        entries = evidence[torch.arange(len(vector)), index_of(vector)]
        extra = float((torch.where(vector < 0, -1.0, 1.0) * entries).sum())
        assert float(change[index]) == pytest.approx(-2 * extra)


def test_signed_evidence_counts_as_it_is_where_signs_stay(stream: RandomStream) -> None:
    variable = next(filter(is_signed, problem_of(pair("signed")).sizes))
    size = problem_of(pair("signed")).sizes[variable]
    evidence = torch.rand(size, size)
    found = (
        problem_of(pair("signed"), metric="standardized", evidence={name: evidence})
        for name in (variable, unsigned(variable))
    )
    first, second = (problem.unary[unsigned(variable)] for problem in found)
    assert torch.equal(first, second)


def test_each_source_has_its_own_evidence() -> None:
    networks = pair("mlp")
    evidence = torch.rand(2, 5, 5, dtype=torch.float64)
    sources = [networks.source, networks.source]
    both = AlignmentProblem(sources, networks.target, networks.spec, evidence={"2": evidence})
    for model in range(2):
        alone = problem_of(networks, evidence={"2": evidence[model]})
        assert torch.allclose(both.unary["2"][model], alone.unary["2"][0])


def test_other_evidence_takes_the_place_of_the_former() -> None:
    networks, evidence = pair("mlp"), {"2": torch.rand(5, 5)}
    changed = problem_of(networks, evidence={"2": torch.ones(5, 5)}).with_evidence(evidence)
    expected = problem_of(networks, evidence=evidence)
    assert torch.equal(changed.unary["2"], expected.unary["2"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("groups", "order"),
        ("touching", "terms_of"),
        ("touched", "family_value"),
        ("gain", "decrease"),
        ("soft_objective", "soft_value"),
        ("each_tensor_distance_before", "each_tensor_distance"),
    ],
)
def test_old_names_still_work_and_warn(old: str, new: str) -> None:
    problem = problem_of(pair("mlp"))
    with pytest.warns(DeprecationWarning, match=f"AlignmentProblem.{old} is .* called {new} now"):
        assert getattr(problem, old) == getattr(problem, new)


@settings(max_examples=12)
@given(networks=tiny_pairs(), metric=st.sampled_from(["l2", "standardized"]))
def test_exhaustive_search_finds_the_brute_force_optimum(networks: tuple, metric: str) -> None:
    spec, source, target = networks
    problem = AlignmentProblem(source, target, spec, metric=metric)
    every = list(all_symmetries(spec))
    perms = as_batch(problem, every)
    model = torch.zeros(len(every), dtype=torch.int64)
    best = float(problem.objective(perms, model).min())
    assert best == pytest.approx(brute_force(spec, source, target, metric), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "metric"), each_once(["grouped", "signed", "signed_recurrent"], METRICS)
)
def test_exhaustive_search_of_families_is_brute_force(name: str, metric: str) -> None:
    networks = pair(name)
    problem = problem_of(networks, metric=metric)
    perms = as_batch(problem, list(all_symmetries(networks.spec, signs=metric in ODD)))
    model = torch.zeros(len(next(iter(perms.values()))), dtype=torch.int64)
    best = float(problem.objective(perms, model).min())
    expected = brute_force(networks.spec, networks.source, networks.target, metric)
    assert best == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
def test_signs_have_matrices_where_the_metric_sees_them(metric: str) -> None:
    problem = problem_of(pair("signed"), metric=metric)
    signed = {"a±", "b±"} if metric in ODD else set()
    assert set(problem.sizes) == {"a", "b"} | signed
    found = problem.permutation(problem.random(1, RandomStream(0)))
    assert set(found.signs) == {matrix[0] for matrix in signed}


@pytest.mark.parametrize("name", PAIRS)
def test_vectors_and_permutations_are_the_same(name: str, generator: torch.Generator) -> None:
    problem = problem_of(pair(name))
    permutation = Permutation.random(problem.spec, generator=generator)
    batch = problem.hypotheses(problem.vectors(permutation))
    again = problem.permutation(batch)
    assert_permutations_equal(again, permutation)
    assert problem.distance(permutation) == pytest.approx(float(batch.objective))


def test_group_on_both_axes_is_quadratic() -> None:
    problem = problem_of(pair("recurrent"))
    assert problem.is_quadratic("h")
    assert not problem.is_quadratic("o")
    assert problem.neighbours("h") == ("h", "o")
    assert problem.neighbours("o") == ("h",)


# Metrics


def test_normalized_is_the_mean_square_of_standardised_tensors(generator: torch.Generator) -> None:
    networks = pair("cnn")
    permutation = Permutation.random(networks.spec, generator=generator)
    moved, expected = permutation.apply(networks.source), 0.0
    for name, tensor_spec in networks.spec.tensors.items():
        if tensor_spec.counted:
            a, b = networks.target[name].numpy(), moved[name].numpy()
            a, b = ((x - x.mean()) / x.std(ddof=1) for x in (a, b))
            expected += np.mean((a - b) ** 2)
    assert problem_of(networks, metric="normalized").distance(permutation) == pytest.approx(
        expected
    )


INVARIANCES = {
    "row": lambda t: t * torch.rand(len(t), *[1] * (t.ndim - 1)) if t.ndim > 1 else t,
    "standardized": lambda t: 3 * t + 5,
    "normalized": lambda t: 0.1 * t - 1,
}


@pytest.mark.parametrize("metric", INVARIANCES)
def test_metric_does_not_see_what_it_divides_out(metric: str) -> None:
    networks = pair("cnn")
    identity = Permutation.identity(networks.spec)
    changed = {
        name: INVARIANCES[metric](t) if t.is_floating_point() else t
        for name, t in networks.source.items()
    }
    before = problem_of(networks, metric=metric).distance(identity)
    after = problem_of(replace(networks, source=changed), metric=metric).distance(identity)
    assert after == pytest.approx(before, rel=1e-9)
    assert problem_of(replace(networks, source=changed)).distance(identity) != pytest.approx(
        problem_of(networks).distance(identity), rel=1e-2
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [0.0, 0.5], ids=["zeros", "constant"])
def test_constant_tensors_give_finite_distances(metric: str, value: float) -> None:
    networks = pair("mlp")
    constant = {name: torch.full_like(t, value) for name, t in networks.source.items()}
    problem = problem_of(replace(networks, source=constant), metric=metric)
    assert torch.isfinite(problem.identity().objective).all()
    for group in problem.order:
        assert torch.isfinite(problem.similarity(group, problem.identity().perms, MODEL[:1])).all()


def test_metric_of_ones_own() -> None:
    networks = pair("mlp")
    doubled = Metric("doubled", lambda tensor: 2 * tensor, lambda tensor: 3.0)
    identity = Permutation.identity(networks.spec)
    expected = 12 * problem_of(networks).distance(identity)
    assert problem_of(networks, metric=doubled).distance(identity) == pytest.approx(expected)
    with pytest.raises(InputError, match="nope"):
        problem_of(networks, metric="nope")


# Refusals and hypotheses


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("bad", ["nan", "inf", "integer", "shape"])
def test_weights_that_cannot_be_compared_are_refused(role: str, bad: str) -> None:
    networks = pair("mlp")
    tensor = networks.source["2.bias"].clone()
    tensor[0] = {"nan": torch.nan, "inf": -torch.inf}.get(bad, 0.0)
    tensor = {"integer": tensor.to(torch.int8), "shape": tensor[:2]}.get(bad, tensor)
    states = {role: {**networks.source, "2.bias": tensor}}
    error = SpecError if bad == "shape" else CheckpointError
    with pytest.raises(error, match=r"2\.bias") as caught:
        problem_of(replace(networks, **states))
    assert role in str(caught.value)


def test_large_float64_weights_are_finite() -> None:
    state = {name: 1e100 * t.double() for name, t in mlp([2, 3, 2]).state_dict().items()}
    problem = AlignmentProblem(state, state, chain_spec(state))
    assert torch.isfinite(problem.identity().objective).all()


def test_best_keeps_distinct_hypotheses_of_each_model() -> None:
    one, two, three = [0, 1, 2], [1, 0, 2], [2, 1, 0]
    batch = Hypotheses(
        {"g": torch.tensor([one, two, one, three, two, two, one, two])},
        torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        torch.tensor([1.0, 3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 7.0], dtype=torch.float64),
        torch.arange(8),
        models=2,
    )
    best = batch.best(3)
    assert best.lineage.tolist() == [0, 3, 1, 5, 6, 4]
    assert best.model.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.best().objective.tolist() == [1.0, 4.0]
    joined = concatenate([batch, best])
    assert joined.lineage.tolist() == [0, 1, 2, 3, 0, 3, 1, 4, 5, 6, 7, 5, 6, 4]
    assert joined.owners.tolist() == [*range(7), *range(7)]


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=30), st.data())
def test_fingerprints_tell_permutations_apart(rows: list[list[int]], data: st.DataObject) -> None:
    others = [data.draw(st.permutations(range(3))) for _ in rows]
    perms = {"g": torch.tensor(rows), "h": torch.tensor(others)}
    zeros = torch.zeros(len(rows), dtype=torch.int64)
    prints = Hypotheses(perms, zeros, zeros.double(), zeros).fingerprint().tolist()
    keys = [(tuple(a), tuple(b)) for a, b in zip(rows, others, strict=True)]
    assert len(set(keys)) == len(set(prints))
    assert len(dict(zip(keys, prints, strict=True))) == len(set(zip(keys, prints, strict=True)))
