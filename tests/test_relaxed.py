"""Doubly stochastic matrices: Sinkhorn, the line search of Frank-Wolfe, rounding, breeding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import each_once
from networks import FAMILIES, pair
from strategies import seeds
from test_problem import problem_of
from torch import Tensor

from gpu_align import AlignmentProblem, FrankWolfe, Recombination, Status, run_search
from gpu_align._device._random import RandomStream
from gpu_align._problem import Hypotheses, is_signed, to_matrix, unsigned
from gpu_align._search import Run, _recombination
from gpu_align._search._frank_wolfe import maximize_polynomial
from gpu_align._search._relaxed import sinkhorn, soft_starts, soften, to_hypotheses

GRID = torch.linspace(0, 1, 10_001, dtype=torch.float64)
RELATED = ["recurrent", *FAMILIES]


def assert_soft(soft: dict[str, torch.Tensor], atol: float = 1e-4) -> None:
    """Assert plain matrices that are doubly stochastic, and signed ones no larger than these."""
    for name, matrix in soft.items():
        plain = soft[unsigned(name)]
        assert (matrix.abs() <= plain + 1e-12).all()
        for axis in (1, 2):
            assert torch.allclose(plain.sum(axis), torch.ones_like(plain[:, 0]), atol=atol)


def similarities(problem: AlignmentProblem, seed: int) -> dict[str, torch.Tensor]:
    """Return random similarities of all matrices, [2, n, n]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        matrix: torch.randn(2, n, n, generator=generator, dtype=problem.dtype)
        for matrix, n in problem.sizes.items()
    }


@pytest.mark.parametrize("size", [1, 2, 63])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_sinkhorn_sums(size: int, scale: float) -> None:
    logits = scale * torch.randn(3, size, size, dtype=torch.float64)
    matrix = sinkhorn(logits.clone(), 500)
    assert (matrix >= 0).all()
    assert torch.allclose(matrix.sum(1), torch.ones(3, size, dtype=torch.float64))
    assert torch.allclose(matrix.sum(2), torch.ones(3, size, dtype=torch.float64), atol=1e-2)


@pytest.mark.parametrize("iterations", [1, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_sinkhorn_of_extreme_logits_is_finite(
    scale: float, dtype: torch.dtype, iterations: int
) -> None:
    logits = scale * torch.randn(4, 17, 17, dtype=dtype)
    matrix = sinkhorn(logits.clone(), iterations)
    assert torch.isfinite(matrix).all()
    assert torch.allclose(matrix.sum(1), torch.ones(4, 17, dtype=dtype), atol=1e-4)


def test_sinkhorn_keeps_its_argument_and_is_equivariant() -> None:
    logits = torch.randn(2, 5, 5, dtype=torch.float64)
    before, order = logits.clone(), torch.randperm(5)
    matrix = sinkhorn(logits, 20)
    assert torch.equal(logits, before)
    assert torch.allclose(sinkhorn(logits[:, order], 20), matrix[:, order])
    shifted = logits + torch.randn(2, 5, 1) + torch.randn(2, 1, 5)
    assert torch.allclose(sinkhorn(shifted, 400), sinkhorn(logits, 400), atol=1e-6)


@given(
    degree=st.integers(1, 4),
    coefficients=st.lists(st.floats(-10, 10), min_size=5, max_size=5),
    lead=st.sampled_from([1.0, 1e-6, 1e-13, 0.0]),
)
def test_line_search_beats_a_dense_grid(
    degree: int, coefficients: list[float], lead: float
) -> None:
    weights = torch.tensor(coefficients[: degree + 1], dtype=torch.float64)
    weights[-1] *= lead
    powers = torch.arange(degree + 1)
    nodes = torch.linspace(0, 1, degree + 1, dtype=torch.float64)

    def height(points: torch.Tensor) -> torch.Tensor:
        return (points[:, None] ** powers * weights).sum(1)

    step = maximize_polynomial(nodes, height(nodes)[None])
    assert 0 <= float(step) <= 1
    slack = 1e-9 * (1 + float(weights.abs().max()))
    assert float(height(step)) >= float(height(GRID).max()) - slack


@settings(max_examples=25)
@given(degree=st.integers(1, 4), seed=seeds)
def test_line_search_is_batched(degree: int, seed: int) -> None:
    values = torch.randn(
        6, degree + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    nodes = torch.linspace(0, 1, degree + 1, dtype=torch.float64)
    together = maximize_polynomial(nodes, values)
    alone = torch.cat([maximize_polynomial(nodes, value[None]) for value in values])
    assert torch.allclose(together, alone)


@pytest.mark.parametrize("name", ["shallow", "mlp", "groupnorm", "trilinear", *RELATED])
def test_frank_wolfe_never_falls(name: str) -> None:
    problem = problem_of(pair(name))
    run = Run(problem, RandomStream(0))
    search = FrankWolfe(starts=3)
    state, heights = search.init(run, None), []
    for _ in range(5):
        heights.append(state.memory.present.value)
        state = search.step(run, state)
        if state.memory.present is None:
            break
        assert_soft(state.memory.present.soft)
        assert (state.memory.present.value >= heights[-1] - 1e-9).all()


def test_frank_wolfe_of_one_group_is_exact() -> None:
    problem = problem_of(pair("shallow"))
    outcome = run_search(FrankWolfe(), problem)
    best = problem.random(500, RandomStream(0)).objective.min()
    assert outcome.status is Status.CONVERGED
    assert float(outcome.best.objective) <= float(best) + 1e-9


def barycentre(problem: AlignmentProblem, variable: str) -> Tensor:
    """Return the mean of all matrices of a group: each unit is at all its places alike."""
    size = problem.sizes[variable]
    parent = problem.spec.groups[unsigned(variable)].parent
    fixed = parent is not None and problem.spec.groups[parent].fixed
    inside = size // problem.spec.groups[parent].size if fixed else size
    mean = torch.full((inside, inside), 0 if is_signed(variable) else 1 / inside)
    return torch.block_diag(*[mean] * (size // inside))


@pytest.mark.parametrize("name", ["mlp", *FAMILIES])
def test_starts_are_doubly_stochastic_and_distinct(name: str) -> None:
    problem = problem_of(pair(name))
    run = Run(problem, RandomStream(0))
    soft = soft_starts(run, torch.arange(3), noise=1.0, exact_first=True)
    assert_soft(soft)
    for name, matrix in soft.items():
        assert torch.allclose(matrix[0], barycentre(problem, name).to(matrix))
        assert not torch.allclose(matrix[1], matrix[2]) or matrix.shape[1] == 1


@pytest.mark.parametrize("name", ["resnet", *FAMILIES])
def test_rounding_of_permutation_matrices_gives_them_back(name: str) -> None:
    problem = problem_of(pair(name))
    run = Run(problem, RandomStream(0))
    batch = problem.random(4, run.random)
    soft = {
        matrix: 0.7 * to_matrix(perm, torch.float64) + 0.3 / problem.sizes[matrix]
        for matrix, perm in batch.perms.items()
    }
    rounded = to_hypotheses(run, soft, batch.model)
    for matrix, perm in rounded.perms.items():
        assert torch.equal(perm, batch.perms[matrix])
    assert torch.allclose(rounded.objective, batch.objective)


@pytest.mark.parametrize(("name", "temperature"), each_once(["mlp", *FAMILIES], [0.3, 10.0]))
def test_softened_families_are_doubly_stochastic(name: str, temperature: float) -> None:
    problem = problem_of(pair(name))
    similarity = similarities(problem, seed=1)
    for family in problem.families.values():
        own = {matrix: similarity[matrix] for matrix in family.variables}
        soft = soften(family, own, torch.tensor(temperature), iterations=500)
        assert_soft(soft, atol=1e-3)
        for child in family.children:
            inside = family.blocks(soft[child.group]).sum((3, 4)) / child.size
            root = soft.get(family.root.group, torch.ones_like(inside))
            assert torch.allclose(inside, root, atol=1e-3)


@pytest.mark.parametrize("name", ["mlp", *FAMILIES])
def test_softened_families_are_the_assignment_when_cold(name: str) -> None:
    problem = problem_of(pair(name))
    run = Run(problem, RandomStream(0))
    hidden, noise = problem.random(2, run.random).perms, similarities(problem, seed=2)
    for family in problem.families.values():
        # Sinkhorn converges quickly only where the best assignment is clearly the best.
        own = {m: to_matrix(hidden[m], problem.dtype) + 0.1 * noise[m] for m in family.variables}
        best = family.assign(own, run.match)
        for matrix, soft in soften(family, own, torch.tensor(0.02), iterations=50).items():
            assert torch.allclose(soft, to_matrix(best[matrix], soft.dtype), atol=1e-3)


def test_softened_signs_weigh_both() -> None:
    """Each pair of units has the weights of both signs, added up and subtracted."""
    problem = problem_of(pair("signed"))
    (family, _), similarity = problem.families.values(), similarities(problem, seed=0)
    plain, signed = similarity["a"], similarity["a±"]
    unit = 0.7 * (plain + signed.abs()).flatten(1).std(dim=1)[:, None, None]
    weights = [torch.exp((plain + turn * signed) / unit) for turn in (1, -1)]
    added = sinkhorn((weights[0] + weights[1]).log(), 50)
    lean = (weights[0] - weights[1]) / (weights[0] + weights[1])
    soft = soften(family, {"a": plain, "a±": signed}, torch.tensor(0.7), iterations=50)
    assert torch.allclose(soft["a"], added)
    assert torch.allclose(soft["a±"], added * lean)


@pytest.mark.parametrize("given", [True, False], ids=["start", "no_start"])
@pytest.mark.parametrize("generations", [1, 3])
def test_recombination_breeds_as_many_generations_as_asked(
    generations: int, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, born = problem_of(pair("deep")), []

    def counted(*arguments: object) -> Hypotheses:
        born.append(arguments)
        return to_hypotheses(*arguments)

    monkeypatch.setattr(_recombination, "to_hypotheses", counted)
    start = problem.random(4, RandomStream(0)) if given else None
    run_search(Recombination(4, 4, generations), problem, start=start)
    assert len(born) == generations
